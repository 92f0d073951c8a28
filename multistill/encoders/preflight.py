"""What is wrong with an encoder, seen from the small files beside its weights.

Transformers loads almost anything: without tokenizer files it makes an empty tokenizer, in which
every word is unknown, and with those of another model the states are of other words. Everything
here reads a folder or the local cache of the hub; no weights, no torch, no network.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multistill.audio import SAMPLE_RATE
from multistill.config import FeaturesConfig, SpeechEncoderConfig, TextEncoderConfig
from multistill.encoders import hub
from multistill.encoders.base import SPEECH_SECTION, TEXT_SECTION
from multistill.encoders.registry import BUILT_IN_SPEECH, BUILT_IN_TEXT
from multistill.errors import MultistillError, UsageError

TRANSCRIPTS = 1000
"""Transcripts of which the unknown tokens are counted, evenly spaced over the corpus."""

_SPEECH_ADVICE = "use a wav2vec2, HuBERT, WavLM or data2vec-audio model"
_TEXT_ADVICE = "use an ELECTRA, BERT or RoBERTa model"
_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json")
# How models of a type split words, as tokenizer.json calls it.
_ALGORITHMS = {
    "bert": "WordPiece",
    "electra": "WordPiece",
    "roberta": "BPE",
    "xlm-roberta": "Unigram",
    "camembert": "Unigram",
}


def problems(config: FeaturesConfig) -> Iterator[tuple[str, str]]:
    """`("speech" or "text", sentence)` for each encoder that is not what the job takes it for.

    Encoders that are not on this machine are not looked at.
    """
    speech, text = config.speech, config.text
    if speech.model not in BUILT_IN_SPEECH and (folder := hub.local_folder(speech)) is not None:
        for sentence in _speech_problems(speech, folder):
            yield "speech", f"{SPEECH_SECTION}.model: {sentence}"
    if text.model not in BUILT_IN_TEXT and (folder := hub.local_folder(text)) is not None:
        for sentence in _text_problems(text, folder):
            yield "text", f"{TEXT_SECTION}.model: {sentence}"


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
        one that is mostly unknown; None for built-in encoders, which know every token.

    Raises:
        MultistillError: no tokenizer can be loaded.
    """
    if config.model in BUILT_IN_TEXT:
        return None
    try:
        tokenizer = hub.load_tokenizer(config.model, hub.resolve(config.model, config.revision))
    except hub.UnavailableModelError as error:
        raise MultistillError(f"{TEXT_SECTION}.model: {error}") from error
    texts = [text for text in texts if text.strip()]
    texts = texts[:: max(1, -(-len(texts) // TRANSCRIPTS))]
    unknown, tokens, example = 0, 0, ""
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        lost = ids.count(tokenizer.unk_token_id)
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


def _speech_problems(config: SpeechEncoderConfig, folder: Path) -> Iterator[str]:
    settings = _json(folder / "config.json")
    if not settings:
        yield f"{folder} has no config.json; give a folder written by save_pretrained"
        return
    kind = settings.get("model_type", "unknown")
    if "conv_kernel" not in settings:
        what = "is a text model" if _is_text(settings) else "does not read raw audio like wav2vec2"
        yield f"`{config.model}` ({kind}) {what}; {_SPEECH_ADVICE}"
        return
    rate = _sampling_rate(folder)
    if rate is not None and rate != SAMPLE_RATE:
        yield (
            f"`{config.model}` was trained on audio of {rate} Hz (preprocessor_config.json), and "
            f"clips are encoded at {SAMPLE_RATE} Hz; use a model for {SAMPLE_RATE} Hz"
        )


def _is_text(settings: dict[str, Any]) -> bool:
    return "vocab_size" in settings and not {"conv_kernel", "num_mel_bins"} & settings.keys()


def _sampling_rate(folder: Path) -> int | None:
    extractor = _json(folder / "preprocessor_config.json")
    # Transformers 5 writes the settings of all parts of a processor into one file.
    extractor = extractor or _json(folder / "processor_config.json").get("feature_extractor", {})
    rate = extractor.get("sampling_rate")
    return rate if isinstance(rate, int) else None


def _text_problems(config: TextEncoderConfig, folder: Path) -> Iterator[str]:
    settings = _json(folder / "config.json")
    if not settings:
        yield f"{folder} has no config.json; give a folder written by save_pretrained"
        return
    if not _is_text(settings):
        kind = settings.get("model_type", "unknown")
        speech = {"conv_kernel", "num_mel_bins"} & settings.keys()
        what = "is a speech model" if speech else "is not a text model"
        yield f"`{config.model}` ({kind}) {what}; {_TEXT_ADVICE}"
        return
    present = [name for name in _VOCABULARIES if (folder / name).is_file()]
    if not present and not any(folder.glob("*.model")):
        # Of a model from the hub, the tokenizer may not have been downloaded yet.
        if hub.is_folder(config.model):
            yield (
                f"{folder} has no tokenizer files (such as tokenizer.json or vocab.txt); save the "
                "model's tokenizer there too, with its own save_pretrained"
            )
        return
    vocabulary = _vocabulary(folder)
    if vocabulary is not None:
        yield from _vocabulary_problems(config.model, folder, settings, vocabulary)


@dataclass(frozen=True)
class _Vocabulary:
    """Ids of the tokens, and how words are split, where tokenizer.json says so."""

    ids: dict[str, int]
    algorithm: str | None = None

    @property
    def size(self) -> int:
        return 1 + max(self.ids.values(), default=-1)


def _vocabulary_problems(
    model: str, folder: Path, settings: dict[str, Any], vocabulary: _Vocabulary
) -> Iterator[str]:
    other = (
        "it is the tokenizer of another model; save the model's own tokenizer there with its "
        "save_pretrained"
    )
    size, rows = vocabulary.size, settings["vocab_size"]
    expected = _ALGORITHMS.get(settings.get("model_type", ""))
    if size > rows or size * 2 < rows:
        yield f"the tokenizer of `{model}` has {size} tokens and the model embeds {rows}: {other}"
        return
    if size != rows and expected and vocabulary.algorithm not in {None, expected}:
        yield (
            f"the tokenizer of `{model}` is a {vocabulary.algorithm} tokenizer, and "
            f"{settings['model_type']} models have {expected}: {other}"
        )
        return
    name = _json(folder / "tokenizer_config.json").get("pad_token") or "[PAD]"
    name = name["content"] if isinstance(name, dict) else name
    pad, padding = settings.get("pad_token_id"), vocabulary.ids.get(name)
    if isinstance(pad, int) and padding is not None and pad != padding:
        yield (
            f"the tokenizer of `{model}` has {name} as token {padding} and the model as token "
            f"{pad}: {other}"
        )


def _vocabulary(folder: Path) -> _Vocabulary | None:
    """The tokens of a folder; None if only a library can read them."""
    content = _json(folder / "tokenizer.json")
    if content:
        model = content.get("model", {})
        tokens = model.get("vocab", {})
        if isinstance(tokens, list):  # Unigram: pairs of token and score
            tokens = {entry[0]: number for number, entry in enumerate(tokens)}
        added = {entry["content"]: entry["id"] for entry in content.get("added_tokens", [])}
        return _Vocabulary({**tokens, **added}, model.get("type"))
    if (folder / "vocab.txt").is_file():
        lines = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
        return _Vocabulary({token: number for number, token in enumerate(lines) if token})
    tokens = _json(folder / "vocab.json")
    return _Vocabulary({**tokens, **_json(folder / "added_tokens.json")}) if tokens else None


def _json(path: Path) -> dict[str, Any]:
    """The content of a JSON file; empty if there is none, or it is not an object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
