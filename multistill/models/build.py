"""`EmotionModel`, the forward pass from encoder states to logits, and `build`, which makes one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from multistill.errors import UsageError
from multistill.models.context import ContextReader
from multistill.models.convolutional import ConvolutionalFront
from multistill.models.dimensions import DimensionScale
from multistill.models.fusion import FUSIONS, FusionModule, Stream
from multistill.models.layers import join_frames
from multistill.models.reading import StateReader
from multistill.models.spec import Encoder, ModelSpec
from multistill.models.standardize import Standardize
from multistill.models.wide import Wide
from multistill.typing import FloatArray

ENCODERS: Mapping[str, Encoder] = {"audio": "speech", "text": "text"}
"""Encoder of each modality."""


class StateMoments(Protocol):
    """Moments of the training part's states (`multistill.features.statistics`)."""

    def scaled(self, modality: str, scaling: str) -> tuple[FloatArray, FloatArray]:
        """Centre and scale [dim] of `audio` or `text`, by a value of `ModelSpec.standardize`."""
        ...

    def scaled_clips(self, modality: str) -> tuple[FloatArray, FloatArray]:
        """Centre and scale of the pooled statistics that `Wide` reads of one modality."""
        ...


class ModelOutput(NamedTuple):
    """What a head puts out for a batch.

    Attributes:
        logits: [B, classes].
        pooled: [B, D], the input of the classifier.
        dimensions: [B, dimensions] on the scale from 1 to 5; None for a model without any.
        sequences: of `audio` and `text`, those that the model reads: states [B, T, W] before they
            are pooled, and their mask [B, T]; None unless `EmotionModel.keeps_sequences`.
    """

    logits: Tensor
    pooled: Tensor
    dimensions: Tensor | None = None
    sequences: dict[str, Stream] | None = None


class EmotionModel(nn.Module):
    """Emotion head over cached encoder states.

    Padding does not change the output: positions where a mask is False are neither attended
    to nor pooled. A multimodal model accepts a missing modality (None, or a row whose mask is
    False everywhere); with both missing it predicts its prior.

    Attributes:
        keeps_sequences: whether the output has the sequences of the deep path.
    """

    keeps_sequences = False

    def __init__(self, spec: ModelSpec, audio_dim: int, text_dim: int) -> None:
        super().__init__()
        self.spec = spec
        self.audio_dim = audio_dim
        self.text_dim = text_dim
        self.readers = nn.ModuleDict(
            {
                "audio": StateReader(spec, "speech", audio_dim),
                "text": StateReader(spec, "text", text_dim),
            }
        )
        if spec.layer_mix != "none" and not spec.mixed:
            raise UsageError(
                f"model: layer_mix: {spec.layer_mix} has no layers to sum: the features hold one "
                "state per position of what the model reads; store several with "
                "`layers: [...]` and `combine: concat`, or set layer_mix to none"
            )
        self._modalities = ["audio"] * spec.reads_audio + ["text"] * spec.reads_text
        audio_width, text_width = self._reader("audio").width, self._reader("text").width
        self.standardize: nn.ModuleDict | None = None
        if spec.standardize != "none" and spec.deep:
            dims = {"audio": audio_dim, "text": text_dim}
            self.standardize = nn.ModuleDict({k: Standardize(dims[k]) for k in self._modalities})
        self.front: ConvolutionalFront | None = None
        self.audio_projection: nn.Linear | None = None
        self.text_projection: nn.Linear | None = None
        self.fusion: FusionModule | None = None
        self.context: ContextReader | None = None
        self.classifier: nn.Sequential | None = None
        self.wide: Wide | None = None
        self.pooled_dim = 0
        if spec.deep:
            if spec.front == "convolutional":
                self.front = ConvolutionalFront(spec, audio_width)
            elif spec.reads_audio or spec.keep_unused_projection:
                # Equivalent to the published 1x1 convolution without bias.
                self.audio_projection = nn.Linear(audio_width, spec.width, bias=False)
            if spec.reads_text and text_width != spec.width:
                self.text_projection = nn.Linear(text_width, spec.width, bias=False)
            self.fusion = FUSIONS[spec.fusion](spec)
            self.pooled_dim = self.fusion.out_width
            if spec.context_turns:
                self.context = ContextReader(spec, audio_width, text_width, self.pooled_dim)
                self.pooled_dim += spec.width
            self.classifier = nn.Sequential(
                nn.Dropout(spec.classifier_dropout),
                nn.Linear(self.pooled_dim, spec.classifier),
                nn.GELU(),
                nn.Dropout(spec.classifier_dropout),
                nn.Linear(spec.classifier, spec.outputs),
            )
        self.dimension_scale: DimensionScale | None = None
        if spec.dimensions:
            self.dimension_scale = DimensionScale(len(spec.dimensions))
        if spec.wide:
            audio, text = self._reader("audio").read, self._reader("text").read
            self.wide = Wide(spec, audio.stop - audio.start, text.stop - text.start)
            if self.classifier is None:
                self.pooled_dim = self.wide.out_width
            else:
                # The wide path learns first, and the deep one adds what it cannot know.
                last = self.classifier[-1]
                assert isinstance(last, nn.Linear)
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)

    def unused_parameters(self) -> int:
        """Parameters that are counted as published and change no output (`keep_unused_projection`).

        They belong to the audio projection of a text head.
        """
        if self.audio_projection is None or self.spec.reads_audio:
            return 0
        return self.audio_projection.weight.numel()

    def forward(
        self,
        audio: Tensor | None = None,
        audio_mask: Tensor | None = None,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        mixing: Tensor | None = None,
    ) -> ModelOutput:
        """Classes and dimensions of a batch of utterances.

        Args:
            audio: [B, Ta, audio_dim] frame states; text: [B, Tt, text_dim] token states.
            audio_mask, text_mask: bool [B, T], False at padding; None: no padding.
            context: [B, K, text_dim + audio_dim], the previous turns (see
                `multistill.models.context`); context_mask: bool [B, K].
            mixing: [B / 2], for manifold mixup (Verma et al. 2019): the pooled states of row i and
                of row B / 2 + i are mixed by mixing[i] of the first, and the output has B / 2
                rows.

        Raises:
            ValueError: the states of every modality that the model reads are None.
        """
        audio = audio if self.spec.reads_audio else None
        text = text if self.spec.reads_text else None
        reference = audio if audio is not None else text
        if reference is None:
            raise ValueError(f"a {self.spec.modality} model needs its states, got None")
        streams: list[Stream] = []
        if self.spec.reads_audio:
            streams.append(self._stream("audio", audio, audio_mask, reference))
        if self.spec.reads_text:
            streams.append(self._stream("text", text, text_mask, reference))
        if self.training and len(streams) == 2 and self.spec.modality_dropout:
            streams = drop_modality(streams, self.spec.modality_dropout)
        outputs = pooled = sequences = None
        if self.wide is not None:
            read = self.wide.pool(
                [
                    (states[..., self._reader(modality).read], mask)
                    for modality, (states, mask) in zip(self._modalities, streams, strict=True)
                ]
            )
            pooled = _mix(read, mixing)
            outputs = self.wide(pooled)
        if self.fusion is not None:
            deep, pooled, sequences = self._deep(streams, context, context_mask, mixing)
            outputs = deep if outputs is None else outputs + deep
        assert outputs is not None and pooled is not None
        if self.dimension_scale is None:
            return ModelOutput(outputs, pooled, sequences=sequences)
        classes = self.spec.num_classes
        dimensions = self.dimension_scale(outputs[:, classes:].float())
        return ModelOutput(outputs[:, :classes], pooled, dimensions, sequences)

    def _reader(self, modality: str) -> StateReader:
        reader = self.readers[modality]
        assert isinstance(reader, StateReader)
        return reader

    def layer_weights(self) -> list[dict[str, Any]]:
        """Learnt weights of summed layers (`layer_mix`): `encoder`, `title`, `layers`, `weights`.

        `title` is that of one of several speech encoders, each of which has its own entry.
        """
        return [
            {"encoder": encoder, **weights}
            for modality, encoder in ENCODERS.items()
            for weights in self._reader(modality).layer_weights()
        ]

    def _deep(
        self,
        streams: Sequence[Stream],
        context: Tensor | None,
        context_mask: Tensor | None,
        mixing: Tensor | None,
    ) -> tuple[Tensor, Tensor, dict[str, Stream] | None]:
        """Standardisation, projections, fusion, context and classifier.

        Returns:
            outputs, pooled states, and the sequences if they are kept.
        """
        assert self.fusion is not None and self.classifier is not None
        if self.standardize is not None:
            streams = [
                (self.standardize[modality](states, mask), mask)
                for modality, (states, mask) in zip(self._modalities, streams, strict=True)
            ]
        chosen = [
            (self.readers[modality](states), mask)
            for modality, (states, mask) in zip(self._modalities, streams, strict=True)
        ]
        projected: list[Stream] = []
        if self.spec.reads_audio:
            states, mask = chosen[0]
            if self.spec.audio_stride > 1:
                states, mask = join_frames(states, mask, self.spec.audio_stride)
            if self.front is not None:
                projected.append(self.front(states, mask))
            else:
                assert self.audio_projection is not None
                projected.append((self.audio_projection(states), mask))
        if self.spec.reads_text:
            states, mask = chosen[-1]
            if self.text_projection is not None:
                states = self.text_projection(states)
            projected.append((states, mask))
        kept: dict[str, Stream] | None = None
        if self.keeps_sequences:
            sequences = self.fusion.sequences(projected)
            kept = dict(zip(self._modalities, sequences, strict=True))
            pooled = self.fusion.pool(sequences)
        else:
            pooled = self.fusion(projected)
        if self.context is not None:
            context = self._read_context(self._standardize_context(context))
            present = [mask.any(dim=1) for _, mask in chosen]
            attended = self.context(pooled, context, context_mask, present)
            pooled = torch.cat((pooled, attended), dim=-1)
        pooled = _mix(pooled, mixing)
        return self.classifier(pooled), pooled, kept

    def _stream(
        self, modality: str, states: Tensor | None, mask: Tensor | None, reference: Tensor
    ) -> Stream:
        """States with zeroed padding; a masked position if they are None.

        Args:
            reference: states of the other modality, for batch size, dtype and device.
        """
        if states is None:
            batch, dim = reference.shape[0], getattr(self, f"{modality}_dim")
            return reference.new_zeros(batch, 1, dim), torch.zeros(
                batch, 1, dtype=torch.bool, device=reference.device
            )
        if mask is None:
            mask = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
        return states.masked_fill(~mask[:, :, None], 0.0), mask

    def _standardize_context(self, context: Tensor | None) -> Tensor | None:
        """Previous turns with each modality standardised; what a turn lacks stays zero."""
        if context is None or self.standardize is None:
            return context
        parts = {"text": context[..., : self.text_dim], "audio": context[..., self.text_dim :]}
        for modality, module in self.standardize.items():
            part = parts[modality]
            parts[modality] = module(part, (part != 0).any(dim=-1))
        return torch.cat((parts["text"], parts["audio"]), dim=-1)

    def _read_context(self, context: Tensor | None) -> Tensor | None:
        """What the head reads of the states of previous turns, text before audio."""
        if context is None:
            return None
        text, audio = context[..., : self.text_dim], context[..., self.text_dim :]
        return torch.cat((self.readers["text"](text), self.readers["audio"](audio)), dim=-1)

    @property
    def standardizes(self) -> bool:
        """Whether `fit_standardization` has something to set."""
        return self.standardize is not None or self.wide is not None

    def fit_standardization(self, statistics: StateMoments) -> None:
        """Set centre and scale of all that the head standardises, from the training part.

        Raises:
            ValueError: the statistics are of states with other dimensions.
        """
        for modality, module in (self.standardize or {}).items():
            assert isinstance(module, Standardize)
            module.fit(*statistics.scaled(modality, self.spec.standardize))
        if self.wide is not None:
            for modality in self._modalities:
                read = self._reader(modality).read
                self.wide.fit(modality, *statistics.scaled_clips(modality), read)


def _mix(pooled: Tensor, mixing: Tensor | None) -> Tensor:
    """[B, D] -> [B / 2, D], the first half mixed with the second; unchanged without `mixing`."""
    if mixing is None:
        return pooled
    first, second = pooled.chunk(2)
    return second.lerp(first, mixing[:, None].to(pooled.dtype))


@contextmanager
def keeping_sequences(model: nn.Module, keep: bool) -> Iterator[None]:
    """Set `keeps_sequences` of the heads in a model, and set it back in the end."""
    heads = [module for module in model.modules() if isinstance(module, EmotionModel)]
    before = [head.keeps_sequences for head in heads]
    try:
        for head in heads:
            head.keeps_sequences = keep
        yield
    finally:
        for head, kept in zip(heads, before, strict=True):
            head.keeps_sequences = kept


def drop_modality(streams: list[Stream], probability: float) -> list[Stream]:
    """Mask one of the two modalities of each sample with `probability`, never the only one."""
    (audio, audio_mask), (text, text_mask) = streams
    draw = torch.rand(audio.shape[0], device=audio.device)
    drop_audio = (draw < probability / 2) & text_mask.any(dim=1)
    drop_text = (draw >= 1 - probability / 2) & audio_mask.any(dim=1)
    return [
        (audio, audio_mask & ~drop_audio[:, None]),
        (text, text_mask & ~drop_text[:, None]),
    ]


def build(spec: ModelSpec, audio_dim: int, text_dim: int) -> EmotionModel:
    """Create a model; its weights are drawn from torch's global random generator.

    Examples:
        >>> from multistill.models.presets import resolve
        >>> model = build(resolve("paper-student", {}), audio_dim=1024, text_dim=768)
        >>> count_parameters(model)
        15755783
    """
    return EmotionModel(spec, audio_dim, text_dim)


def count_parameters(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
