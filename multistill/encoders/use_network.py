"""Universal Sentence Encoder, multilingual, v3, up to the states of the tokens.

A convolutional network (Yang et al., 2019, arXiv:1907.04307): three branches read each token with
its neighbours, 2, 3 and 5 tokens wide. The published network sums the states over the tokens,
divides by the square root of their number and maps the sum to a sentence embedding; that part is
not used.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multistill.encoders.use_conversion import ORDERS

WIDTH, BRANCH, TOKENS = 512, 256, 128_010
"""The embedding has ten rows more than there are tokens: it is stored in 17 equal parts."""
EPSILON = 1e-12


class QuantizedEmbedding(nn.Module):
    """Rows of bytes, each with a scale and an offset: 66 MB instead of 262."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        empty = torch.empty(rows, width, dtype=torch.uint8)
        self.table = nn.Parameter(empty, requires_grad=False)
        self.scale = nn.Parameter(torch.empty(rows), requires_grad=False)
        self.offset = nn.Parameter(torch.empty(rows), requires_grad=False)

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.table[ids].float()
        return rows * self.scale[ids, None] + self.offset[ids, None]


class NeighbourLayer(nn.Module):
    """States [B, T, 512] of embeddings [B, T, 512] and a mask [B, T]."""

    def __init__(self) -> None:
        super().__init__()
        branches = len(ORDERS) * BRANCH
        self.projection = nn.Linear(WIDTH, branches)
        self.norm = nn.LayerNorm(branches, EPSILON)
        self.branches = nn.ModuleList(
            nn.ModuleList(nn.Conv1d(BRANCH, BRANCH, order) for _ in range(2)) for order in ORDERS
        )
        self.output_norm = nn.LayerNorm(WIDTH + branches, EPSILON)
        self.output = nn.Linear(WIDTH + branches, WIDTH)

    def forward(self, embedded: Tensor, mask: Tensor) -> Tensor:
        inside = mask[:, None].to(embedded.dtype)
        projected = self.norm(self.projection(embedded)).transpose(1, 2)
        parts = [embedded]
        for states, order, layers in zip(
            projected.chunk(len(ORDERS), dim=1), ORDERS, self.branches, strict=True
        ):
            # Of an even number of tokens, the one without a partner comes after.
            padding = ((order - 1) // 2, order // 2)
            for convolution in layers:  # type: ignore[attr-defined]
                # What lies outside of the text is zero, also before the second convolution.
                states = F.relu(convolution(F.pad(states * inside, padding))) + states
            parts.append(states.transpose(1, 2))
        return self.output(self.output_norm(torch.cat(parts, dim=-1)))


class UniversalSentenceEncoder(nn.Module):
    """The network with the attributes by which `TransformerText` uses a model of transformers."""

    def __init__(self) -> None:
        super().__init__()
        # There are no positions: any number of tokens will do.
        self.config = SimpleNamespace(
            model_type="use", hidden_size=WIDTH, max_position_embeddings=1 << 30
        )
        self.embeddings = QuantizedEmbedding(TOKENS, WIDTH)
        self.encoder = nn.Module()
        self.encoder.layer = nn.ModuleList([NeighbourLayer()])

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        embedded = self.embeddings(input_ids)
        [layer] = self.encoder.layer  # type: ignore[misc]
        return SimpleNamespace(last_hidden_state=layer(embedded, mask=attention_mask))
