"""`EmotionModel`, the forward pass from encoder states to logits, and `build`, which makes one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from multistill.models.context import ContextReader
from multistill.models.fusion import FUSIONS, Stream
from multistill.models.layers import join_frames
from multistill.models.spec import ModelSpec


class ModelOutput(NamedTuple):
    """Logits [B, classes] and pooled [B, D], the input of the classifier."""

    logits: Tensor
    pooled: Tensor


class EmotionModel(nn.Module):
    """Emotion head over cached encoder states.

    Padding does not change the output: positions where a mask is False are neither attended
    to nor pooled. A multimodal model accepts a missing modality (None, or a row whose mask is
    False everywhere); with both missing it predicts its prior.
    """

    def __init__(self, spec: ModelSpec, audio_dim: int, text_dim: int) -> None:
        super().__init__()
        self.spec = spec
        self.audio_dim = audio_dim
        self.text_dim = text_dim
        self._audio_slice = spec.state_slice("speech", audio_dim)
        self._text_slice = spec.state_slice("text", text_dim)
        audio_width = self._audio_slice.stop - self._audio_slice.start
        text_width = self._text_slice.stop - self._text_slice.start
        self.audio_projection: nn.Linear | None = None
        self.text_projection: nn.Linear | None = None
        if spec.reads_audio or spec.keep_unused_projection:
            # Equivalent to the published 1x1 convolution without bias.
            self.audio_projection = nn.Linear(audio_width, spec.width, bias=False)
        if spec.reads_text and text_width != spec.width:
            self.text_projection = nn.Linear(text_width, spec.width, bias=False)
        self.fusion = FUSIONS[spec.fusion](spec)
        pooled = self.fusion.out_width
        self.context: ContextReader | None = None
        if spec.context_turns:
            self.context = ContextReader(spec, audio_dim, text_dim, pooled)
            pooled += spec.width
        self.pooled_dim = pooled
        self.classifier = nn.Sequential(
            nn.Dropout(spec.classifier_dropout),
            nn.Linear(pooled, spec.classifier),
            nn.GELU(),
            nn.Dropout(spec.classifier_dropout),
            nn.Linear(spec.classifier, spec.num_classes),
        )

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
    ) -> ModelOutput:
        """Classify a batch of utterances.

        Args:
            audio: [B, Ta, audio_dim] frame states; text: [B, Tt, text_dim] token states.
            audio_mask, text_mask: bool [B, T], False at padding; None: no padding.
            context: [B, K, text_dim + audio_dim], the previous turns (see
                `multistill.models.context`); context_mask: bool [B, K].

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
            streams.append(_stream(audio, audio_mask, reference, self.audio_dim))
        if self.spec.reads_text:
            streams.append(_stream(text, text_mask, reference, self.text_dim))
        if self.training and len(streams) == 2 and self.spec.modality_dropout:
            streams = drop_modality(streams, self.spec.modality_dropout)
        projected: list[Stream] = []
        if self.spec.reads_audio:
            assert self.audio_projection is not None
            states, mask = streams[0]
            states = states[..., self._audio_slice]
            if self.spec.audio_stride > 1:
                states, mask = join_frames(states, mask, self.spec.audio_stride)
            projected.append((self.audio_projection(states), mask))
        if self.spec.reads_text:
            states, mask = streams[-1]
            states = states[..., self._text_slice]
            if self.text_projection is not None:
                states = self.text_projection(states)
            projected.append((states, mask))
        pooled: Tensor = self.fusion(projected)
        if self.context is not None:
            present = [mask.any(dim=1) for _, mask in streams]
            attended = self.context(pooled, context, context_mask, present)
            pooled = torch.cat((pooled, attended), dim=-1)
        logits: Tensor = self.classifier(pooled)
        return ModelOutput(logits, pooled)


def _stream(states: Tensor | None, mask: Tensor | None, reference: Tensor, dim: int) -> Stream:
    """States with zeroed padding, or a single masked position if they are None.

    Args:
        reference: states of the other modality, for batch size, dtype and device.
    """
    if states is None:
        batch = reference.shape[0]
        return reference.new_zeros(batch, 1, dim), torch.zeros(
            batch, 1, dtype=torch.bool, device=reference.device
        )
    if mask is None:
        mask = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
    return states.masked_fill(~mask[:, :, None], 0.0), mask


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
