"""Hyperparameters of an emotion head. Imports no torch, so that job files are validated quickly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, NamedTuple, get_args

from multistill.config.tasks import DIMENSIONS
from multistill.encoders.slim import EncoderSizes
from multistill.errors import UsageError
from multistill.models.network_fields import (
    COMMON,
    NETWORK_USES,
    NetworkFields,
    NetworkName,
    check_network,
)

Modality = Literal["multimodal", "text", "audio"]
Encoder = Literal["speech", "text"]
Fusion = Literal["crossmodal", "concat", "cross-attention", "mixer"]
Pooling = Literal["published", "mean", "attention", "statistics", "attentive-statistics"]
Standardize = Literal["none", "encoder", "dimension", "global"]
Paths = Literal["deep", "wide", "both"]
Mix = Literal["none", "weighted", "normalized"]
Front = Literal["linear", "convolutional"]


@dataclass(frozen=True)
class StatePart:
    """What the states hold of one of several speech encoders.

    Attributes:
        title: of the encoder.
        width: number of values, after those of the parts before it.
        layers: encoder layers that stand side by side in it; empty if it is a single state.
    """

    title: str
    width: int
    layers: tuple[int, ...] = ()


class PartRead(NamedTuple):
    """Values of a state that are of one encoder, and the layers that stand side by side in them.

    `title` is that of one of several speech encoders.
    """

    values: slice
    layers: tuple[int, ...]
    title: str | None = None

    @property
    def width(self) -> int:
        return int(self.values.stop - self.values.start)


@dataclass(frozen=True)
class ModelSpec(NetworkFields):
    """Hyperparameters of one model.

    Attributes:
        network: class of the model (`multistill.models.networks`). The fields here are those of
            `head`; which of them another network uses, and what it has beside them, stands in
            `multistill.models.network_fields`.
        modality: which encoder states the head reads. A multimodal head also works if one
            modality is missing.
        fusion: `crossmodal` is the published transformer (Tsai et al. 2019); `concat`,
            `cross-attention` and `mixer` are baselines. A unimodal head applies the same blocks
            to its single sequence.
        width: width of the states inside the head; encoder states of another width are projected.
        heads: number of attention heads; must divide `width`.
        layers: transformer layers per stack, or mixer blocks; unused by `concat` and
            `cross-attention`.
        feedforward: hidden width of the feed-forward (or channel-mixing) layers.
        classifier: hidden width of the classifier.
        dropout: applied to embedded states and to the output of each sublayer, not to attention
            weights.
        classifier_dropout: applied before both linear layers of the classifier.
        modality_dropout: share of training samples in which one of the two modalities is dropped.
        pooling: `published`: mean over frames for audio queries, first position for text
            queries, mean for text alone, first frame for audio alone. `mean` and `attention`
            pool the unpadded positions of every sequence; `statistics` adds the deviation to the
            mean, `attentive-statistics` weights both by attention (Okabe et al. 2018).
        standardize: encoder states by mean and deviation of the training part, which are part of
            the model: `dimension` each dimension, `global` all alike, `encoder` as the encoder's
            kind asks (log-mel bands share a scale); `none` as published.
        paths: from the states to the logits: `deep` through fusion and classifier as published;
            `wide` a linear layer on pooled statistics of the states (`multistill.models.wide`),
            which uses none of the deep path's fields; `both` adds the two (Cheng et al. 2016).
        wide_dropout: applied to the pooled statistics of the wide path.
        front: from the speech states to the fusion: `linear` projects each frame as published;
            `convolutional` is for the bands of log-mel energies, which it turns into states of
            its own (`multistill.models.convolutional`).
        front_channels: channels over time and frequency of a convolutional front; twice as many
            after its first half.
        front_blocks: its blocks over time, each with a feed-forward layer of `feedforward`.
        audio_stride: number of neighbouring audio frames averaged into one before the head; 1 as
            published. The cost falls linearly with it, that of audio self-attention quadratically.
        context_turns: number of previous turns of the dialogue that the head reads; 0 as published.
        speech_layers, text_layers: encoder layers whose states are concatenated in the features
            (`combine: concat`); empty if the features hold a single state per position.
        speech_layer, text_layer: the only one of these layers that the head reads; None: all.
        layer_mix: `weighted` sums the layers that are read with learnt weights
            (`multistill.models.reading`), `normalized` normalises each layer first; `none` hands
            them to the head side by side. The wide path reads them side by side in any case.
        speech_parts: several speech encoders whose states are concatenated in the features; empty
            if there is one, and then `speech_layers` are its layers.
        speech_encoder: title of the only part that the head reads; None: all. `speech_layer` is a
            layer of it.
        train_encoder: whether an encoder that the job trains is trained with this model too; else
            the model reads the states of the encoder as it was before.
        encoder_layers, encoder_heads, encoder_feedforward: of a slimmed speech encoder, which is
            trained with this model from waves: its lowest layers, and the attention heads and
            feed-forward units that are kept in each (`multistill.encoders.slimming`); None: as
            many as there are.
        keep_unused_projection: a text head includes the audio projection that it never uses, as
            the published parameter counts do.
        num_classes: number of logits; 0 for a head that predicts dimensions only.
        dimensions: `valence`, `arousal`, `dominance`, in this order: linear outputs beside the
            logits, from the same hidden states.
    """

    modality: Modality
    network: NetworkName = "head"
    fusion: Fusion = "crossmodal"
    width: int = 768
    heads: int = 8
    layers: int = 3
    feedforward: int = 3072
    classifier: int = 512
    dropout: float = 0.0
    classifier_dropout: float = 0.1
    modality_dropout: float = 0.0
    pooling: Pooling = "published"
    standardize: Standardize = "none"
    paths: Paths = "deep"
    wide_dropout: float = 0.5
    front: Front = "linear"
    front_channels: int = 16
    front_blocks: int = 4
    audio_stride: int = 1
    context_turns: int = 0
    speech_layer: int | None = None
    text_layer: int | None = None
    speech_layers: tuple[int, ...] = ()
    text_layers: tuple[int, ...] = ()
    layer_mix: Mix = "none"
    speech_encoder: str | None = None
    speech_parts: tuple[StatePart, ...] = ()
    train_encoder: bool = True
    encoder_layers: int | None = None
    encoder_heads: int | None = None
    encoder_feedforward: int | None = None
    keep_unused_projection: bool = False
    num_classes: int = 7
    dimensions: tuple[str, ...] = ()

    @property
    def sequences(self) -> tuple[str, ...]:
        """Modalities whose sequences the head pools: `audio`, `text`; none of a wide head."""
        if self.network in {"fe2e", "mesm"}:  # the text is one state as wide as its encoder's
            return ("audio",)
        return (*("audio",) * self.reads_audio, *("text",) * self.reads_text) * self.deep

    def __post_init__(self) -> None:
        for name, kind in (
            ("modality", Modality),
            ("network", NetworkName),
            ("fusion", Fusion),
            ("pooling", Pooling),
            ("standardize", Standardize),
            ("paths", Paths),
            ("layer_mix", Mix),
            ("front", Front),
        ):
            value, allowed = getattr(self, name), get_args(kind)
            if value not in allowed:
                raise UsageError(f"model: {name} `{value}` is not one of {', '.join(allowed)}")
        for name in (
            "width",
            "heads",
            "layers",
            "feedforward",
            "classifier",
            "front_channels",
            "front_blocks",
            "audio_stride",
            *(f"encoder_{name}" for name, size in vars(self.slim).items() if size is not None),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UsageError(f"model: {name} must be an integer of at least 1, not {value}")
        if self.dimensions != tuple(name for name in DIMENSIONS if name in self.dimensions):
            raise UsageError(
                f"model: dimensions are some of {', '.join(DIMENSIONS)}, each once and in this "
                f"order, not {', '.join(map(str, self.dimensions))}"
            )
        if self.num_classes < (0 if self.dimensions else 1):
            raise UsageError(
                f"model: num_classes must be at least 1, not {self.num_classes}; 0 is for a model "
                "with dimensions"
            )
        for name in ("dropout", "classifier_dropout", "modality_dropout", "wide_dropout"):
            value = getattr(self, name)
            if not 0.0 <= value < 1.0:
                raise UsageError(f"model: {name} must be at least 0 and below 1, not {value}")
        if self.context_turns < 0:
            raise UsageError(f"model: context_turns must be 0 or more, not {self.context_turns}")
        if self.context_turns and self.paths == "wide":
            raise UsageError(
                "model: the wide path does not read context_turns; use `paths: both` or set "
                "context_turns to 0"
            )
        if self.layer_mix != "none" and self.paths == "wide":
            raise UsageError(
                "model: the wide path does not sum layers; use `paths: both` or set layer_mix to "
                "none"
            )
        of_branches = (
            {"va_branch_heads": self.va_branch_heads} if self.network == "va-fusion" else {}
        )
        for name, heads in {"heads": self.heads, **of_branches}.items():
            if self.width % heads:
                raise UsageError(
                    f"model: width {self.width} is not divisible by {name} {heads}; "
                    f"use a width that is a multiple of {heads}"
                )
        if self.width % 2:
            raise UsageError(f"model: width {self.width} must be even (sine and cosine positions)")
        for name in ("speech", "text"):
            layer, stored = getattr(self, f"{name}_layer"), getattr(self, f"{name}_layers")
            if layer is not None and stored and layer not in stored:
                raise UsageError(
                    f"model: {name}_layer {layer} is not among the layers of features.{name}: "
                    f"{', '.join(map(str, stored))}"
                )
        if self.front == "convolutional" and self.modality == "text":
            raise UsageError(
                "model: a convolutional front reads speech, and this model reads text alone; "
                "use `front: linear`"
            )
        titles = [part.title for part in self.speech_parts]
        if titles and self.speech_encoder is not None and self.speech_encoder not in titles:
            raise UsageError(
                f"model: speech_encoder `{self.speech_encoder}` is not among the speech encoders "
                f"of the features: {', '.join(titles)}"
            )
        self._check_slim()
        if self.keep_unused_projection and self.modality != "text":
            raise UsageError("model: keep_unused_projection applies to text heads only")
        check_network(self, self.network, self.modality)
        if self.network in {"fe2e", "mesm"} and self.pooling not in {"published", "mean"}:
            raise UsageError(
                f"model: the network {self.network} makes one state of a text by pooling published "
                f"or mean, not {self.pooling}"
            )

    def _check_slim(self) -> None:
        if not self.slim.given:
            return
        if not self.reads_audio:
            raise UsageError(
                "model: encoder_layers, encoder_heads and encoder_feedforward are of the speech "
                "encoder, and this model reads text alone; remove these three"
            )
        if not self.train_encoder:
            raise UsageError(
                "model: a slimmed encoder is trained with the model, and `train_encoder` is false; "
                "remove it, or the sizes `encoder_...`"
            )

    @property
    def slim(self) -> EncoderSizes:
        """Sizes of the slimmed speech encoder."""
        return EncoderSizes(self.encoder_layers, self.encoder_heads, self.encoder_feedforward)

    @property
    def outputs(self) -> int:
        """Number of outputs: logits, then dimensions."""
        return self.num_classes + len(self.dimensions)

    @property
    def reads_audio(self) -> bool:
        return self.modality != "text"

    @property
    def reads_text(self) -> bool:
        return self.modality != "audio"

    @property
    def deep(self) -> bool:
        return self.paths != "wide"

    @property
    def wide(self) -> bool:
        return self.paths != "deep"

    @property
    def reads_bands(self) -> bool:
        """Whether neighbouring values of speech states must be neighbouring bands of frequency."""
        if self.network != "head":
            return NETWORK_USES[self.network].reads_bands
        return self.front == "convolutional" and self.deep

    def reading(self, **changes: Any) -> ModelSpec:
        """A head that reads what this model reads, for what depends on its encoders alone.

        Args:
            changes: fields of it with other values.
        """
        kept = {name: getattr(self, name) for name in COMMON - {"network", "width"}}
        return ModelSpec(**{**kept, **changes})

    @property
    def layers_read(self) -> dict[Encoder, int]:
        """The only layer that is read, of each encoder whose stored layers are chosen from."""
        layers: dict[Encoder, int] = {}
        if self.reads_audio and self.speech_layer is not None:
            layers["speech"] = self.speech_layer
        if self.reads_text and self.text_layer is not None:
            layers["text"] = self.text_layer
        return layers

    @property
    def encoder_read(self) -> str | None:
        """Title of the only one of several speech encoders that is read; None: all, or none."""
        return self.speech_encoder if self.reads_audio else None

    @property
    def mixed(self) -> tuple[Encoder, ...]:
        """Encoders of which several layers are summed (`layer_mix`)."""
        if self.layer_mix == "none":
            return ()
        speech = [
            part.layers for part in self.speech_parts if self.speech_encoder in {None, part.title}
        ] or [self.speech_layers]
        several = any(len(layers) > 1 for layers in speech) and self.speech_layer is None
        found: list[Encoder] = ["speech"] if self.reads_audio and several else []
        if self.reads_text and len(self.text_layers) > 1 and self.text_layer is None:
            found.append("text")
        return tuple(found)

    def stored_layers(self, encoder: Encoder) -> tuple[int, ...]:
        """Layers that are stored side by side of what the head reads of an encoder.

        Empty if there is one state per position, and if several speech encoders are read.
        """
        if encoder == "text":
            return self.text_layers
        if not self.speech_parts:
            return self.speech_layers
        read = [part for part in self.speech_parts if part.title == self.speech_encoder]
        return read[0].layers if read else ()

    def state_slice(self, encoder: Encoder, dim: int) -> slice:
        """Slice of an encoder state of `dim` values that the head reads.

        Raises:
            UsageError: the states do not hold the selected encoder or layer.
        """
        parts = self.parts_read(encoder, dim)
        layer = self.speech_layer if encoder == "speech" else self.text_layer
        if layer is None:
            return slice(parts[0].values.start, parts[-1].values.stop)
        if len(parts) > 1:
            raise UsageError(
                f"model: speech_layer {layer} is a layer of one encoder, and the features hold "
                f"{', '.join(part.title for part in self.speech_parts)}; set speech_encoder too"
            )
        [part] = parts
        if layer not in part.layers or part.width % len(part.layers):
            raise UsageError(
                f"model: {encoder}_layer {layer} cannot be read: the features hold one state per "
                f"position; store several layers with features.{encoder}: {{layers: [..., {layer}],"
                " combine: concat}"
            )
        width = part.width // len(part.layers)
        first = int(part.values.start) + part.layers.index(layer) * width
        return slice(first, first + width)

    def parts_read(self, encoder: Encoder, dim: int) -> list[PartRead]:
        """Parts of a state of `dim` values that the head reads: one for each encoder.

        Raises:
            UsageError: the states do not hold the selected encoder.
        """
        if encoder == "text":
            return [PartRead(slice(0, dim), self.text_layers)]
        if not self.speech_parts:
            if self.speech_encoder is not None:
                raise UsageError(
                    f"model: speech_encoder `{self.speech_encoder}` cannot be chosen: the features "
                    "hold one speech encoder; name more in features.speech.additional, or remove "
                    "speech_encoder"
                )
            return [PartRead(slice(0, dim), self.speech_layers)]
        found, start = [], 0
        for part in self.speech_parts:
            if self.speech_encoder in {None, part.title}:
                values = slice(start, start + part.width)
                found.append(PartRead(values, part.layers, part.title))
            start += part.width
        if start != dim:
            raise UsageError(
                f"model: the speech encoders {', '.join(part.title for part in self.speech_parts)} "
                f"have {start} values, and the features {dim}; train the model again on these "
                "features"
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values: lists instead of tuples."""
        values = asdict(self)
        values["speech_parts"] = [
            {**part, "layers": list(part["layers"])} for part in values["speech_parts"]
        ]
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelSpec:
        """Inverse of `to_dict`.

        Raises:
            UsageError: an unknown field, a missing modality, or a value out of range.
        """
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise UsageError(
                f"model: unknown field `{unknown[0]}`; the fields are {', '.join(known)}"
            )
        if "modality" not in values:
            raise UsageError("model: the field `modality` is missing")
        names = ("speech_layers", "text_layers", "dimensions", "speech_parts")
        tuples = {name: tuple(values[name]) for name in names if name in values}
        if "speech_parts" in tuples:
            tuples["speech_parts"] = tuple(_part_of(part) for part in tuples["speech_parts"])
        return cls(**{**values, **tuples})


def _part_of(value: StatePart | Mapping[str, Any]) -> StatePart:
    if isinstance(value, StatePart):
        return value
    return StatePart(str(value["title"]), int(value["width"]), tuple(value.get("layers", ())))
