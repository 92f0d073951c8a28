"""The linear path beside the deep one: pooled statistics of the states straight to the logits.

Wide and deep models of Cheng et al. (2016): the linear path learns quickly from what averages
carry, and the deep path, whose last layer starts at zero, adds what the order of states carries.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from multistill.models.layers import VARIANCE_FLOOR, mean_weights, weighted_statistics
from multistill.models.spec import ModelSpec
from multistill.models.standardize import Standardize
from multistill.typing import FloatArray


class Wide(nn.Module):
    """Linear layer on pooled statistics of the states, each standardised over the training part.

    It reads the states as they are: what is standardised is what the linear layer sees, so it
    does not depend on `ModelSpec.standardize`.

    Attributes:
        out_width: number of pooled statistics F.
    """

    def __init__(self, spec: ModelSpec, audio_width: int, text_width: int) -> None:
        super().__init__()
        widths = {"audio": 3 * audio_width + 1} if spec.reads_audio else {}
        widths |= {"text": text_width + 1} if spec.reads_text else {}
        self.standardize = nn.ModuleDict({k: Standardize(n) for k, n in widths.items()})
        self.out_width = sum(widths.values())
        self.dropout = nn.Dropout(spec.wide_dropout)
        self.linear = nn.Linear(self.out_width, spec.outputs)

    def fit(self, modality: str, centre: FloatArray, scale: FloatArray, read: slice) -> None:
        """Set the standardisation of one modality.

        Args:
            centre, scale: of the statistics of the whole states.
            read: the part of a state that the head reads.
        """
        dim = (len(centre) - 1) // (3 if modality == "audio" else 1)
        columns = np.arange(len(centre) - 1).reshape(-1, dim)[:, read].ravel()
        columns = np.append(columns, len(centre) - 1)
        module = self.standardize[modality]
        assert isinstance(module, Standardize)
        module.fit(centre[columns], scale[columns])

    def pool(self, streams: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """(states [B, T, D], mask [B, T]) per modality that is read, audio first -> [B, F].

        Of audio: mean and deviation over the frames, root mean square of the change from frame to
        frame. Of text: the mean over the tokens. Of both: the logarithm of the length, since slow
        and fast speech differ in it. A missing modality gives zeros.
        """
        parts: list[Tensor] = []
        for (modality, standardize), (states, mask) in zip(
            self.standardize.items(), streams, strict=True
        ):
            weights = mean_weights(mask, torch.float32)
            if modality == "audio":
                found = [weighted_statistics(states, weights), mean_change(states, mask)]
            else:
                found = [(states * weights[:, :, None]).sum(dim=1)]
            found.append(log_length(mask))
            parts.append(standardize(torch.cat(found, dim=-1), mask.any(dim=1)))
        return torch.cat(parts, dim=-1)

    def forward(self, pooled: Tensor) -> Tensor:
        """Pooled statistics [B, F] -> logits, then dimensions [B, outputs]."""
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
