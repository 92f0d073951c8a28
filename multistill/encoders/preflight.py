"""What is wrong with an encoder, seen from the small files beside its weights.

Transformers loads almost anything: without tokenizer files it makes an empty tokenizer, in which
every word is unknown, and with those of another model the states are of other words. Everything
here reads a folder or the local cache of the hub; no weights, no torch, no network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from multistill.audio import SAMPLE_RATE
from multistill.config import (
    FeaturesConfig,
    OneSpeechEncoderConfig,
    SpeechEncoderConfig,
    TextEncoderConfig,
)
from multistill.encoders import hub
from multistill.encoders.base import SPEECH_SECTION, TEXT_SECTION
from multistill.encoders.kinds import (
    BUILT_IN_LAYERS,
    LIKE_BERT,
    LIKE_WAV2VEC2,
    SPEECH_ADVICE,
    TEXT_ADVICE,
    WHISPER,
    layer_problem,
    reader_of,
)
from multistill.encoders.packaged import PACKAGED
from multistill.encoders.registry import BUILT_IN_SPEECH, BUILT_IN_TEXT, load_tokenizer
from multistill.encoders.slim import EncoderSizes, sizes_of, slim_problems
from multistill.encoders.small_files import DamagedFileError, Fields, fields_of, text_of
from multistill.encoders.trained_layers import training_problems
from multistill.errors import MultistillError, UsageError

TRANSCRIPTS = 1000
"""Transcripts of which the unknown tokens are counted, evenly spaced over the corpus."""

_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json")
# How models of a type split words, as tokenizer.json calls it.
_ALGORITHMS = {
    "bert": "WordPiece",
    "electra": "WordPiece",
    "roberta": "BPE",
    "xlm-roberta": "Unigram",
    "camembert": "Unigram",
}


_Encoder = OneSpeechEncoderConfig | TextEncoderConfig


def problems(config: FeaturesConfig) -> Iterator[tuple[str, str]]:
    """`("speech" or "text", sentence)` for each encoder that is not what the job takes it for.

    Encoders that are not on this machine are not looked at.
    """
    for section, part in zip(_sections(config), config.speech.parts, strict=True):
        for sentence in _told(_problems_of(part, BUILT_IN_SPEECH, _speech_problems)):
            yield "speech", f"{section}.{sentence}"
    for sentence in _told(_problems_of(config.text, BUILT_IN_TEXT, _text_problems)):
        yield "text", f"{TEXT_SECTION}.{sentence}"


def _problems_of(
    config: _Encoder, built_in: Iterable[str], of_folder: Callable[[Any, Path], Iterator[str]]
) -> Iterator[str]:
    """Sentences about one encoder, each behind the key that it is about: `model: ...`."""
    if config.model in built_in:
        yield from _layer_problems(config, BUILT_IN_LAYERS.get(config.model))
        return
    folder = hub.local_folder(config)
    if folder is not None:
        yield from of_folder(config, folder)
    elif config.model in {*BUILT_IN_SPEECH, *BUILT_IN_TEXT}:
        what = "a text encoder" if config.model in BUILT_IN_TEXT else "a speech encoder"
        yield f"model: `{config.model}` is {what}; use {' or '.join(f'`{n}`' for n in built_in)}"
    elif near := get_close_matches(config.model.casefold(), built_in, n=1, cutoff=0.8):
        yield (
            f"model: there is no encoder `{config.model}` on this machine; did you mean "
            f"`{near[0]}`?"
        )
    else:
        yield from training_problems(config)


def _layer_problems(
    config: _Encoder, layers: int | None, model_type: str | None = None
) -> Iterator[str]:
    if layers == 0 and config.layers != [-1]:
        yield (
            f"layers: `{config.model}` has no layers to choose from; remove `layers`, or use an "
            "encoder that has some"
        )
    elif layers:
        found = (layer_problem(index, layers) for index in config.layers)
        yield from (f"layers: {problem}" for problem in found if problem)
    yield from training_problems(config, layers, model_type)


def slimmed_problems(config: SpeechEncoderConfig, slim: EncoderSizes) -> Iterator[str]:
    """A sentence for each reason why the speech encoder cannot be slimmed to these sizes.

    Of an encoder that is not on this machine, what its settings alone tell.
    """
    folder = None if config.model in BUILT_IN_SPEECH else hub.local_folder(config)
    settings = kind = None
    try:
        if folder is not None:
            settings = fields_of(folder / "config.json")
            kind = settings.text("model_type")
        base = sizes_of(config, settings)
    except DamagedFileError:
        return  # told by `problems`
    yield from slim_problems(config, slim, base, kind)


def missing_weights(config: FeaturesConfig) -> Iterator[str]:
    """A sentence for each encoder whose weights come from a package and are not on this machine.

    Not a problem of the job file: a job may be submitted from a machine that lacks them.
    """
    parts = [
        ("speech", section, part.model, "log-mel")
        for section, part in zip(_sections(config), config.speech.parts, strict=True)
    ]
    for kind, section, model, other in (
        *parts,
        ("text", TEXT_SECTION, config.text.model, "hashed-ngrams"),
    ):
        weights = PACKAGED.get(model)
        if weights is not None and weights.section == kind and not weights.is_stored():
            yield f"{section}.model: {weights.missing()}, or use `{other}`"


def _sections(config: FeaturesConfig) -> list[str]:
    """Job-file section of each speech encoder."""
    count = len(config.speech.additional)
    return [SPEECH_SECTION, *(f"{SPEECH_SECTION}.additional[{n}]" for n in range(count))]


def _told(sentences: Iterator[str]) -> Iterator[str]:
    """The sentences, and that of a damaged file they end with."""
    try:
        yield from sentences
    except DamagedFileError as error:
        yield f"model: {error}"


def refuse_mismatched(config: FeaturesConfig) -> None:
    """Raise for the first of the `problems`.

    Raises:
        UsageError: an encoder is not what the job takes it for.
    """
    for _, sentence in problems(config):
        raise UsageError(sentence)


def unknown_tokens(config: TextEncoderConfig, texts: Sequence[str]) -> dict[str, Any] | None:
    """How many tokens of a corpus the text encoder does not know.

    Args:
        texts: transcripts, of which `TRANSCRIPTS` are looked at.

    Returns:
        `share` of unknown tokens, number of `transcripts` that were looked at, and as `example`
        one that is mostly unknown; None for an encoder that knows every token.

    Raises:
        MultistillError: no tokenizer can be loaded.
    """
    tokenizer = load_tokenizer(config)
    if tokenizer.unknown is None:
        return None
    texts = [text for text in texts if text.strip()]
    texts = texts[:: max(1, -(-len(texts) // TRANSCRIPTS))]
    unknown, tokens, example = 0, 0, ""
    for text in texts:
        ids = tokenizer.ids(text)
        lost = ids.count(tokenizer.unknown)
        tokens += len(ids)
        unknown += lost
        example = example or (text if lost * 2 > len(ids) else "")
    return {
        "share": unknown / tokens if tokens else 0.0,
        "transcripts": len(texts),
        "example": example[:60],
    }


def too_many_unknown(config: TextEncoderConfig, unknown: Mapping[str, Any] | None) -> Iterator[str]:
    """A sentence if the text encoder does not know the words of a corpus.

    Args:
        unknown: of `unknown_tokens`.
    """
    if unknown is not None and unknown["share"] > config.max_unknown:
        example = unknown["example"]
        yield (
            f"{TEXT_SECTION}.model: the tokenizer of `{config.model}` does not know "
            f"{unknown['share']:.0%} of the tokens of {unknown['transcripts']} transcripts"
            + (f" (such as `{example}`)" if example else "")
            + f", the limit is {config.max_unknown:.0%} ({TEXT_SECTION}.max_unknown); use a model "
            "for the language of the corpus, or raise the limit"
        )


def refuse_unknown(config: TextEncoderConfig, texts: Sequence[str]) -> None:
    """Stop if the text encoder does not know the words of a corpus.

    Args:
        texts: as of `unknown_tokens`.

    Raises:
        MultistillError: more tokens are unknown than `max_unknown`, or no tokenizer can be loaded.
    """
    for sentence in too_many_unknown(config, unknown_tokens(config, texts)):
        raise MultistillError(sentence)


def _speech_problems(config: OneSpeechEncoderConfig, folder: Path) -> Iterator[str]:
    settings = fields_of(folder / "config.json")
    if not settings:
        yield f"model: {_no_config(folder)}"
        return
    kind = settings.text("model_type")
    if not _reads_waves(kind, settings):
        what = "does not read raw audio like wav2vec2"
        advice = SPEECH_ADVICE
        if _is_text(settings):
            what, advice = "is a text model", f"{advice}, or put it under {TEXT_SECTION}.model"
        yield f"model: `{config.model}` ({kind or 'unknown'}) {what}; {advice}"
        return
    yield from _layer_problems(config, _layer_count(kind, settings), kind)
    # Transformers 5 writes the settings of all parts of a processor into one file.
    whole = fields_of(folder / "processor_config.json").section("feature_extractor")
    for extractor in (fields_of(folder / "preprocessor_config.json"), whole):
        rate = extractor.rate("sampling_rate")
        if rate is not None and rate != SAMPLE_RATE:
            yield (
                f"model: `{config.model}` was trained on audio of {rate:g} Hz "
                f"({extractor.path.name}), and clips are encoded at {SAMPLE_RATE} Hz; use a model "
                f"for {SAMPLE_RATE} Hz"
            )
            return


def _no_config(folder: Path) -> str:
    pickles = sorted(path.name for kind in ("*.pt", "*.pth") for path in folder.glob(kind))
    if pickles:
        return (
            f"{folder} holds a pickled checkpoint ({pickles[0]}) and no config.json; pickles are "
            "never loaded, so convert it and save it as safetensors with a config.json "
            "(docs/features.md, emotion2vec)"
        )
    return f"{folder} has no config.json; give a folder written by save_pretrained"


def _reads_waves(kind: str | None, settings: Fields) -> bool:
    reader = reader_of(kind)
    if reader != "wav2vec2":
        return True
    return "conv_kernel" in settings and (not kind or kind in LIKE_WAV2VEC2)


def _layer_count(kind: str | None, settings: Fields) -> int | None:
    """Layers of a Hugging Face model; None if its config does not say."""
    return settings.whole("encoder_layers" if kind == WHISPER else "num_hidden_layers")


def _is_text(settings: Fields) -> bool:
    return "vocab_size" in settings and not _is_speech(settings)


def _is_speech(settings: Fields) -> bool:
    known = reader_of(settings.text("model_type")) != "wav2vec2"
    return known or "conv_kernel" in settings or "num_mel_bins" in settings


def _text_problems(config: TextEncoderConfig, folder: Path) -> Iterator[str]:
    settings = fields_of(folder / "config.json")
    if not settings:
        yield f"model: {_no_config(folder)}"
        return
    kind = settings.text("model_type")
    if not _is_text(settings) or (kind and kind not in LIKE_BERT):
        what = "is not built like BERT" if _is_text(settings) else "is not a text model"
        advice = TEXT_ADVICE
        if _is_speech(settings):
            what, advice = "is a speech model", f"{advice}, or put it under {SPEECH_SECTION}.model"
        yield f"model: `{config.model}` ({kind or 'unknown'}) {what}; {advice}"
        return
    yield from _layer_problems(config, _layer_count(kind, settings), kind)
    present = [name for name in _VOCABULARIES if (folder / name).is_file()]
    if not present and not any(folder.glob("*.model")):
        # Of a model from the hub, the tokenizer may not have been downloaded yet.
        if hub.is_folder(config.model):
            yield (
                f"model: {folder} has no tokenizer files (such as tokenizer.json or vocab.txt); "
                "save the model's tokenizer there too, with its own save_pretrained"
            )
        return
    vocabulary = _vocabulary(folder)
    if vocabulary is not None:
        found = _vocabulary_problems(config.model, folder, settings, vocabulary)
        yield from (f"model: {sentence}" for sentence in found)


@dataclass(frozen=True)
class _Vocabulary:
    """Ids of the tokens, and how words are split, where tokenizer.json says so."""

    ids: dict[str, int]
    algorithm: str | None = None

    @property
    def size(self) -> int:
        return 1 + max(self.ids.values(), default=-1)


def _vocabulary_problems(
    model: str, folder: Path, settings: Fields, vocabulary: _Vocabulary
) -> Iterator[str]:
    other = (
        "it is the tokenizer of another model; save the model's own tokenizer there with its "
        "save_pretrained"
    )
    size, rows = vocabulary.size, settings.required_whole("vocab_size")
    kind = settings.text("model_type") or ""
    expected = _ALGORITHMS.get(kind)
    if size > rows or size * 2 < rows:
        yield f"the tokenizer of `{model}` has {size} tokens and the model embeds {rows}: {other}"
        return
    if size != rows and expected and vocabulary.algorithm not in {None, expected}:
        yield (
            f"the tokenizer of `{model}` is a {vocabulary.algorithm} tokenizer, and {kind} models "
            f"have {expected}: {other}"
        )
        return
    special = fields_of(folder / "tokenizer_config.json")
    if isinstance(special.raw("pad_token"), dict):
        name = special.section("pad_token").required_text("content") or "[PAD]"
    else:
        name = special.text("pad_token") or "[PAD]"
    pad, padding = settings.whole("pad_token_id"), vocabulary.ids.get(name)
    if pad is not None and padding is not None and pad != padding:
        yield (
            f"the tokenizer of `{model}` has {name} as token {padding} and the model as token "
            f"{pad}: {other}"
        )


def _vocabulary(folder: Path) -> _Vocabulary | None:
    """The tokens of a folder; None if only a library can read them."""
    content = fields_of(folder / "tokenizer.json")
    if content.path.is_file():
        model = content.section("model")
        tokens = model.token_ids("vocab")
        for added in content.sections("added_tokens"):
            tokens[added.required_text("content")] = added.required_whole("id")
        return _Vocabulary(tokens, model.text("type"))
    if (folder / "vocab.txt").is_file():
        # Not splitlines(): tokens may be line breaks of Unicode.
        lines = text_of(folder / "vocab.txt").split("\n")
        lines = [line.removesuffix("\r") for line in lines]
        return _Vocabulary({token: number for number, token in enumerate(lines) if token})
    tokens = fields_of(folder / "vocab.json").whole_numbers()
    added_tokens = fields_of(folder / "added_tokens.json").whole_numbers()
    return _Vocabulary(tokens | added_tokens) if tokens else None
