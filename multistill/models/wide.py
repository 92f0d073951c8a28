"""The linear path beside the deep one: pooled statistics of the states straight to the logits.

Wide and deep models of Cheng et al. (2016): the linear path learns quickly from what averages
carry, and the deep path, whose last layer starts at zero, adds what the order of states carries.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from multistill.models.layers import VARIANCE_FLOOR, mean_weights, weighted_statistics
from multistill.models.spec import ModelSpec


class Wide(nn.Module):
    """Linear layer on pooled statistics of the streams.

    Attributes:
        out_width: number of pooled statistics F.
    """

    def __init__(self, spec: ModelSpec, audio_width: int, text_width: int) -> None:
        super().__init__()
        self.reads_audio, self.reads_text = spec.reads_audio, spec.reads_text
        self.out_width = 0
        if spec.reads_audio:
            self.out_width += 3 * audio_width + 1
        if spec.reads_text:
            self.out_width += text_width + 1
        self.dropout = nn.Dropout(spec.wide_dropout)
        self.linear = nn.Linear(self.out_width, spec.num_classes)

    def pool(self, streams: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """(states [B, T, D], mask [B, T]) per modality that is read, audio first -> [B, F].

        Of audio: mean and deviation over the frames, root mean square of the change from frame to
        frame. Of text: the mean over the tokens. Of both: the logarithm of the length, since slow
        and fast speech differ in it. A missing modality gives zeros.
        """
        parts: list[Tensor] = []
        if self.reads_audio:
            states, mask = streams[0]
            weights = mean_weights(mask, torch.float32)
            parts += [weighted_statistics(states, weights), mean_change(states, mask)]
            parts.append(log_length(mask))
        if self.reads_text:
            states, mask = streams[-1]
            parts.append((states * mean_weights(mask, torch.float32)[:, :, None]).sum(dim=1))
            parts.append(log_length(mask))
        return torch.cat(parts, dim=-1)

    def forward(self, pooled: Tensor) -> Tensor:
        """Pooled statistics [B, F] -> logits [B, classes]."""
        logits: Tensor = self.linear(self.dropout(pooled))
        return logits


def mean_change(states: Tensor, mask: Tensor) -> Tensor:
    """Root mean square difference [B, D] of neighbouring states [B, T, D]; zeros without any."""
    # Indexing instead of slicing, which would restrict an exported graph to longer sequences.
    position = torch.arange(states.shape[1], device=states.device)
    previous = (position - 1).clamp(min=0)
    both = mask & mask[:, previous] & (position > 0)
    squares = (states - states[:, previous]).square()
    mean = (squares * mean_weights(both, torch.float32)[:, :, None]).sum(dim=1)
    return (mean + VARIANCE_FLOOR).sqrt() * both.any(dim=1, keepdim=True)


def log_length(mask: Tensor) -> Tensor:
    """log(1 + length) [B, 1]."""
    return mask.sum(dim=1, keepdim=True).float().log1p()
