"""`EmotionModel`, the forward pass from encoder states to logits, and `build`, which makes one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from multistill.models.base import ModelOutput, Network, StateMoments, mix
from multistill.models.context import ContextReader
from multistill.models.convolutional import ConvolutionalFront
from multistill.models.fusion import FUSIONS, FusionModule, Stream
from multistill.models.layers import join_frames
from multistill.models.networks import network_class
from multistill.models.spec import ModelSpec
from multistill.models.wide import Wide


class EmotionModel(Network):
    """Emotion head over cached encoder states; with both modalities missing it predicts its prior.

    The sequences that it puts out are those of the deep path.
    """

    classifiers = ("classifier", "wide.linear")

    def __init__(self, spec: ModelSpec, audio_dim: int, text_dim: int) -> None:
        super().__init__(spec, audio_dim, text_dim)
        audio_width, text_width = self.reader("audio").width, self.reader("text").width
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
        if spec.wide:
            audio, text = self.reader("audio").read, self.reader("text").read
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
        streams = self.streams(audio, audio_mask, text, text_mask)
        outputs = pooled = sequences = None
        if self.wide is not None:
            read = self.wide.pool(
                [
                    (states[..., self.reader(modality).read], mask)
                    for modality, (states, mask) in zip(self.modalities, streams, strict=True)
                ]
            )
            pooled = mix(read, mixing)
            outputs = self.wide(pooled)
        if self.fusion is not None:
            deep, pooled, sequences = self._deep(streams, context, context_mask, mixing)
            outputs = deep if outputs is None else outputs + deep
        assert outputs is not None and pooled is not None
        return self.output(outputs, pooled, sequences)

    def _deep(
        self,
        streams: Sequence[Stream],
        context: Tensor | None,
        context_mask: Tensor | None,
        mixing: Tensor | None,
    ) -> tuple[Tensor, Tensor, dict[str, Stream] | None]:
        """Projections, fusion, context and classifier over the states that are read.

        Returns:
            outputs, pooled states, and the sequences if they are kept.
        """
        assert self.fusion is not None and self.classifier is not None
        chosen = self.read(streams)
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
            kept = dict(zip(self.modalities, sequences, strict=True))
            pooled = self.fusion.pool(sequences)
        else:
            pooled = self.fusion(projected)
        if self.context is not None:
            context = self._read_context(self._standardize_context(context))
            present = [mask.any(dim=1) for _, mask in chosen]
            attended = self.context(pooled, context, context_mask, present)
            pooled = torch.cat((pooled, attended), dim=-1)
        pooled = mix(pooled, mixing)
        return self.classifier(pooled), pooled, kept

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
        return super().standardizes or self.wide is not None

    def fit_standardization(self, statistics: StateMoments) -> None:
        super().fit_standardization(statistics)
        if self.wide is not None:
            for modality in self.modalities:
                read = self.reader(modality).read
                self.wide.fit(modality, *statistics.scaled_clips(modality), read)


def build(spec: ModelSpec, audio_dim: int, text_dim: int) -> Network:
    """Create the network that the spec names; its weights are drawn by torch's global generator.

    Examples:
        >>> from multistill.models.presets import resolve
        >>> model = build(resolve("paper-student", {}), audio_dim=1024, text_dim=768)
        >>> count_parameters(model)
        15755783
    """
    return network_class(spec.network)(spec, audio_dim, text_dim)


def count_parameters(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
