"""What the feature store keeps for an encoder that is trained, and where its trained part begins.

The store keeps what the trained part reads, and never the encoder's own answer: waves or token ids
where every layer takes part, and the hidden state below the trained layers where the top K are
trained, so that an epoch costs K layers. Imports no torch: job files are validated with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Literal

from multistill.config import OneSpeechEncoderConfig, SpeechEncoderConfig, TextEncoderConfig
from multistill.config.encoder_training import EncoderTrainingConfig
from multistill.encoders.base import Stored
from multistill.encoders.kinds import EMOTION2VEC, W2V_BERT, WHISPER, layer_problem
from multistill.errors import UsageError

SectionName = Literal["speech", "text"]
EncoderConfig = OneSpeechEncoderConfig | TextEncoderConfig

_NOT_TRAINED = EncoderTrainingConfig()
_WITHOUT_LAYERS = {
    "hashed-ngrams": "has no weights",
    "log-mel": "has no weights",
    "use-multilingual": "has no transformer layers",
}
_FROZEN = frozenset({W2V_BERT, EMOTION2VEC})
# Types of models whose top layers, run alone, are known to give the states of the whole model.
_WITH_TOP_LAYERS = {
    "speech": frozenset(
        {"wav2vec2", "hubert", "wavlm", "data2vec-audio", "unispeech", "unispeech-sat", WHISPER}
    ),
    "text": frozenset({"bert", "roberta", "xlm-roberta", "camembert", "electra"}),
}


def section_of(config: EncoderConfig) -> SectionName:
    return "speech" if isinstance(config, OneSpeechEncoderConfig) else "text"


def training_of(config: EncoderConfig) -> EncoderTrainingConfig:
    """The settings `train`; encoders that stand beside another one are not trained."""
    if isinstance(config, SpeechEncoderConfig | TextEncoderConfig):
        return config.train
    return _NOT_TRAINED


def stored_kind(config: EncoderConfig) -> Stored:
    """What the store keeps for an encoder."""
    train = training_of(config)
    if not train.enabled or train.layers is not None:
        return "states"
    return "waves" if section_of(config) == "speech" else "tokens"


def stored_layers(config: EncoderConfig, count: int) -> list[int]:
    """Hidden states that the store keeps of an encoder with `count` layers.

    Raises:
        UsageError: as of `first_state`.
    """
    first = first_state(config, count)
    return list(config.layers) if first is None else [first]


def first_state(config: EncoderConfig, count: int) -> int | None:
    """The hidden state that the trained layers of an encoder with `count` layers read.

    The K trained layers are counted down from the highest of `layers`: what lies above it is not
    computed.

    Returns:
        None if nothing is trained, or if the trained part starts with waves or token ids.

    Raises:
        UsageError: the encoder has fewer layers, or a state below the trained ones is selected.
    """
    train = training_of(config)
    if not train.enabled:
        return None
    section = f"features.{section_of(config)}"
    indices = resolve_indices(config.layers, count, f"{section}.layers")
    for problem in _count_problems(config, count):
        raise UsageError(f"{section}.{problem}")
    return None if train.layers is None else max(indices) - train.layers


def resolve_indices(selected: Sequence[int], count: int, key: str) -> tuple[int, ...]:
    """Indices of hidden states counted from 0, of a model with `count` layers.

    Raises:
        UsageError: the model has no such layer.
    """
    for index in selected:
        if problem := layer_problem(index, count):
            raise UsageError(f"{key}: {problem}")
    return tuple(index % (count + 1) for index in selected)


def kind_as_written(train: EncoderTrainingConfig) -> str:
    """The kind as in a job file, such as `last-4`."""
    return f"last-{train.layers}" if train.kind == "last" else train.kind


def refuse_untrainable(config: EncoderConfig, model_type: str | None = None) -> None:
    """Refuse an encoder that cannot be trained as configured, before it is loaded.

    Raises:
        UsageError: for the first of its `training_problems`.
    """
    for problem in training_problems(config, None, model_type):
        raise UsageError(f"features.{section_of(config)}.{problem}")


def training_problems(
    config: EncoderConfig, layers: int | None = None, model_type: str | None = None
) -> Iterator[str]:
    """A sentence for each reason why an encoder cannot be trained, without loading it.

    Args:
        layers: of the model, where it is known.
        model_type: of the model's config.json, where it is known.

    Yields:
        sentences behind the key of the encoder's section, such as `train: ...`.
    """
    train = training_of(config)
    if not train.enabled:
        return
    reason = _WITHOUT_LAYERS.get(config.model)
    if model_type in _FROZEN:
        reason = f"is a {model_type} model, whose parts cannot be trained"
    if reason is not None:
        yield f"train: `{config.model}` {reason}; use `none`, or another encoder"
        return
    if train.kind == "lora" and find_spec("peft") is None:
        yield "train: `lora` needs the package peft; run `pip install 'multistill[lora]'`"
    if isinstance(config, SpeechEncoderConfig) and config.additional:
        yield (
            "train: with features.speech.additional no speech encoder can be trained; use `none`, "
            "or remove the others"
        )
    if isinstance(config, SpeechEncoderConfig) and config.long_clips == "window":
        yield (
            "train: a trained encoder reads each clip in one piece, and features.speech.long_clips "
            "is `window`; use `cut` or `quarantine`"
        )
    if isinstance(config, TextEncoderConfig) and (train.time_mask or train.feature_mask):
        yield "train: `time_mask` and `feature_mask` are of speech encoders; remove them"
    known = _WITH_TOP_LAYERS[section_of(config)]
    if train.layers is not None and model_type is not None and model_type not in known:
        yield (
            f"train: the layers of `{config.model}` ({model_type}) cannot be run without those "
            "below them; remove `layers`, or use `full`"
        )
    if layers is not None and not any(layer_problem(index, layers) for index in config.layers):
        yield from _count_problems(config, layers)


def _count_problems(config: EncoderConfig, count: int) -> Iterator[str]:
    """More layers than there are, or a selected state below the trained ones."""
    train = training_of(config)
    indices = [index % (count + 1) for index in config.layers]
    top, lowest = max(indices), min(indices)
    if train.top is not None and train.layers is None and train.top > top:
        yield (
            f"train: `top: {train.top}` is more than the {top} layers of `{config.model}` that "
            f"features.{section_of(config)}.layers uses; lower it"
        )
    if train.layers is None:
        if not top:
            yield "train: hidden state 0 alone has no layer to train; use a higher one of `layers`"
        return
    written = kind_as_written(train)
    if train.layers > top:
        yield (
            f"train: `{written}` trains {train.layers} layers of `{config.model}`, and "
            f"features.{section_of(config)}.layers uses {top}; train fewer layers, or use `full`"
        )
    elif lowest < top - train.layers:
        yield (
            f"layers: hidden state {lowest} lies below the {train.layers} layers that `{written}` "
            f"trains, which read state {top - train.layers}; use {top - train.layers} to {top}, or "
            "train more layers"
        )
