"""Mean speech state beside the first text state, and a linear classifier.

The classifier of a public comparison of continual learning over KEMDy19 and KEMDy20 (2023;
docs/systems.md): a projection of every speech state, their masked mean, the first token's state,
dropout, a linear layer. With `pooled_strides`, convolutions that halve the frame rate stand before
the projection, those of `Wav2Vec2Adapter` in transformers: what every corpus gets for itself where
the speech encoder stays as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from multistill.models.base import ModelOutput, Network, mix
from multistill.models.fusion import Stream
from multistill.models.layers import FirstPool, MeanPool
from multistill.models.spec import ModelSpec

KERNEL, STRIDE = 3, 2


class StridedLayer(nn.Module):
    """Convolution over time with stride 2, and a gate (GLU) that halves the channels again."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(dim, 2 * dim, KERNEL, STRIDE, padding=KERNEL // 2)

    def forward(self, states: Tensor, mask: Tensor) -> Stream:
        """states [B, T, D], mask [B, T] -> [B, ceil(T / 2), D] and its mask; padding counts as 0.

        A state of the output is one of the clip if the frame at its centre is.
        """
        states = states.masked_fill(~mask[..., None], 0.0)
        gated = nn.functional.glu(self.convolution(states.transpose(1, 2)), dim=1)
        mask = mask[:, ::STRIDE]
        return gated.transpose(1, 2).masked_fill(~mask[..., None], 0.0), mask


class PooledNetwork(Network):
    """See the module; `width` is that of the projection."""

    def __init__(self, spec: ModelSpec, audio_dim: int, text_dim: int) -> None:
        super().__init__(spec, audio_dim, text_dim)
        self.pooled_dim = 0
        self.strided = nn.ModuleList()
        self.projection: nn.Linear | None = None
        if spec.reads_audio:
            dim = self.reader("audio").width
            self.strided.extend(StridedLayer(dim) for _ in range(spec.pooled_strides))
            self.projection = nn.Linear(dim, spec.width)
            self.pooled_dim += spec.width
        if spec.reads_text:
            self.pooled_dim += self.reader("text").width
        self.first, self.mean = FirstPool(), MeanPool()
        self.dropout = nn.Dropout(spec.classifier_dropout)
        self.classifier = nn.Linear(self.pooled_dim, spec.outputs)

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
        """As of `Network.forward`; there is no context."""
        streams = self.read(self.streams(audio, audio_mask, text, text_mask))
        sequences, parts = {}, []
        for modality, (states, mask) in zip(self.modalities, streams, strict=True):
            if modality == "audio":
                assert self.projection is not None
                for layer in self.strided:
                    states, mask = layer(states, mask)
                states = self.projection(states)
                parts.append(self.mean(states, mask))
            else:
                parts.append(self.first(states, mask))
            sequences[modality] = (states, mask)
        pooled = mix(torch.cat(parts, dim=-1), mixing)
        outputs = self.classifier(self.dropout(pooled))
        return self.output(outputs, pooled, sequences if self.keeps_sequences else None)
