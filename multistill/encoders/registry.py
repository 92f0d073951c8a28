"""Every encoder that a job file can name: built-in encoders by name, all others from Hugging Face.

Builders import torch and transformers only when they are called, so resolving the names of a job
file stays fast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from multistill.config import OneSpeechEncoderConfig, TextEncoderConfig
from multistill.encoders import hub
from multistill.encoders.base import (
    SPEECH_SECTION,
    TEXT_SECTION,
    SpeechEncoder,
    TextEncoder,
    Weights,
)
from multistill.encoders.kinds import Reader, reader_of
from multistill.encoders.packaged import PACKAGED, SMART_TURN, USE_MULTILINGUAL
from multistill.encoders.tokenizers import HashingTokenizer, PretrainedTokenizer, Tokenizer
from multistill.encoders.trained_layers import (
    EncoderConfig,
    refuse_untrainable,
    section_of,
    stored_kind,
    training_of,
)
from multistill.errors import MultistillError

if TYPE_CHECKING:
    import torch


def _log_mel(config: OneSpeechEncoderConfig, device: torch.device) -> SpeechEncoder:
    from multistill.encoders.speech import LogMel

    return LogMel(config.bands, config.window_ms, config.hop_ms)


def _smart_turn(config: OneSpeechEncoderConfig, device: torch.device) -> SpeechEncoder:
    from multistill.encoders.smart_turn import empty_encoder
    from multistill.encoders.whisper import WhisperStates

    tensors = SMART_TURN.load()
    encoder = empty_encoder()
    encoder.load_state_dict(tensors)
    revision = SMART_TURN.identity
    return WhisperStates(encoder, config, "pretrained", revision=revision, device=device)


def _untrained_wav2vec2(config: OneSpeechEncoderConfig, device: torch.device) -> SpeechEncoder:
    from multistill.encoders.speech import Wav2Vec2Family, untrained_wav2vec2

    return Wav2Vec2Family(untrained_wav2vec2(), config, "untrained", revision=None, device=device)


def _untrained_electra(config: TextEncoderConfig, device: torch.device) -> TextEncoder:
    from multistill.encoders.text import TransformerText, untrained_electra

    model, tokenizer = untrained_electra(), HashingTokenizer()
    return TransformerText(model, tokenizer, config, "untrained", revision=None, device=device)


def _use_multilingual(config: TextEncoderConfig, device: torch.device) -> TextEncoder:
    import torch

    from multistill.encoders.text import TransformerText
    from multistill.encoders.use_network import UniversalSentenceEncoder

    tensors = USE_MULTILINGUAL.load()
    with torch.device("meta"):
        model = UniversalSentenceEncoder()
    model.load_state_dict(tensors, assign=True)
    tokenizer, revision = _use_tokenizer(), USE_MULTILINGUAL.identity
    return TransformerText(model, tokenizer, config, "pretrained", revision=revision, device=device)


def _use_tokenizer() -> Tokenizer:
    from multistill.encoders.sentence_pieces import SentencePieces

    return SentencePieces(**USE_MULTILINGUAL.load_tokenizer())


BUILT_IN_SPEECH: Mapping[str, Callable[[OneSpeechEncoderConfig, torch.device], SpeechEncoder]] = {
    "log-mel": _log_mel,
    "smart-turn": _smart_turn,
    "untrained-wav2vec2": _untrained_wav2vec2,
}
BUILT_IN_TEXT: Mapping[str, Callable[[TextEncoderConfig, torch.device], TextEncoder]] = {
    "untrained-electra": _untrained_electra,
    "use-multilingual": _use_multilingual,
}
_UNTRAINED = {"untrained-wav2vec2", "untrained-electra"}
_BUILT_IN_TOKENIZERS: Mapping[str, Callable[[], Tokenizer]] = {
    "untrained-electra": HashingTokenizer,
    "use-multilingual": _use_tokenizer,
}


def _wav2vec2(
    config: OneSpeechEncoderConfig, resolved: str | None, device: torch.device
) -> SpeechEncoder:
    from multistill.encoders.speech import Wav2Vec2Family

    model = hub.load_model(config.model, resolved)
    with _usable(config.model):
        return Wav2Vec2Family(model, config, "pretrained", revision=resolved, device=device)


def _whisper(
    config: OneSpeechEncoderConfig, resolved: str | None, device: torch.device
) -> SpeechEncoder:
    from multistill.encoders.whisper import SPEECH_LEVEL, WhisperStates

    encoder = hub.load_whisper_encoder(config.model, resolved)
    level = 1.0 if hub.scales_waves(config.model, resolved) else SPEECH_LEVEL
    with _usable(config.model):
        return WhisperStates(
            encoder, config, "pretrained", revision=resolved, device=device, level=level
        )


def _w2v_bert(
    config: OneSpeechEncoderConfig, resolved: str | None, device: torch.device
) -> SpeechEncoder:
    from multistill.encoders.w2v_bert import W2vBert

    model = hub.load_model(config.model, resolved)
    with _usable(config.model):
        return W2vBert(model, config, "pretrained", revision=resolved, device=device)


def _emotion2vec(
    config: OneSpeechEncoderConfig, resolved: str | None, device: torch.device
) -> SpeechEncoder:
    from multistill.encoders import emotion2vec
    from multistill.encoders.speech import Wav2Vec2Family

    files = [hub.file_of(config.model, resolved, name) for name in emotion2vec.FILES]
    with _usable(config.model):
        model = emotion2vec.load(*files)
        return Wav2Vec2Family(model, config, "pretrained", revision=resolved, device=device)


_READERS: Mapping[
    Reader, Callable[[OneSpeechEncoderConfig, str | None, torch.device], SpeechEncoder]
] = {
    "wav2vec2": _wav2vec2,
    "whisper": _whisper,
    "w2v-bert": _w2v_bert,
    "emotion2vec": _emotion2vec,
}


def load_speech(
    config: OneSpeechEncoderConfig, resolved: str | None, device: torch.device
) -> SpeechEncoder:
    """Load what fills the store with the states of one speech encoder, on a device, in eval mode.

    Of an encoder that is trained, this is what lies below the trained layers; `trainable` has them.

    Args:
        resolved: from `resolve_speech`.

    Raises:
        MultistillError: the model cannot be loaded or does not read raw audio.
    """
    check_trainable(config, resolved)
    if stored_kind(config) == "waves":
        from multistill.encoders.stored_inputs import StoredWaves

        return StoredWaves(config, _weights_of(config), resolved)
    if config.model in BUILT_IN_SPEECH:
        return BUILT_IN_SPEECH[config.model](config, device)
    with _advice(SPEECH_SECTION, BUILT_IN_SPEECH):
        build = _READERS[reader_of(hub.model_type(config.model, resolved))]
        return build(config, resolved, device)


def check_trainable(config: EncoderConfig, resolved: str | None) -> None:
    """Refuse an encoder that cannot be trained as configured, before its weights are read.

    Raises:
        UsageError: it cannot.
        MultistillError: it cannot be found.
    """
    if not training_of(config).enabled:
        return
    if config.model in {*BUILT_IN_SPEECH, *BUILT_IN_TEXT}:
        refuse_untrainable(config)
        return
    built_in = BUILT_IN_SPEECH if section_of(config) == "speech" else BUILT_IN_TEXT
    with _advice(f"features.{section_of(config)}", built_in):
        refuse_untrainable(config, hub.model_type(config.model, resolved))


def load_text(config: TextEncoderConfig, resolved: str | None, device: torch.device) -> TextEncoder:
    """Load what fills the store with the text states of a job, like `load_speech`.

    Args:
        resolved: from `resolve_text`.

    Raises:
        MultistillError: the model or its tokenizer cannot be loaded.
    """
    check_trainable(config, resolved)
    if stored_kind(config) == "tokens":
        return _stored_tokens(config, resolved)
    if config.model in BUILT_IN_TEXT:
        return BUILT_IN_TEXT[config.model](config, device)
    from multistill.encoders.text import TransformerText

    with _advice(TEXT_SECTION, BUILT_IN_TEXT):
        tokenizer = PretrainedTokenizer(hub.load_tokenizer(config.model, resolved))
        model = hub.load_model(config.model, resolved)
        _refuse_other_tokenizer(config, tokenizer, model.config)
        with _usable(config.model):
            return TransformerText(
                model, tokenizer, config, "pretrained", revision=resolved, device=device
            )


def _stored_tokens(config: TextEncoderConfig, resolved: str | None) -> TextEncoder:
    from multistill.encoders.stored_inputs import StoredTokens
    from multistill.encoders.text import token_limit, untrained_settings

    weights = _weights_of(config)
    if config.model in _BUILT_IN_TOKENIZERS:
        built_in = _BUILT_IN_TOKENIZERS[config.model]()
        limit = token_limit(untrained_settings(), built_in, config)
        return StoredTokens(built_in, limit, config, weights, resolved)
    with _advice(TEXT_SECTION, BUILT_IN_TEXT):
        tokenizer = PretrainedTokenizer(hub.load_tokenizer(config.model, resolved))
        settings = hub.load_settings(config.model, resolved)
        _refuse_other_tokenizer(config, tokenizer, settings)
        with _usable(config.model):
            limit = token_limit(settings, tokenizer, config)
        return StoredTokens(tokenizer, limit, config, weights, resolved)


def _refuse_other_tokenizer(
    config: TextEncoderConfig, tokenizer: PretrainedTokenizer, settings: Any
) -> None:
    if tokenizer.size > settings.vocab_size:
        raise hub.UnavailableModelError(
            f"the tokenizer of `{config.model}` has {tokenizer.size} tokens and the model "
            f"embeds {settings.vocab_size}: it is the tokenizer of another model"
        )


def _weights_of(config: EncoderConfig) -> Weights:
    return "untrained" if config.model in _UNTRAINED else "pretrained"


def load_tokenizer(config: TextEncoderConfig) -> Tokenizer:
    """Load the tokenizer of a job's text encoder, and no weights.

    Raises:
        MultistillError: it cannot be loaded.
    """
    if config.model in _BUILT_IN_TOKENIZERS:
        return _BUILT_IN_TOKENIZERS[config.model]()
    resolved = resolve_text(config)
    with _advice(TEXT_SECTION, BUILT_IN_TEXT):
        return PretrainedTokenizer(hub.load_tokenizer(config.model, resolved))


def resolve_speech(config: OneSpeechEncoderConfig) -> str | None:
    """Identity of the weights: a hub commit, a digest of the local folder or of the package.

    None for built-in encoders without weights of their own.

    Raises:
        MultistillError: the model is neither on this machine nor reachable.
    """
    return _resolve(config, SPEECH_SECTION, BUILT_IN_SPEECH)


def resolve_text(config: TextEncoderConfig) -> str | None:
    """Like `resolve_speech`."""
    return _resolve(config, TEXT_SECTION, BUILT_IN_TEXT)


def _resolve(config: EncoderConfig, section: str, built_in: Iterable[str]) -> str | None:
    if config.model in built_in:
        weights = PACKAGED.get(config.model)
        return None if weights is None else weights.identity
    with _advice(section, built_in):
        return hub.resolve(config.model, config.revision)


@contextmanager
def _usable(model: str) -> Iterator[None]:
    """Turn what an encoder class meets in a model of another kind into one sentence."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise hub.UnavailableModelError(
            f"`{model}` is not built like the encoders that can be used here ({error})"
        ) from error


@contextmanager
def _advice(section: str, built_in: Iterable[str]) -> Iterator[None]:
    """Turn an `UnavailableModelError` into one that names the job-file key and the alternatives."""
    try:
        yield
    except hub.UnavailableModelError as error:
        names = " or ".join(f"`{name}`" for name in built_in)
        raise MultistillError(
            f"{section}.model: {error}; give a local folder with the complete model, or use {names}"
        ) from error
