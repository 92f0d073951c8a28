"""Advice about encoders, presets and model folders: provoked and followed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.advice import says, told
from helpers.features_case import make_store, random_clips, save_electra, save_wav2vec2, tone
from safetensors.torch import load_file, save_file
from transformers import Wav2Vec2BertConfig, Wav2Vec2BertModel

from multistill.config import FeaturesConfig, SpeechEncoderConfig, TextEncoderConfig
from multistill.encoders.packaged import PACKAGED
from multistill.encoders.preflight import problems, refuse_mismatched, refuse_unknown
from multistill.encoders.registry import load_speech, load_text, resolve_speech, resolve_text
from multistill.encoders.speech import Wav2Vec2Family
from multistill.encoders.text import TransformerText
from multistill.errors import MultistillError, UsageError
from multistill.inference.predict import predict
from multistill.inference.quantize import quantize
from multistill.models.build import build
from multistill.models.context import DialogueContext
from multistill.models.files import ModelInfo, load_model, load_weights, save_model
from multistill.models.presets import resolve
from multistill.models.spec import ModelSpec, StatePart
from multistill.pipeline import jobfile

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny checkpoints, as save_pretrained writes them; tests copy what they change."""
    folder = tmp_path_factory.mktemp("models")
    return {
        "speech": save_wav2vec2(folder / "wav2vec2"),
        "text": save_electra(folder / "electra"),
    }


@pytest.fixture
def folder(models: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    return {name: Path(shutil.copytree(path, tmp_path / name)) for name, path in models.items()}


def features(**chosen: Any) -> FeaturesConfig:
    return FeaturesConfig.model_validate({k: {"model": str(v)} for k, v in chosen.items()})


def edit(path: Path, **values: Any) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **values}))


def test_encoders_of_another_kind(folder: dict[str, Path]) -> None:
    speech, text = folder["speech"], folder["text"]
    found = dict(problems(features(speech=text, text=speech)))
    says(
        "use a wav2vec2, HuBERT, WavLM, data2vec-audio, Whisper or W2v-BERT model", found["speech"]
    )
    says("use an ELECTRA, BERT or RoBERTa model", found["text"])
    says("{}, or put it under {}.model", found["text"])
    assert list(problems(features(speech=speech, text=text))) == []
    loaded = {
        "speech": load_speech(SpeechEncoderConfig(model=str(speech)), None, CPU),
        "text": load_text(TextEncoderConfig(model=str(text)), None, CPU),
    }
    common: dict[str, Any] = {"revision": None, "device": CPU}
    with told("does not read raw audio like wav2vec2; {}"):
        config = SpeechEncoderConfig(model=str(text))
        Wav2Vec2Family(loaded["text"].network.model, config, "pretrained", **common)
    with told("is not built like BERT; {}"):
        tokenizer = loaded["text"]._tokenizer
        settings = TextEncoderConfig(model=str(speech))
        TransformerText(loaded["speech"].network.model, tokenizer, settings, "pretrained", **common)


@pytest.mark.parametrize(
    ("name", "damage", "advice"),
    [
        (
            "speech",
            "config.json",
            "{} has no config.json; give a folder written by save_pretrained",
        ),
        ("text", "damaged", "{} is damaged: {}; copy the file from its source again"),
        ("text", "config.json", "{} has no config.json; give a folder written by save_pretrained"),
        (
            "speech",
            "pickle",
            "so convert it and save it as safetensors with a config.json (docs/features.md, "
            "emotion2vec)",
        ),
        (
            "text",
            "tokenizer",
            "save the model's tokenizer there too, with its own save_pretrained",
        ),
        (
            "text",
            "another",
            "it is the tokenizer of another model; save the model's own tokenizer there with its "
            "save_pretrained",
        ),
        ("speech", "rate", "and clips are encoded at {} Hz; use a model for {} Hz"),
    ],
)
def test_folders_of_encoders(folder: dict[str, Path], name: str, damage: str, advice: str) -> None:
    path = folder[name]
    if damage == "config.json":
        (path / damage).unlink()
    elif damage == "pickle":
        (path / "config.json").rename(path / "model.pt")
    elif damage == "damaged":
        edit(path / "config.json", vocab_size="many")
    elif damage == "rate":
        edit(path / "preprocessor_config.json", sampling_rate=8000)
    else:
        for file in path.glob("*"):
            if file.name.startswith(("tokenizer", "vocab", "special")):
                file.unlink()
        if damage == "another":
            (path / "vocab.txt").write_text("\n".join(f"w{number}" for number in range(99)))
    with told(advice, UsageError):
        refuse_mismatched(features(**folder))
    if name == "text":
        save_electra(path)
    elif damage == "rate":
        edit(path / "preprocessor_config.json", sampling_rate=16_000)
    else:
        save_wav2vec2(path)
    refuse_mismatched(features(**folder))
    load_speech(SpeechEncoderConfig(model=str(folder["speech"])), None, CPU)
    load_text(TextEncoderConfig(model=str(folder["text"])), None, CPU)


def test_a_model_that_is_not_there(folder: dict[str, Path]) -> None:
    config: Any
    for config, function, name in (
        (SpeechEncoderConfig(model="no/such-model"), resolve_speech, "speech"),
        (TextEncoderConfig(model="no/such-model"), resolve_text, "text"),
    ):
        with pytest.raises(MultistillError) as refused:
            function(config)
        says("{}.model: {}; give a local folder with the complete model, or use {}", refused.value)
        assert function(config.model_copy(update={"model": str(folder[name])}))
        built_in = str(refused.value).split("or use ")[1].split("`")[1::2]
        assert built_in
        for model in built_in:
            chosen = config.model_copy(update={"model": model})
            if model in PACKAGED and not PACKAGED[model].is_stored():
                with pytest.raises(MultistillError, match=f"multistill weights get {model}"):
                    function(chosen)
            else:
                function(chosen)


def test_words_that_the_tokenizer_does_not_know(folder: dict[str, Path]) -> None:
    config = TextEncoderConfig(model=str(folder["text"]))
    with told("use a model for the language of the corpus, or raise the limit"):
        refuse_unknown(config, ["entirely other words"])
    refuse_unknown(config, ["나는 좋다"])
    refuse_unknown(config.model_copy(update={"max_unknown": 1.0}), ["entirely other words"])


def test_layers_that_an_encoder_lacks(folder: dict[str, Path]) -> None:
    def load(*layers: int) -> None:
        config = SpeechEncoderConfig(model=str(folder["speech"]), layers=list(layers))
        load_speech(config, None, CPU)

    for wrong in (4, -5):
        with told("it has {} layers, so use 0 to {} or -1 to {}", UsageError):
            load(wrong)
    load(0, 3, -1, -4)


def test_bfloat16_that_changes_the_states(folder: dict[str, Path]) -> None:
    file = folder["speech"] / "model.safetensors"
    weights = load_file(file)
    weights["feature_extractor.conv_layers.6.conv.bias"] += 1000.0
    save_file(weights, file, metadata={"format": "pt"})
    waves = [tone(0.5)]
    config = SpeechEncoderConfig(model=str(folder["speech"]), precision="bfloat16")
    with told("too much (cosine {} with float32, the minimum is {}); use `precision: float32`"):
        load_speech(config, None, CPU).verify(waves)
    exact = load_speech(config.model_copy(update={"precision": "float32"}), None, CPU)
    exact.verify(waves)
    assert np.isfinite(exact.encode(waves)[0]).all()


SPECS: list[tuple[dict[str, Any], str, dict[str, Any]]] = [
    ({"width": 64.5}, "must be an integer of at least 1, not {}", {"width": 64}),
    ({"heads": 0}, "must be an integer of at least 1, not {}", {"heads": 1}),
    ({"dropout": 1.0}, "must be at least 0 and below 1, not {}", {"dropout": 0.99}),
    ({"context_turns": -1}, "context_turns must be 0 or more, not {}", {"context_turns": 0}),
    (
        {"paths": "wide", "context_turns": 2},
        "the wide path does not read context_turns; use",
        {"paths": "both", "context_turns": 2},
    ),
    (
        {"paths": "wide", "layer_mix": "weighted"},
        "the wide path does not sum layers; use `paths: both` or set layer_mix to none",
        {"paths": "both", "layer_mix": "weighted"},
    ),
    ({"width": 65, "heads": 5}, "must be even (sine and cosine", {"width": 70, "heads": 5}),
    (
        {"modality": "text", "front": "convolutional"},
        "a convolutional front reads speech, and this model reads text alone; use `front: linear`",
        {"modality": "text", "front": "linear"},
    ),
    ({"width": 66, "heads": 4}, "use a width that is a multiple of {}", {"width": 68, "heads": 4}),
]


@pytest.mark.parametrize(("wrong", "advice", "followed"), SPECS)
def test_settings_of_a_model(wrong: dict[str, Any], advice: str, followed: dict[str, Any]) -> None:
    with told(advice, UsageError):
        resolve("small-student", wrong)
    resolve("small-student", followed)


def test_a_model_in_8_bits_over_another(tmp_path: Path) -> None:
    save_model(build(resolve("light-student-s", {}), 80, 0), tmp_path / "a", ModelInfo("student"))
    with told("{} holds a model; give another folder for the one in 8 bits", UsageError):
        quantize(tmp_path / "a", tmp_path / "a")
    quantize(tmp_path / "a", tmp_path / "b")


def test_presets() -> None:
    with pytest.raises(UsageError) as refused:
        resolve("quite-unlike-7", {})
    says("use one of {}", refused.value)
    for name in str(refused.value).split("use one of ")[1].split(", "):
        assert isinstance(resolve(name, {}), ModelSpec)
    with pytest.raises(UsageError) as refused:
        resolve("small-studnt", {})
    says("did you mean `{}`?", refused.value)
    resolve(str(refused.value).split("`")[-2], {})


def test_a_layer_that_the_store_does_not_hold_apart() -> None:
    spec = resolve("small-student", {"speech_layer": 2})
    advice = "store several layers with features.{}: {layers: [..., {}], combine: concat}"
    with told(advice, UsageError):
        spec.state_slice("speech", 32)
    job = jobfile.parse(
        "name: x\ncorpora: [{kind: demo}]\n"
        "features: {speech: {model: smart-turn, layers: [1, 2], combine: concat}}\n",
        "x.yaml",
    )
    stored = resolve("small-student", {"speech_layer": 2, **job.features.side_by_side()})
    assert stored.state_slice("speech", 64) == slice(32, 64)


def test_speech_encoders_that_the_store_does_not_hold_apart() -> None:
    parts = (StatePart("wavlm", 64, (3, 6)), StatePart("log-mel", 80))
    spec = ModelSpec("audio", speech_encoder="wavlm")
    with told("name more in features.speech.additional, or remove speech_encoder", UsageError):
        spec.state_slice("speech", 144)
    assert replace(spec, speech_encoder=None).state_slice("speech", 144) == slice(0, 144)
    assert replace(spec, speech_parts=parts).state_slice("speech", 144) == slice(0, 64)
    spec = ModelSpec("audio", speech_parts=parts, speech_layer=6)
    with told("set speech_encoder too", UsageError):
        spec.state_slice("speech", 144)
    assert replace(spec, speech_encoder="wavlm").state_slice("speech", 144) == slice(32, 64)
    with told("and `combine: concat`, or set layer_mix to none", UsageError):
        build(ModelSpec("audio", layer_mix="weighted"), 64, 4)
    build(ModelSpec("audio", layer_mix="weighted", speech_layers=(3, 6)), 64, 4)
    build(ModelSpec("audio", layer_mix="none"), 64, 4)
    spec = ModelSpec("audio", speech_parts=parts)
    with told("train the model again on these features", UsageError):
        build(spec, 145, 4)
    build(spec, 144, 4)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = build(resolve("small-student", {}), 8, 4)
    save_model(model, tmp_path / "model", INFO)
    return tmp_path / "model"


INFO = ModelInfo(role="student", output="logits", max_frames=None, encoders={}, training={})


def test_model_folders(saved: Path, tmp_path: Path) -> None:
    with told("is missing; pass the folder that holds {}"):
        load_model(saved.parent)
    load_model(saved)
    (pickled := tmp_path / "pickled").mkdir()
    torch.save({"a": torch.zeros(1)}, pickled / "model.pt")
    with told("which can execute arbitrary code and is never loaded; save it as {} with {}"):
        load_model(pickled)
    save_model(build(resolve("small-student", {}), 8, 4), pickled, INFO)
    load_model(pickled)
    with told("expected {}; use a model and features of the same job"):
        load_model(saved, {"audio_dim": 9})
    load_model(saved, {"audio_dim": 8})
    edit(saved / "config.json", format=0)
    with told("this version reads {}; use the version of multistill that wrote it"):
        load_model(saved)


@pytest.mark.parametrize(
    ("damage", "advice"),
    [
        ("config", "is damaged ({}); remove the folder and run the job again"),
        ("weights", "its checksum differs from the one in {}; remove its folder and run the job"),
        ("lost", "{} is missing; remove its folder and run the job again"),
    ],
)
def test_a_damaged_model_is_trained_again(saved: Path, damage: str, advice: str) -> None:
    from multistill.training.model_store import KIND, ModelStore
    from multistill.workspace import Workspace

    workspace = Workspace(saved.parent / "ws").open()

    def trained() -> Path:
        def train(out: Path) -> None:
            save_model(build(resolve("small-student", {}), 8, 4), out, INFO)

        return workspace.make(KIND, "0" * 16, train).path

    index = {"student": {"fingerprint": "0" * 16}}
    path = trained()
    if damage == "config":
        (path / "config.json").write_text("{")
    elif damage == "weights":
        (path / "model.safetensors").write_bytes(b"")
    else:
        (path / "model.safetensors").unlink()
    with told(advice):
        load_model(path)
    shutil.rmtree(path)
    assert not ModelStore(workspace).holds(index), "the next run trains it again"
    load_model(trained())


def test_a_model_that_reads_previous_turns(tmp_path: Path) -> None:
    store = make_store(tmp_path, random_clips(4))
    model = build(resolve("small-student", {"context_turns": 1}), 8, 4)
    with told("this model reads previous turns: pass a DialogueContext", ValueError):
        predict(model, store, store.ids)
    columns = {"utterance_id": store.ids, "dialogue": ["d"] * 4, "turn": [0, 1, 2, 3]}
    outputs = predict(model, store, store.ids, context=DialogueContext(store, columns, 1))
    assert np.isfinite(outputs.logits).all()


def test_weights_of_another_architecture(saved: Path) -> None:
    model = build(resolve("small-student", {"width": 32}), 8, 4)
    digest = json.loads((saved / "config.json").read_text())["sha256"]
    with pytest.raises(MultistillError, match="the weights belong to another architecture"):
        load_weights(model, saved / "model.safetensors", digest)


def test_a_w2v_bert_of_another_size(tmp_path: Path) -> None:
    def save(values: int) -> SpeechEncoderConfig:
        config = Wav2Vec2BertConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            feature_projection_input_dim=values,
        )
        Wav2Vec2BertModel(config).save_pretrained(tmp_path)
        return SpeechEncoderConfig(model=str(tmp_path))

    with told("filter banks; use a model of that size"):
        load_speech(save(80), None, CPU)
    load_speech(save(160), None, CPU)
