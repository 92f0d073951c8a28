"""What is wrong with an encoder, seen from the small files beside its weights.

Transformers loads almost anything: without tokenizer files it makes an empty tokenizer, in which
every word is unknown, and with those of another model the states are of other words. Everything
here reads a folder or the local cache of the hub; no weights, no torch, no network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multistill.audio import SAMPLE_RATE
from multistill.config import FeaturesConfig, SpeechPartConfig, TextEncoderConfig
from multistill.encoders import hub
from multistill.encoders.base import SPEECH_SECTION, TEXT_SECTION
from multistill.encoders.packaged import PACKAGED
from multistill.encoders.registry import BUILT_IN_SPEECH, BUILT_IN_TEXT, load_tokenizer
from multistill.encoders.small_files import DamagedFileError, Fields, fields_of, text_of
from multistill.errors import MultistillError, UsageError

TRANSCRIPTS = 1000
"""Transcripts of which the unknown tokens are counted, evenly spaced over the corpus."""

_SPEECH_ADVICE = "use a wav2vec2, HuBERT, WavLM or data2vec-audio model"
_TEXT_ADVICE = "use an ELECTRA, BERT or RoBERTa model"
_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json")
# Types of models whose layers are where `Wav2Vec2Family` and `TransformerText` look for them.
# fmt: off
_LIKE_WAV2VEC2 = frozenset({
    "wav2vec2", "wav2vec2-conformer", "hubert", "wavlm", "data2vec-audio", "unispeech",
    "unispeech-sat", "sew",
})
_LIKE_BERT = frozenset({
    "bert", "bert-generation", "big_bird", "camembert", "convbert", "data2vec-text", "deberta",
    "deberta-v2", "electra", "ernie", "esm", "ibert", "layoutlm", "lilt", "longformer", "luke",
    "megatron-bert", "mobilebert", "mpnet", "mra", "nystromformer", "rembert", "roberta",
    "roberta-prelayernorm", "roc_bert", "roformer", "splinter", "xlm-roberta", "xlm-roberta-xl",
    "xmod", "yoso",
})
# fmt: on
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
    for number, part in enumerate(speech.parts):
        if part.model not in BUILT_IN_SPEECH and (folder := hub.local_folder(part)) is not None:
            for sentence in _told(_speech_problems(part, folder)):
                yield "speech", f"{_section(number)}.model: {sentence}"
    if text.model not in BUILT_IN_TEXT and (folder := hub.local_folder(text)) is not None:
        for sentence in _told(_text_problems(text, folder)):
            yield "text", f"{TEXT_SECTION}.model: {sentence}"


def missing_weights(config: FeaturesConfig) -> Iterator[str]:
    """A sentence for each encoder whose weights come from a package and are not on this machine.

    Not a problem of the job file: a job may be submitted from a machine that lacks them.
    """
    for section, model, other in (
        *(("speech", part.model, "log-mel") for part in config.speech.parts),
        ("text", config.text.model, "untrained-electra"),
    ):
        weights = PACKAGED.get(model)
        if weights is not None and weights.section == section and not weights.is_stored():
            yield f"features.{section}.model: {weights.missing()}, or use `{other}`"


def _section(number: int) -> str:
    """Job-file section of a speech encoder: the first, or one of the additional ones."""
    return f"{SPEECH_SECTION}.additional[{number - 1}]" if number else SPEECH_SECTION


def _told(sentences: Iterator[str]) -> Iterator[str]:
    """The sentences, and that of a damaged file they end with."""
    try:
        yield from sentences
    except DamagedFileError as error:
        yield str(error)


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


def _speech_problems(config: SpeechPartConfig, folder: Path) -> Iterator[str]:
    settings = fields_of(folder / "config.json")
    if not settings:
        yield f"{folder} has no config.json; give a folder written by save_pretrained"
        return
    kind = settings.text("model_type")
    if "conv_kernel" not in settings or (kind and kind not in _LIKE_WAV2VEC2):
        what = "is a text model" if _is_text(settings) else "does not read raw audio like wav2vec2"
        yield f"`{config.model}` ({kind or 'unknown'}) {what}; {_SPEECH_ADVICE}"
        return
    # Transformers 5 writes the settings of all parts of a processor into one file.
    whole = fields_of(folder / "processor_config.json").section("feature_extractor")
    for extractor in (fields_of(folder / "preprocessor_config.json"), whole):
        rate = extractor.rate("sampling_rate")
        if rate is not None and rate != SAMPLE_RATE:
            yield (
                f"`{config.model}` was trained on audio of {rate:g} Hz ({extractor.path.name}), "
                f"and clips are encoded at {SAMPLE_RATE} Hz; use a model for {SAMPLE_RATE} Hz"
            )
            return


def _is_text(settings: Fields) -> bool:
    return "vocab_size" in settings and not _is_speech(settings)


def _is_speech(settings: Fields) -> bool:
    return "conv_kernel" in settings or "num_mel_bins" in settings


def _text_problems(config: TextEncoderConfig, folder: Path) -> Iterator[str]:
    settings = fields_of(folder / "config.json")
    if not settings:
        yield f"{folder} has no config.json; give a folder written by save_pretrained"
        return
    kind = settings.text("model_type")
    if not _is_text(settings) or (kind and kind not in _LIKE_BERT):
        what = "is a speech model" if _is_speech(settings) else "is not a text model"
        what = "is not built like BERT" if _is_text(settings) else what
        yield f"`{config.model}` ({kind or 'unknown'}) {what}; {_TEXT_ADVICE}"
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
