"""What the feature store keeps for an encoder that is trained, and where its trained part begins.

The store keeps what the trained part reads, and never the encoder's own answer: waves or token ids
where every layer takes part, and the hidden state below the trained layers where the top K are
trained, so that an epoch costs K layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Literal

from multistill.config import SpeechEncoderConfig, SpeechPartConfig, TextEncoderConfig
from multistill.config.encoder_training import EncoderTrainingConfig
from multistill.encoders.base import Stored
from multistill.encoders.kinds import W2V_BERT, layer_problem
from multistill.errors import UsageError

_WITHOUT_LAYERS = {
    "log-mel": "has no weights",
    "use-multilingual": "has no transformer layers",
}
# Types of models whose top layers are known to give the states of the whole model.
_SPEECH_FROM_STATES = frozenset(
    {"wav2vec2", "hubert", "wavlm", "data2vec-audio", "unispeech", "unispeech-sat", "whisper"}
)
_TEXT_FROM_STATES = frozenset({"bert", "roberta", "xlm-roberta", "camembert", "electra"})

SectionName = Literal["speech", "text"]
EncoderConfig = SpeechPartConfig | TextEncoderConfig

_NOT_TRAINED = EncoderTrainingConfig()


def section_of(config: EncoderConfig) -> SectionName:
    return "speech" if isinstance(config, SpeechPartConfig) else "text"


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
    trained = train.layers
    if trained is None:
        return None
    section = f"features.{section_of(config)}"
    indices = resolve_indices(config.layers, count, f"{section}.layers")
    top = max(indices)
    written = kind_as_written(train)
    if trained > top:
        most = f"at most {top}" if top else "none below hidden state 0"
        raise UsageError(
            f"{section}.train: `{written}` trains {trained} layers of `{config.model}`, and "
            f"{section}.layers uses {most}; train fewer layers, or use `full`"
        )
    first = top - trained
    if min(indices) < first:
        raise UsageError(
            f"{section}.layers: hidden state {min(indices)} lies below the layers that "
            f"{section}.train: `{written}` trains, which read state {first}; use {first} to {top}, "
            "or train more layers"
        )
    return first


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
    """Refuse an encoder that cannot be trained as configured; arguments as for `untrainable`.

    Raises:
        UsageError: for the first reason.
    """
    for sentence in untrainable(config, model_type):
        raise UsageError(sentence)


def untrainable(config: EncoderConfig, model_type: str | None = None) -> Iterator[str]:
    """A sentence for each reason why an encoder cannot be trained, without loading it.

    Args:
        model_type: of the model's config.json, where it is known.
    """
    train = training_of(config)
    if not train.enabled:
        return
    key = f"features.{section_of(config)}.train"
    if config.model in _WITHOUT_LAYERS:
        reason = _WITHOUT_LAYERS[config.model]
        yield f"{key}: `{config.model}` {reason}; use `none`, or another encoder"
    if isinstance(config, SpeechEncoderConfig) and config.additional:
        yield (
            f"{key}: with features.speech.additional no speech encoder can be trained; use `none`, "
            "or remove the others"
        )
    if train.kind == "lora" and find_spec("peft") is None:
        yield f"{key}: `lora` needs the package peft; run `pip install 'multistill[lora]'`"
    if isinstance(config, SpeechEncoderConfig) and config.long_clips == "window":
        yield (
            f"{key}: a trained encoder reads each clip in one piece, and "
            "features.speech.long_clips is `window`; use `cut` or `quarantine`"
        )
    if isinstance(config, TextEncoderConfig) and (train.time_mask or train.feature_mask):
        yield f"{key}: `time_mask` and `feature_mask` are of speech encoders; remove them"
    if model_type == W2V_BERT:
        yield f"{key}: W2v-BERT models cannot be trained; use `none`, or another encoder"
        return
    known = _SPEECH_FROM_STATES if section_of(config) == "speech" else _TEXT_FROM_STATES
    if train.layers is not None and model_type is not None and model_type not in known:
        yield (
            f"{key}: the layers of `{config.model}` ({model_type}) cannot be run without those "
            "below them; remove `layers`, or use `full`"
        )
