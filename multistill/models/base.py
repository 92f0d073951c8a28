"""`Network`: what every emotion model has in common, and what it puts out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from multistill.errors import UsageError
from multistill.models.dimensions import DimensionScale
from multistill.models.fusion import Stream
from multistill.models.reading import StateReader
from multistill.models.spec import Encoder, ModelSpec
from multistill.models.standardize import Standardize
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
    """What a network puts out for a batch.

    Attributes:
        logits: [B, classes].
        pooled: [B, D], the input of the classifier.
        dimensions: [B, dimensions] on the scale from 1 to 5; None for a model without any.
        sequences: of `audio` and `text`, those that the model reads: states [B, T, W] before they
            are pooled, and their mask [B, T]; None unless `Network.keeps_sequences`.
    """

    logits: Tensor
    pooled: Tensor
    dimensions: Tensor | None = None
    sequences: dict[str, Stream] | None = None


class Network(nn.Module):
    """An emotion model over states of encoders: the base class of `multistill.models.networks`.

    Padding does not change the output, and a multimodal network accepts a missing modality: None,
    or a row whose mask is False everywhere.

    A subclass sets `pooled_dim` and has the `forward` below; `streams`, `read` and `output` are the
    parts of it that networks share.

    Attributes:
        classifiers: names of the modules that map pooled states to outputs, of those it has.
        keeps_sequences: whether the output has the sequences before they are pooled.
        pooled_dim: width of `ModelOutput.pooled`.
        readers: the part of the stored states that the spec chooses, of `audio` and `text`.
        standardize: of the modalities that are read; None: the states are read as they are.
        dimension_scale: None for a model without dimensions.
    """

    classifiers: ClassVar[tuple[str, ...]] = ("classifier",)
    keeps_sequences = False
    pooled_dim: int

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
        self.modalities = ["audio"] * spec.reads_audio + ["text"] * spec.reads_text
        self.standardize: nn.ModuleDict | None = None
        if spec.standardize != "none" and spec.deep:
            dims = {"audio": audio_dim, "text": text_dim}
            self.standardize = nn.ModuleDict({k: Standardize(dims[k]) for k in self.modalities})
        self.dimension_scale: DimensionScale | None = None
        if spec.dimensions:
            self.dimension_scale = DimensionScale(len(spec.dimensions))

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
        raise NotImplementedError

    def reader(self, modality: str) -> StateReader:
        """What is read of the states of `audio` or `text`."""
        reader = self.readers[modality]
        assert isinstance(reader, StateReader)
        return reader

    def streams(
        self,
        audio: Tensor | None,
        audio_mask: Tensor | None,
        text: Tensor | None,
        text_mask: Tensor | None,
    ) -> list[Stream]:
        """The stored states of what the spec reads, with zeros at padding and dropped modalities.

        Raises:
            ValueError: the states of every modality that the model reads are None.
        """
        audio = audio if self.spec.reads_audio else None
        text = text if self.spec.reads_text else None
        reference = audio if audio is not None else text
        if reference is None:
            raise ValueError(f"a {self.spec.modality} model needs its states, got None")
        given = {"audio": (audio, audio_mask), "text": (text, text_mask)}
        streams = [self._stream(name, *given[name], reference) for name in self.modalities]
        if self.training and len(streams) == 2 and self.spec.modality_dropout:
            streams = drop_modality(streams, self.spec.modality_dropout)
        return streams

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

    def read(self, streams: Sequence[Stream]) -> list[Stream]:
        """Of streams of stored states, what the spec chooses, standardised if it asks for that."""
        if self.standardize is not None:
            streams = [
                (self.standardize[modality](states, mask), mask)
                for modality, (states, mask) in zip(self.modalities, streams, strict=True)
            ]
        return [
            (self.readers[modality](states), mask)
            for modality, (states, mask) in zip(self.modalities, streams, strict=True)
        ]

    def output(
        self, outputs: Tensor, pooled: Tensor, sequences: dict[str, Stream] | None = None
    ) -> ModelOutput:
        """`ModelOutput` of outputs [B, classes + dimensions]."""
        if self.dimension_scale is None:
            return ModelOutput(outputs, pooled, sequences=sequences)
        classes = self.spec.num_classes
        dimensions = self.dimension_scale(outputs[:, classes:].float())
        return ModelOutput(outputs[:, :classes], pooled, dimensions, sequences)

    @property
    def frame_width(self) -> int:
        """Values that one audio frame takes at most, by which micro-batches are sized on a CPU."""
        return self.spec.width

    @property
    def depends_on_batch(self) -> bool:
        """Whether, in training, the output for a row depends on the others of its micro-batch."""
        return False

    def unused_parameters(self) -> int:
        """Parameters that are counted as published and change no output."""
        return 0

    def layer_weights(self) -> list[dict[str, Any]]:
        """Learnt weights of summed layers (`layer_mix`): `encoder`, `title`, `layers`, `weights`.

        `title` is that of one of several speech encoders, each of which has its own entry.
        """
        return [
            {"encoder": encoder, **weights}
            for modality, encoder in ENCODERS.items()
            for weights in self.reader(modality).layer_weights()
        ]

    @property
    def standardizes(self) -> bool:
        """Whether `fit_standardization` has something to set."""
        return self.standardize is not None

    def fit_standardization(self, statistics: StateMoments) -> None:
        """Set centre and scale of all that the network standardises, from the training part.

        Raises:
            ValueError: the statistics are of states with other dimensions.
        """
        for modality, module in (self.standardize or {}).items():
            assert isinstance(module, Standardize)
            module.fit(*statistics.scaled(modality, self.spec.standardize))


def mix(pooled: Tensor, mixing: Tensor | None) -> Tensor:
    """[B, D] -> [B / 2, D], the first half mixed with the second; unchanged without `mixing`."""
    if mixing is None:
        return pooled
    first, second = pooled.chunk(2)
    return second.lerp(first, mixing[:, None].to(pooled.dtype))


@contextmanager
def keeping_sequences(model: nn.Module, keep: bool) -> Iterator[None]:
    """Set `keeps_sequences` of the networks in a model, and set it back in the end."""
    networks = [module for module in model.modules() if isinstance(module, Network)]
    before = [network.keeps_sequences for network in networks]
    try:
        for network in networks:
            network.keeps_sequences = keep
        yield
    finally:
        for network, kept in zip(networks, before, strict=True):
            network.keeps_sequences = kept


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
