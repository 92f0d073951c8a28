"""Which fields of a `ModelSpec` each network uses, and the fields that only some networks have.

Imports no torch, so that job files are validated quickly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple, get_args, get_origin, get_type_hints

from multistill.config.tasks import DIMENSIONS
from multistill.errors import UsageError

NetworkName = Literal["head", "va-audio", "va-text", "va-fusion", "fe2e", "mesm", "pooled"]


@dataclass(frozen=True, kw_only=True)
class ValenceArousalFields:
    """Of `va-audio`, `va-text` and `va-fusion` (`multistill.models.valence_arousal`).

    Attributes:
        va_positions: sines and cosines are added to every sequence, in the fusion an embedding of
            the modality too; without, as published, self-attention cannot tell the order.
        va_double_residual: the input of a feed-forward block is added to its output twice, as
            published.
        va_recurrent: width of the recurrent read-out.
        va_recurrent_layers: of the read-out.
        va_audio_layers, va_text_layers: of the fusion: self-attention layers of its two branches,
            as `layers` is of `va-audio` and `va-text`.
        va_branch_heads, va_branch_feedforward, va_branch_recurrent: of both branches, as `heads`,
            `feedforward` and `va_recurrent` are of `va-audio` and `va-text`.
        va_audio_dimension, va_text_dimension: that the branches predict.
        va_frozen: the branches stay as their pre-training left them.
    """

    va_positions: bool = False
    va_double_residual: bool = False
    va_recurrent: int = 64
    va_recurrent_layers: int = 2
    va_audio_layers: int = 7
    va_text_layers: int = 5
    va_branch_heads: int = 6
    va_branch_feedforward: int = 1024
    va_branch_recurrent: int = 64
    va_audio_dimension: str = "arousal"
    va_text_dimension: str = "valence"
    va_frozen: bool = False


@dataclass(frozen=True, kw_only=True)
class EndToEndFields:
    """Of `fe2e` and `mesm` (`multistill.models.end_to_end`).

    `front_channels` are those of the stem, doubled by each of three stages, and `pooling`
    (`published` or `mean`) makes the states of the text one. Here `width`, `heads`, `layers`,
    `feedforward` and `dropout` are of the transformer over chunks.

    Attributes:
        chunk_frames: audio frames of a chunk.
        chunk_hidden: width of the layer between a chunk's feature map and its state.
        chunk_positions: sines and cosines are added to the states of the chunks; without, as
            published, the transformer cannot tell their order.
        chunk_normalization: after convolutions: `batch` as published, or `layer`, over the channels
            of each point, which depends on no other clip.
        late_fusion: of the outputs of speech and text: `weighted` by a learnt number each, as
            published, or `gated` for each clip and class.
        null_text: a clip without text has a learnt state in its place; else zeros.
        top_p: of `mesm`: points of a feature map are kept until the text's attention to them sums
            to this much.
        selection_gradient: of `mesm`: how the attention learns
            (`multistill.models.sparse.TextGuidedSelection`).
    """

    chunk_frames: int = 32
    chunk_hidden: int = 1024
    chunk_positions: bool = False
    chunk_normalization: Literal["batch", "layer"] = "batch"
    late_fusion: Literal["weighted", "gated"] = "weighted"
    null_text: bool = False
    top_p: float = 1.0
    selection_gradient: Literal["straight-through", "scaled"] = "straight-through"


@dataclass(frozen=True, kw_only=True)
class PooledFields:
    """Of `pooled` (`multistill.models.pooled`).

    Attributes:
        pooled_strides: convolutions before the projection, each of which halves the frame rate.
    """

    pooled_strides: int = 0


@dataclass(frozen=True, kw_only=True)
class NetworkFields(EndToEndFields, ValenceArousalFields, PooledFields):
    """Fields of a `ModelSpec` that `head` does not use."""


class NetworkUse(NamedTuple):
    """What a network reads of a `ModelSpec`.

    Attributes:
        modality: the only one that it reads; None: any.
        uses: fields, beside `COMMON`.
        reads_bands: whether it reads log-mel energies, and no states of an encoder, as speech.
    """

    modality: str | None
    uses: frozenset[str]
    reads_bands: bool = False


COMMON = frozenset(
    {
        "modality",
        "network",
        "width",
        "speech_layer",
        "text_layer",
        "speech_layers",
        "text_layers",
        "layer_mix",
        "speech_encoder",
        "speech_parts",
        "train_encoder",
        "encoder_layers",
        "encoder_heads",
        "encoder_feedforward",
        "num_classes",
        "dimensions",
    }
)
"""Fields of every network: what the features hold and what is read of them, and the outputs."""

BRANCH_FIELDS = frozenset(
    {"dropout", "pooling", "standardize", "va_positions", "va_double_residual"}
    | {"va_recurrent_layers"}
)
"""That the branches of `va-fusion` share with it."""

_BRANCH = BRANCH_FIELDS | {"heads", "layers", "feedforward", "va_recurrent"}
_AUDIO = frozenset({"front_channels", "audio_stride"})
_FUSION = frozenset(field.name for field in fields(ValenceArousalFields))
_POOLED = frozenset(field.name for field in fields(PooledFields))

_SELECTION = frozenset({"top_p", "selection_gradient"})
_END_TO_END = frozenset(field.name for field in fields(EndToEndFields)) - _SELECTION
_FE2E = _END_TO_END | {
    "heads",
    "layers",
    "feedforward",
    "dropout",
    "classifier_dropout",
    "modality_dropout",
    "pooling",
    "standardize",
    "front_channels",
}

NETWORK_USES: Mapping[str, NetworkUse] = {
    "va-audio": NetworkUse("audio", _BRANCH | _AUDIO, reads_bands=True),
    "va-text": NetworkUse("text", _BRANCH),
    "va-fusion": NetworkUse(
        "multimodal", _BRANCH | _AUDIO | _FUSION | {"modality_dropout"}, reads_bands=True
    ),
    "fe2e": NetworkUse("multimodal", _FE2E, reads_bands=True),
    "mesm": NetworkUse("multimodal", _FE2E | _SELECTION, reads_bands=True),
    "pooled": NetworkUse(None, _POOLED | {"classifier_dropout", "modality_dropout", "standardize"}),
}
"""Of every network but `head`, which uses all fields that are not of a network below."""


def check_network(spec: NetworkFields, network: str, modality: str) -> None:
    """Refuse what a network does not read.

    Args:
        spec: a `ModelSpec`.

    Raises:
        UsageError: another modality than the network's, a field that it does not use, or a width
            below 1.
    """
    for field in fields(NetworkFields):
        value = getattr(spec, field.name)
        counts = field.type == "int" and field.default != 0  # `pooled_strides` may be 0
        if counts and (isinstance(value, bool) or value < 1):
            raise UsageError(f"model: {field.name} must be an integer of at least 1, not {value}")
    _check_end_to_end(spec)
    use = NETWORK_USES.get(network)
    if use is not None and use.modality not in (None, modality):
        raise UsageError(
            f"model: the network {network} reads {use.modality} states, and modality is "
            f"{modality}; choose another preset"
        )
    others = {field.name for field in fields(NetworkFields)}
    for field in fields(spec):
        used = field.name not in others if use is None else field.name in COMMON | use.uses
        if not used and getattr(spec, field.name) != field.default:
            raise UsageError(
                f"model: the network {network} does not use `{field.name}`; remove it from the "
                "model"
            )
    if network == "va-fusion":
        _check_branches(spec)


def _check_branches(spec: ValenceArousalFields) -> None:
    dimensions = (spec.va_audio_dimension, spec.va_text_dimension)
    for name, value in zip(("va_audio_dimension", "va_text_dimension"), dimensions, strict=True):
        if value not in DIMENSIONS:
            raise UsageError(f"model: {name} `{value}` is not one of {', '.join(DIMENSIONS)}")
    if len(set(dimensions)) < 2:
        raise UsageError(
            f"model: both branches predict {dimensions[0]}; set va_audio_dimension and "
            "va_text_dimension to different dimensions"
        )


def _check_end_to_end(spec: EndToEndFields) -> None:
    """Refuse values that no network takes.

    Raises:
        UsageError: such a value.
    """
    for name, choices in _CHOICES.items():
        value = getattr(spec, name)
        if value not in choices:
            raise UsageError(f"model: {name} `{value}` is not one of {', '.join(choices)}")
    if not 0.0 < spec.top_p <= 1.0:
        raise UsageError(f"model: top_p must be above 0 and at most 1, not {spec.top_p}")


_CHOICES = {
    name: get_args(kind)
    for name, kind in get_type_hints(EndToEndFields).items()
    if get_origin(kind) is Literal
}
