"""Encoders that are not what the job takes them for are refused from their small files alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.features_case import save_electra, save_wav2vec2, tone
from helpers.speech_checkpoints import save_w2v_bert, save_whisper
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from multistill.config import FeaturesConfig, SpeechEncoderConfig, TextEncoderConfig
from multistill.encoders.kinds import BUILT_IN_LAYERS
from multistill.encoders.preflight import problems, refuse_mismatched, refuse_unknown
from multistill.encoders.registry import BUILT_IN_SPEECH, BUILT_IN_TEXT, load_speech, load_text
from multistill.encoders.smart_turn import LAYERS
from multistill.errors import JobFileError, MultistillError, UsageError
from multistill.features.decode import normalize
from multistill.pipeline.jobfile import parse


def features(**models: Any) -> FeaturesConfig:
    return FeaturesConfig.model_validate({k: {"model": str(v)} for k, v in models.items()})


def sentences(**models: Any) -> list[str]:
    return [sentence for _, sentence in problems(features(**models))]


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.fixture
def electra(tmp_path: Path) -> Path:
    return save_electra(tmp_path / "electra")


@pytest.fixture
def wav2vec2(tmp_path: Path) -> Path:
    return save_wav2vec2(tmp_path / "wav2vec2")


def test_right_encoders_and_those_of_elsewhere_pass(electra: Path, wav2vec2: Path) -> None:
    assert sentences(speech=wav2vec2, text=electra) == []
    assert sentences(speech="org/not-on-this-machine", text="/no/such/folder") == []
    assert list(problems(FeaturesConfig())) == []


def test_a_text_model_is_no_speech_encoder_and_the_reverse(electra: Path, wav2vec2: Path) -> None:
    [speech, text] = sentences(speech=electra, text=wav2vec2)
    assert speech.startswith("features.speech.model: ") and "(electra) is a text model" in speech
    assert text.startswith("features.text.model: ") and "(wav2vec2) is a speech model" in text


def test_whisper_and_w2v_bert_are_speech_encoders_and_no_text_encoders(
    tmp_path: Path, electra: Path
) -> None:
    save_whisper(tmp_path / "whisper")
    save_w2v_bert(tmp_path / "w2v-bert")
    for name in ("whisper", "w2v-bert"):
        assert sentences(speech=tmp_path / name, text=electra) == []
        [sentence] = sentences(text=tmp_path / name)
        assert (
            "is a speech model" in sentence and "or put it under features.speech.model" in sentence
        )
    [sentence] = sentences(speech=electra)
    assert sentence.endswith("or put it under features.text.model")


def test_every_speech_encoder_is_looked_at(electra: Path, wav2vec2: Path) -> None:
    speech = {"model": str(wav2vec2), "additional": ["log-mel", {"model": str(electra)}]}
    [(section, sentence)] = problems(FeaturesConfig.model_validate({"speech": speech}))
    assert section == "speech"
    assert sentence.startswith("features.speech.additional[1].model: ")


def test_layers_that_an_encoder_lacks_are_refused_without_its_weights(
    tmp_path: Path, electra: Path, wav2vec2: Path
) -> None:
    save_whisper(tmp_path / "whisper")
    for section, model, count in (
        ("speech", str(wav2vec2), 3),
        ("speech", str(tmp_path / "whisper"), 2),
        ("speech", "smart-turn", 2),
        ("text", str(electra), 2),
        ("text", "untrained-electra", 2),
    ):
        for layer in (0, count, -1, -count - 1, count + 1, -count - 2):
            chosen = {section: {"model": model, "layers": [layer]}}
            found = [text for _, text in problems(FeaturesConfig.model_validate(chosen))]
            assert len(found) == (not -count - 1 <= layer <= count), (model, layer)
            if found:
                assert f"features.{section}.layers: {layer} is not a layer" in found[0]


def test_numbers_of_layers_of_built_in_encoders() -> None:
    assert BUILT_IN_LAYERS.keys() == BUILT_IN_SPEECH.keys() | BUILT_IN_TEXT.keys()
    device = torch.device("cpu")
    speech = load_speech(SpeechEncoderConfig(model="untrained-wav2vec2"), None, device)
    text = load_text(TextEncoderConfig(model="untrained-electra"), None, device)
    for encoder in (speech, text):
        assert encoder.info.layers == (BUILT_IN_LAYERS[encoder.info.name],)
    assert BUILT_IN_LAYERS["smart-turn"] == LAYERS


@pytest.mark.parametrize(
    ("section", "model", "meant"),
    [
        ("speech", "logmel", "log-mel"),
        ("speech", "Log-Mel", "log-mel"),
        ("speech", "smart_turn", "smart-turn"),
        ("text", "use-multilingal", "use-multilingual"),
    ],
)
def test_a_mistyped_name_is_corrected(section: str, model: str, meant: str) -> None:
    [sentence] = sentences(**{section: model})
    assert sentence.startswith(f"features.{section}.model: there is no encoder `{model}`")
    assert sentence.endswith(f"did you mean `{meant}`?")


def test_a_built_in_encoder_of_the_other_section_is_named() -> None:
    [speech, text] = sentences(speech="use-multilingual", text="log-mel")
    assert "`use-multilingual` is a text encoder; use `log-mel` or" in speech
    assert "`log-mel` is a speech encoder; use `hashed-ngrams` or" in text


@pytest.mark.parametrize("rate", [8000, 44100])
@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
def test_an_extractor_with_another_rate_is_refused(wav2vec2: Path, file: str, rate: int) -> None:
    nested = file == "processor_config.json"
    for value in (16_000, rate):
        content: dict[str, Any] = {"sampling_rate": value}
        content = {"feature_extractor": content} if nested else content
        (wav2vec2 / file).write_text(json.dumps(content))
        found = sentences(speech=wav2vec2)
        assert (f"audio of {rate} Hz" in "".join(found)) == (value == rate)


def test_a_text_folder_needs_tokenizer_files(electra: Path) -> None:
    for path in electra.iterdir():
        if path.name.startswith(("tokenizer", "vocab", "special")):
            path.unlink()
    [sentence] = sentences(text=electra)
    assert "has no tokenizer files (such as tokenizer.json or vocab.txt)" in sentence
    with pytest.raises(UsageError, match="no tokenizer files"):
        refuse_mismatched(features(text=electra))
    # The advice in the sentence works.
    save_electra(electra)
    assert sentences(text=electra) == []


@pytest.mark.parametrize("tokens", [11, 30, 500])
@pytest.mark.parametrize("file", ["tokenizer.json", "vocab.txt", "vocab.json"])
def test_the_tokenizer_of_another_model_is_refused(electra: Path, file: str, tokens: int) -> None:
    words = ["[PAD]", "[UNK]", *(f"w{number}" for number in range(tokens - 2))]
    ids = {word: number for number, word in enumerate(words)}
    for name in ("tokenizer.json", "vocab.txt"):
        (electra / name).unlink(missing_ok=True)
    if file == "tokenizer.json":
        (electra / file).write_text(json.dumps({"model": {"type": "WordPiece", "vocab": ids}}))
    else:
        text = "\n".join(words) + "\n" if file == "vocab.txt" else json.dumps(ids)
        (electra / file).write_text(text)
    [sentence] = sentences(text=electra)
    assert (
        f"has {tokens} tokens and the model embeds 10: it is the tokenizer of another" in sentence
    )


def test_special_tokens_and_algorithm_tell_a_tokenizer_of_another_family(electra: Path) -> None:
    edit(electra / "config.json", pad_token_id=3)
    assert "has [PAD] as token 0 and the model as token 3" in sentences(text=electra)[0]
    edit(electra / "config.json", pad_token_id=0, vocab_size=12)
    assert sentences(text=electra) == []  # embeddings may be padded to a round number
    content = json.loads((electra / "tokenizer.json").read_text())
    content["model"]["type"] = "BPE"
    (electra / "tokenizer.json").write_text(json.dumps(content))
    assert "is a BPE tokenizer, and electra models have WordPiece" in sentences(text=electra)[0]


@pytest.mark.parametrize(
    "kind", ["gpt2", "t5", "distilbert", "albert", "llama", "convbert", "xmod"]
)
def test_a_text_model_that_is_not_built_like_bert_is_refused(electra: Path, kind: str) -> None:
    edit(electra / "config.json", model_type=kind)
    [sentence] = sentences(text=electra)
    assert f"({kind}) is not built like BERT; use an ELECTRA, BERT or RoBERTa" in sentence


@pytest.mark.parametrize("kind", ["speecht5", "sew-d"])
def test_a_speech_model_that_is_not_built_like_wav2vec2_is_refused(
    wav2vec2: Path, kind: str
) -> None:
    edit(wav2vec2 / "config.json", model_type=kind)
    assert f"({kind}) does not read raw audio" in sentences(speech=wav2vec2)[0]


@pytest.mark.parametrize("rate", [8000, 8000.0, "8000"])
def test_a_rate_is_a_number_however_it_is_written(wav2vec2: Path, rate: Any) -> None:
    """Both files are read: an extractor without a rate does not hide that of the processor."""
    (wav2vec2 / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True}))
    whole = wav2vec2 / "processor_config.json"
    whole.write_text(json.dumps({"feature_extractor": {"sampling_rate": rate}}))
    assert "audio of 8000 Hz (processor_config.json)" in sentences(speech=wav2vec2)[0]
    whole.write_text(json.dumps({"feature_extractor": {"sampling_rate": type(rate)(16_000)}}))
    assert sentences(speech=wav2vec2) == []


@pytest.mark.parametrize("character", ["\x85", "\u2028", "\x0b", "\x1c", "\r"], ids=ascii)
def test_a_token_may_be_a_line_break_of_unicode(electra: Path, character: str) -> None:
    (electra / "tokenizer.json").unlink()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", f"b{character}c", "d", "e", "f"]
    for ending in ("\n", "\r\n"):
        (electra / "vocab.txt").write_bytes(ending.join([*words, ""]).encode())
        assert sentences(text=electra) == []


DAMAGE = [
    ("vocab.txt", "안녕".encode("cp949")),
    ("config.json", '{"model_type": "é"}'.encode("latin-1")),
    ("config.json", b"[1]"),
    ("config.json", b"{"),
    ("config.json", b"[" * 100_000),
    ("config.json", b'{"vocab_size": ' + b"9" * 5000 + b"}"),
    ("config.json", {"vocab_size": None}),
    ("config.json", {"vocab_size": "10"}),
    ("config.json", {"vocab_size": True}),
    ("config.json", {"model_type": ["electra"]}),
    ("config.json", {"pad_token_id": "0"}),
    ("tokenizer.json", {}),
    ("tokenizer.json", {"model": [1]}),
    ("tokenizer.json", {"model": {"vocab": None}}),
    ("tokenizer.json", {"model": {"vocab": {"a": "0"}}}),
    ("tokenizer.json", {"model": {"vocab": [["a", 0], 3]}}),
    ("tokenizer.json", {"model": {"vocab": {}}, "added_tokens": [{"id": 3}]}),
    ("tokenizer.json", {"model": {"vocab": {}}, "added_tokens": {"a": 3}}),
    ("tokenizer_config.json", {"pad_token": 3}),
    ("tokenizer_config.json", {"pad_token": {"content": 3}}),
    ("tokenizer_config.json", {"pad_token": {}}),
    ("vocab.json", {"a": "0"}),
    ("added_tokens.json", {"a": None}),
]


def put(folder: Path, name: str, content: Any) -> None:
    """Write a file of an encoder, and leave the vocabulary that it belongs to alone there."""
    first = {"vocab.txt": ["tokenizer.json"], "vocab.json": ["tokenizer.json", "vocab.txt"]}
    first["added_tokens.json"] = [*first["vocab.json"]]
    for other in first.get(name, []):
        (folder / other).unlink(missing_ok=True)
    if name == "added_tokens.json":
        (folder / "vocab.json").write_text(
            json.dumps({f"w{number}": number for number in range(10)})
        )
    if name == "config.json" and isinstance(content, dict):
        content = {**json.loads((folder / name).read_text()), **content}
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    (folder / name).write_bytes(data)


@pytest.mark.parametrize(("name", "content"), DAMAGE)
def test_a_damaged_file_is_named_in_one_sentence(electra: Path, name: str, content: Any) -> None:
    put(electra, name, content)
    [sentence] = sentences(text=electra)
    assert f"{electra / name} is damaged: " in sentence
    assert len(sentence.splitlines()) == 1


@pytest.mark.parametrize("value", [[16_000], "fast", True, {}, "nan"])
@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json"])
def test_a_damaged_extractor_is_named(wav2vec2: Path, name: str, value: Any) -> None:
    content = {"sampling_rate": value}
    nested = {"feature_extractor": content} if name == "processor_config.json" else content
    (wav2vec2 / name).write_text(json.dumps(nested))
    assert f"{name} is damaged: " in sentences(speech=wav2vec2)[0]
    for empty in (None, {}):
        (wav2vec2 / name).write_text(json.dumps({"feature_extractor": empty}))
        assert sentences(speech=wav2vec2) == []


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
PLACES = [
    ("config.json", ("model_type",)),
    ("config.json", ("vocab_size",)),
    ("config.json", ("pad_token_id",)),
    ("config.json", ("conv_kernel",)),
    ("config.json", ()),
    ("tokenizer.json", ()),
    ("tokenizer.json", ("model",)),
    ("tokenizer.json", ("model", "type")),
    ("tokenizer.json", ("model", "vocab")),
    ("tokenizer.json", ("model", "vocab", "[PAD]")),
    ("tokenizer.json", ("added_tokens",)),
    ("tokenizer.json", ("added_tokens", 0)),
    ("tokenizer.json", ("added_tokens", 0, "content")),
    ("tokenizer.json", ("added_tokens", 0, "id")),
    ("tokenizer_config.json", ()),
    ("tokenizer_config.json", ("pad_token",)),
    ("tokenizer_config.json", ("pad_token", "content")),
    ("vocab.json", ()),
    ("vocab.json", ("w0",)),
    ("added_tokens.json", ()),
    ("preprocessor_config.json", ()),
    ("preprocessor_config.json", ("sampling_rate",)),
    ("processor_config.json", ()),
    ("processor_config.json", ("feature_extractor",)),
    ("processor_config.json", ("feature_extractor", "sampling_rate")),
]


@pytest.mark.parametrize(("name", "place"), PLACES)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(value=anything)
def test_any_value_in_any_field_gives_a_sentence_or_nothing(
    electra: Path, wav2vec2: Path, name: str, place: tuple[str | int, ...], value: Any
) -> None:
    for folder in (electra, wav2vec2):
        path = folder / name
        before = path.read_bytes() if path.exists() else None
        content = json.loads(before) if before else {}
        try:
            put(folder, name, replaced(content, place, value))
            for sentence in sentences(speech=folder, text=folder):
                assert str(folder) in sentence
        finally:
            path.unlink()
            if before is not None:
                path.write_bytes(before)


def replaced(content: Any, place: tuple[str | int, ...], value: Any) -> Any:
    """A copy of a JSON value with another one at a place, made where it is absent."""
    if not place:
        return value
    step, *rest = place
    if isinstance(step, int):
        items = content if isinstance(content, list) and content else [{}]
        return [replaced(items[step], tuple(rest), value), *items[step + 1 :]]
    values = content if isinstance(content, dict) else {}
    return {**values, step: replaced(values.get(step), tuple(rest), value)}


def test_the_job_file_is_refused_at_the_line_of_the_model(electra: Path) -> None:
    """So `validate`, `plan`, `doctor` and `run` refuse it, before Ray starts."""
    text = f"name: t\ncorpora: [{{kind: demo}}]\nfeatures:\n  speech:\n    model: {electra}\n"
    with pytest.raises(JobFileError, match=r"job\.yaml:5: features\.speech\.model: .* text model"):
        parse(text, "job.yaml")


def test_unknown_tokens_above_the_bound_stop_the_job(electra: Path) -> None:
    config = TextEncoderConfig(model=str(electra))
    refuse_unknown(config, ["나는 좋다", "good days", ""])
    refuse_unknown(TextEncoderConfig(), ["hashing knows every word"])
    texts = ["나는 좋다"] * 6 + ["entirely other words"] * 4
    with pytest.raises(MultistillError, match=r"50% of the tokens of 10 .*`entirely other words`"):
        refuse_unknown(config, texts)
    refuse_unknown(TextEncoderConfig(model=str(electra), max_unknown=0.5), texts)


def test_a_tokenizer_that_only_a_library_can_read_is_checked_when_it_is_loaded(
    electra: Path,
) -> None:
    edit(electra / "tokenizer.json", added_tokens=[])
    config = TextEncoderConfig(model=str(electra))
    load_text(config, None, torch.device("cpu"))
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(electra)
    tokenizer.add_tokens(["extra"])
    tokenizer.save_pretrained(electra)
    with pytest.raises(MultistillError, match="tokenizer of another model"):
        load_text(config, None, torch.device("cpu"))


def test_data2vec_audio_is_encoded_and_no_clip_depends_on_its_batch(tmp_path: Path) -> None:
    from transformers import Data2VecAudioConfig, Data2VecAudioModel

    torch.manual_seed(0)
    config = Data2VecAudioConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        conv_dim=(16,) * 7,
        num_conv_pos_embedding_groups=4,
    )
    Data2VecAudioModel(config).save_pretrained(tmp_path)
    assert sentences(speech=tmp_path) == []
    encoder = load_speech(SpeechEncoderConfig(model=str(tmp_path)), None, torch.device("cpu"))
    assert encoder.info.padding == "equal-length"
    clips = [normalize(tone(0.5, seed=number)) for number in range(3)]
    for clip, states in zip(clips, encoder.encode(clips), strict=True):
        assert states.shape == (encoder.frames(len(clip)), 32)
        assert np.abs(encoder.encode([clip])[0] - states).max() < 1e-5


@pytest.mark.parametrize("model", ["untrained-electra", "electra"])
def test_texts_above_the_limit_are_told(model: str, electra: Path) -> None:
    name = str(electra) if model == "electra" else model
    encoder = load_text(TextEncoderConfig(model=name, max_tokens=8), None, torch.device("cpu"))
    for words in range(12):
        text = " ".join(["a"] * words)
        [states] = encoder.encode([text])
        assert encoder.is_cut(text) == (words > 6)
        assert len(states) == (min(words + 2, 8) if words else 0)
