"""What a model is made of, as plain data. Imports no torch: the job file's checks use it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from multistill.errors import UsageError

Modality = Literal["multimodal", "text", "audio"]
Fusion = Literal["crossmodal", "concat", "cross-attention", "mixer"]
Pooling = Literal["published", "mean", "attention"]


@dataclass(frozen=True)
class ModelSpec:
    """One emotion head.

    Attributes:
        modality: which states it reads. A multimodal head also works with one of them missing.
        fusion: `crossmodal` is the published transformer (Tsai et al. 2019); `concat`,
            `cross-attention` and `mixer` are the baselines it has to beat. A unimodal head
            uses the same blocks on its one sequence.
        width: of the states inside the head; encoder states of another width are projected.
        heads: attention heads; divides `width`.
        layers: transformer layers per stack, or mixer blocks; unused by the other two.
        feedforward: hidden width of the feed-forward (or channel-mixing) part.
        classifier: hidden width of the classifier.
        dropout: of embedded states and of each block's parts; never of attention weights.
        classifier_dropout: before both linear layers of the classifier.
        modality_dropout: share of training samples that lose one of two modalities.
        pooling: `published`: mean over frames for audio queries, first position for text
            queries, mean for text alone, first frame for audio alone. `mean` and `attention`
            are over the real positions of every sequence.
        audio_stride: so many neighbouring audio frames are averaged into one first; 1 as
            published. Cost falls with it, that of audio self-attention with its square.
        context_turns: how many previous turns of the dialogue are read; 0 as published.
        speech_layers, text_layers: encoder layers whose states lie side by side in what it is
            given (`combine: concat`); empty where they are one state.
        speech_layer, text_layer: the one of them that it reads; all of them without.
        keep_unused_projection: a text head carries the audio projection that it never uses,
            as the published parameter counts do.
    """

    modality: Modality
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
    audio_stride: int = 1
    context_turns: int = 0
    speech_layer: int | None = None
    text_layer: int | None = None
    speech_layers: tuple[int, ...] = ()
    text_layers: tuple[int, ...] = ()
    keep_unused_projection: bool = False
    num_classes: int = 7

    def __post_init__(self) -> None:
        for name, kind in (("modality", Modality), ("fusion", Fusion), ("pooling", Pooling)):
            value, allowed = getattr(self, name), get_args(kind)
            if value not in allowed:
                raise UsageError(f"model: {name} `{value}` is not one of {', '.join(allowed)}")
        for name in (
            "width",
            "heads",
            "layers",
            "feedforward",
            "classifier",
            "audio_stride",
            "num_classes",
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UsageError(f"model: {name} must be a whole number of at least 1, not {value}")
        for name in ("dropout", "classifier_dropout", "modality_dropout"):
            value = getattr(self, name)
            if not 0.0 <= value < 1.0:
                raise UsageError(f"model: {name} must be at least 0 and below 1, not {value}")
        if self.context_turns < 0:
            raise UsageError(f"model: context_turns must be 0 or more, not {self.context_turns}")
        if self.width % self.heads:
            raise UsageError(
                f"model: width {self.width} is not divisible by heads {self.heads}; "
                f"use a width that is a multiple of {self.heads}"
            )
        if self.width % 2:
            raise UsageError(f"model: width {self.width} must be even (sine and cosine positions)")
        for name in ("speech", "text"):
            chosen, kept = getattr(self, f"{name}_layer"), getattr(self, f"{name}_layers")
            if chosen is not None and kept and chosen not in kept:
                raise UsageError(
                    f"model: {name}_layer {chosen} is not among the layers that features.{name} "
                    f"keeps: {', '.join(map(str, kept))}"
                )
        if self.keep_unused_projection and self.modality != "text":
            raise UsageError("model: keep_unused_projection is for text heads only")

    @property
    def reads_audio(self) -> bool:
        return self.modality != "text"

    @property
    def reads_text(self) -> bool:
        return self.modality != "audio"

    def part(self, encoder: Literal["speech", "text"], dim: int) -> slice:
        """Which of the `dim` values of a state it reads.

        Raises:
            UsageError: a layer is chosen, but what it is given is not of several layers.
        """
        chosen = self.speech_layer if encoder == "speech" else self.text_layer
        kept = self.speech_layers if encoder == "speech" else self.text_layers
        if chosen is None:
            return slice(0, dim)
        if chosen not in kept or dim % len(kept):
            raise UsageError(
                f"model: {encoder}_layer {chosen} cannot be read: the features hold one state per "
                f"position; keep several with features.{encoder}: {{layers: [..., {chosen}], "
                "combine: concat}"
            )
        width = dim // len(kept)
        place = kept.index(chosen)
        return slice(place * width, (place + 1) * width)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it: lists, no tuples."""
        values = asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelSpec:
        """The spec of `to_dict`.

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
        layers = {k: tuple(values[k]) for k in ("speech_layers", "text_layers") if k in values}
        return cls(**{**values, **layers})
