"""Fusion of the projected sequences into one vector: the published transformer and baselines.

A fusion module takes one sequence (unimodal) or two, audio first, each as (states [B, T, W],
mask [B, T]), and returns [B, `out_width`].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from multistill.models.layers import (
    Attention,
    AttentionPool,
    AttentiveStatisticsPool,
    FirstPool,
    MeanPool,
    Stack,
    StatisticsPool,
)
from multistill.models.sequences import segment_means
from multistill.models.spec import ModelSpec

Stream = tuple[Tensor, Tensor]


def _pool(spec: ModelSpec, *, first: bool = False) -> nn.Module:
    if spec.pooling == "attention":
        return AttentionPool(spec.width)
    if spec.pooling == "statistics":
        return StatisticsPool()
    if spec.pooling == "attentive-statistics":
        return AttentiveStatisticsPool(spec.width)
    if spec.pooling == "published" and first:
        return FirstPool()
    return MeanPool()


def _pooled_width(spec: ModelSpec) -> int:
    """Width of a pooled sequence: of its mean, or of its mean and deviation."""
    return spec.width * (2 if spec.pooling.endswith("statistics") else 1)


class FusionModule(nn.Module):
    """Base of the fusions: sequences, and a pool of each.

    Attributes:
        out_width: width of the vector that `forward` returns.
        pools: one per modality.
    """

    out_width: int
    pools: nn.ModuleList

    def sequences(self, streams: Sequence[Stream]) -> list[Stream]:
        """What is pooled of each modality, from (states [B, T, W], mask [B, T]), audio first.

        The positions of a sequence cover the clip evenly: as many as those of its stream, or fewer.
        """
        raise NotImplementedError

    def pool(self, sequences: Sequence[Stream]) -> Tensor:
        """[B, out_width] of what `sequences` returned."""
        pooled = [
            pool(states, mask) for pool, (states, mask) in zip(self.pools, sequences, strict=True)
        ]
        return torch.cat(pooled, dim=-1)

    def forward(self, streams: Sequence[Stream]) -> Tensor:
        """[B, out_width] from (states [B, T, W], mask [B, T]) per modality, audio first."""
        return self.pool(self.sequences(streams))


class Crossmodal(FusionModule):
    """Two crossmodal stacks: audio attends to text, text attends to audio (Tsai et al. 2019).

    A unimodal head has a single self-attention stack.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        both = spec.modality == "multimodal"
        self.out_width = _pooled_width(spec) * (2 if both else 1)
        shape = (spec.width, spec.heads, spec.layers, spec.feedforward, spec.dropout)
        if both:
            self.pools = nn.ModuleList([_pool(spec), _pool(spec, first=True)])
        else:
            self.pools = nn.ModuleList([_pool(spec, first=spec.modality == "audio")])
        self.stacks = nn.ModuleList(
            Stack(*shape, first_only=isinstance(pool, FirstPool)) for pool in self.pools
        )

    def sequences(self, streams: Sequence[Stream]) -> list[Stream]:
        if len(streams) == 1:
            (states, mask) = streams[0]
            return [_computed(self.stacks[0](states, None, mask), mask)]
        (audio, audio_mask), (text, text_mask) = streams
        return [
            _computed(self.stacks[0](audio, text, text_mask), audio_mask),
            _computed(self.stacks[1](text, audio, audio_mask), text_mask),
        ]


def _computed(states: Tensor, mask: Tensor) -> Stream:
    """States and their mask, of which a stack with `first_only` has the first position alone."""
    return states, mask[:, : states.shape[1]]


class Concat(FusionModule):
    """Concatenation of the pooled states of each sequence."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        count = 2 if spec.modality == "multimodal" else 1
        self.out_width = _pooled_width(spec) * count
        self.pools = nn.ModuleList(_pool(spec) for _ in range(count))

    def sequences(self, streams: Sequence[Stream]) -> list[Stream]:
        return list(streams)


class CrossAttention(FusionModule):
    """Cross-attention in both directions with residual and norm; no feed-forward, no positions.

    The residual keeps a sequence's own states if the other one is missing.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        count = 2 if spec.modality == "multimodal" else 1
        self.out_width = _pooled_width(spec) * count
        self.attentions = nn.ModuleList(Attention(spec.width, spec.heads) for _ in range(count))
        self.norms = nn.ModuleList(nn.LayerNorm(spec.width) for _ in range(count))
        self.pools = nn.ModuleList(_pool(spec) for _ in range(count))

    def sequences(self, streams: Sequence[Stream]) -> list[Stream]:
        found = []
        sources = list(reversed(streams))
        for index, ((states, mask), (source, source_mask)) in enumerate(
            zip(streams, sources, strict=True)
        ):
            attended = self.attentions[index](states, source, source_mask)
            found.append((self.norms[index](states + attended), mask))
        return found


class MixerBlock(nn.Module):
    """Token mixing, then channel mixing, both pre-norm with residuals (Tolstikhin et al. 2021)."""

    def __init__(self, tokens: int, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.token_norm = nn.LayerNorm(width)
        self.token_mix = _mlp(tokens, 4 * tokens, dropout)
        self.channel_norm = nn.LayerNorm(width)
        self.channel_mix = _mlp(width, hidden, dropout)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.token_mix(self.token_norm(x).transpose(1, 2)).transpose(1, 2)
        x = x + mixed
        return x + self.channel_mix(self.channel_norm(x))


def _mlp(width: int, hidden: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, hidden),
        nn.GELU(),
        nn.Dropout(dropout),
        nn.Linear(hidden, width),
        nn.Dropout(dropout),
    )


SEGMENTS = 16
"""Tokens into which the mixer averages each sequence, independent of its length."""


class Mixer(FusionModule):
    """MLP-Mixer over segments of both sequences.

    A mixer needs a fixed number of tokens, so each sequence is averaged into `SEGMENTS` segments
    of its unpadded positions.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.out_width = _pooled_width(spec)
        tokens = SEGMENTS * (2 if spec.modality == "multimodal" else 1)
        self.blocks = nn.ModuleList(
            MixerBlock(tokens, spec.width, spec.feedforward, spec.dropout)
            for _ in range(spec.layers)
        )
        self.norm = nn.LayerNorm(spec.width)
        self.pools = nn.ModuleList([_pool(spec)])  # one for the segments of all modalities

    def sequences(self, streams: Sequence[Stream]) -> list[Stream]:
        count = torch.full_like(streams[0][1].sum(dim=1), SEGMENTS)
        x = torch.cat([segment_means(*stream, count, SEGMENTS) for stream in streams], dim=1)
        # Segments have no padding: all those of a sequence are real, or none if it is missing.
        masks = [mask.any(dim=1, keepdim=True).expand(-1, SEGMENTS) for _, mask in streams]
        for block in self.blocks:
            x = block(x)
        return list(zip(self.norm(x).split(SEGMENTS, dim=1), masks, strict=True))

    def pool(self, sequences: Sequence[Stream]) -> Tensor:
        states, masks = zip(*sequences, strict=True)
        pooled: Tensor = self.pools[0](torch.cat(states, dim=1), torch.cat(masks, dim=1))
        return pooled


FUSIONS: Mapping[str, Callable[[ModelSpec], FusionModule]] = {
    "crossmodal": Crossmodal,
    "concat": Concat,
    "cross-attention": CrossAttention,
    "mixer": Mixer,
}
