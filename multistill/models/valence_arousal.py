"""Valence and arousal first, emotion after: the three networks of a public Korean system (2022).

`va-audio` reads log-mel energies and their first-order delta: convolutions along frequency alone,
so that every frame keeps its place, self-attention over the frames, a recurrent read-out. `va-text`
reads token states with the same layers. Both are made for one dimension each, arousal and valence.
`va-fusion` has both as branches: their sequences before the read-out, one behind the other on the
axis of time, are the input of further self-attention layers and of a recurrent read-out that
classifies. Its branches start from the weights of `va-audio` and `va-text`
(`multistill.pipeline.recipes.pretrain`), and what they predict stays an output of the fusion, so
that the losses of both dimensions can go on beside that of the classes.

Unlike in the published code, no padding is attended to or read: masks are exact, and the recurrent
read-out takes the last position of the clip itself, not that of its padding. docs/systems.md
has the other differences.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multistill.errors import UsageError
from multistill.models.base import ModelOutput, Network, StateMoments, mix
from multistill.models.branches import branch_spec
from multistill.models.fusion import Stream
from multistill.models.layers import (
    Attention,
    AttentionPool,
    AttentiveStatisticsPool,
    LastPool,
    MeanPool,
    Positions,
    StatisticsPool,
    join_frames,
)
from multistill.models.spec import ModelSpec

DELTA_REACH = 4
"""Frames on either side of a delta."""


class EncoderLayer(nn.Module):
    """Post-norm self-attention layer without biases in the attention.

    Args:
        double_residual: add the input of the feed-forward block to its output twice.
    """

    def __init__(
        self, width: int, heads: int, feedforward: int, dropout: float, double_residual: bool
    ) -> None:
        super().__init__()
        self.attention = Attention(width, heads, bias=False)
        self.attention_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, feedforward)
        self.contract = nn.Linear(feedforward, width)
        self.feedforward_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.double_residual = double_residual

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [B, T, W], mask [B, T] -> [B, T, W]."""
        x = self.attention_norm(x + self.dropout(self.attention(x, x, mask)))
        hidden = self.contract(self.dropout(F.relu(self.expand(x))))
        if self.double_residual:
            hidden = hidden + x
        normalized: Tensor = self.feedforward_norm(x + self.dropout(hidden))
        return normalized


class ReadOut(nn.Module):
    """Recurrent layers without biases, and a pool of their states.

    Dropout lies between the layers. It is a module of its own, not that of the recurrent ones,
    whose generator on a GPU does not follow torch's.
    """

    def __init__(self, kind: type[nn.GRU | nn.LSTM], width: int, spec: ModelSpec) -> None:
        super().__init__()
        hidden = spec.va_recurrent
        self.layers = nn.ModuleList(
            kind(hidden if number else width, hidden, bias=False, batch_first=True)
            for number in range(spec.va_recurrent_layers)
        )
        self.dropout = nn.Dropout(spec.dropout)
        pools: Mapping[str, nn.Module] = {
            "published": LastPool(),
            "mean": MeanPool(),
            "attention": AttentionPool(hidden),
            "statistics": StatisticsPool(),
            "attentive-statistics": AttentiveStatisticsPool(hidden),
        }
        self.pool = pools[spec.pooling]
        self.out_width = hidden * (2 if spec.pooling.endswith("statistics") else 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [B, T, W], mask [B, T] with padding last -> [B, out_width]."""
        for number, layer in enumerate(self.layers):
            x, _ = layer(self.dropout(x) if number else x)
        pooled: Tensor = self.pool(x, mask)
        return pooled


class FrequencyConvolutions(nn.Module):
    """Convolutions along frequency of each frame's energies and deltas; none sees another frame.

    Two of stride 2 leave a quarter of the bands, in three times as many channels.
    """

    def __init__(self, channels: int, bands: int, width: int) -> None:
        super().__init__()
        wide = 3 * channels
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, (1, kernel), (1, stride), (0, padding), bias=False)
            for before, after, kernel, stride, padding in (
                (2, channels, 4, 2, 1),
                (channels, channels, 7, 1, 3),
                (channels, wide, 4, 2, 1),
                (wide, wide, 7, 1, 3),
            )
        )
        for convolution in self.convolutions:
            assert isinstance(convolution, nn.Conv2d)
            nn.init.xavier_uniform_(convolution.weight)
        if bands < 4:
            raise UsageError(
                f"model: the network reads log-mel energies, and the features have {bands} bands; "
                "use at least 4"
            )
        left = wide * (bands // 2 // 2)
        self.projection: nn.Linear | None = None
        if left != width:
            self.projection = nn.Linear(left, width, bias=False)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """states [B, T, bands], mask [B, T] -> [B, T, width]."""
        x = torch.stack((states, deltas(states, mask)), dim=1)
        last = len(self.convolutions) - 1
        for number, convolution in enumerate(self.convolutions):
            x = convolution(x)
            if number < last:
                x = F.relu(x)
        x = x.transpose(1, 2).flatten(2)
        return x if self.projection is None else self.projection(x)


def deltas(states: Tensor, mask: Tensor) -> Tensor:
    """First-order regression over 9 frames, sum n (x[t + n] - x[t - n]) / (2 sum n^2).

    Beyond its ends a clip goes on with its first and last frame, wherever its padding ends.
    states [B, T, D], mask [B, T] with padding last -> [B, T, D], zero at padding.
    """
    position = torch.arange(states.shape[1], device=states.device)
    last = (mask.sum(dim=1, keepdim=True) - 1).clamp(min=0)

    def at(index: Tensor) -> Tensor:
        return states.gather(1, index[:, :, None].expand(-1, -1, states.shape[2]))

    total = torch.zeros_like(states)
    for n in range(1, DELTA_REACH + 1):
        ahead = torch.minimum(position + n, last)
        behind = torch.minimum((position - n).clamp(min=0), last)
        total = total + n * (at(ahead) - at(behind))
    norm = 2 * sum(n * n for n in range(1, DELTA_REACH + 1))
    return (total / norm).masked_fill(~mask[:, :, None], 0.0)


class BranchNetwork(Network):
    """One modality: `va-audio` and `va-text`."""

    def __init__(self, spec: ModelSpec, audio_dim: int, text_dim: int) -> None:
        super().__init__(spec, audio_dim, text_dim)
        self.front = self.make_front()
        self.positions = Positions(spec.width, scaled=False) if spec.va_positions else None
        self.layers = _layers(spec)
        self.read_out = ReadOut(nn.GRU, spec.width, spec)
        self.pooled_dim = self.read_out.out_width
        self.classifier = _classifier(self.pooled_dim, spec.outputs)

    def make_front(self) -> nn.Module:
        """From (states [B, T, D], mask) to states of the network's width at the same positions."""
        raise NotImplementedError

    def sequence(self, stream: Stream) -> Stream:
        """States before the read-out, of a stream of stored states."""
        [(states, mask)] = self.read([stream])
        if self.spec.audio_stride > 1:
            states, mask = join_frames(states, mask, self.spec.audio_stride)
        x = self.front(states, mask)
        if self.positions is not None:
            x = self.positions(x)
        for layer in self.layers:
            x = layer(x, mask)
        return x.masked_fill(~mask[:, :, None], 0.0), mask

    def outputs(self, sequence: Stream, mixing: Tensor | None) -> tuple[Tensor, Tensor]:
        """Unscaled outputs [B, outputs] and pooled states of a sequence."""
        pooled = mix(self.read_out(*sequence), mixing)
        return self.classifier(pooled), pooled

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
        [stream] = self.streams(audio, audio_mask, text, text_mask)
        sequence = self.sequence(stream)
        outputs, pooled = self.outputs(sequence, mixing)
        kept = {self.modalities[0]: sequence} if self.keeps_sequences else None
        return self.output(outputs, pooled, kept)


class AudioNetwork(BranchNetwork):
    """Log-mel energies and their deltas."""

    def make_front(self) -> nn.Module:
        bands = self.reader("audio").width
        return FrequencyConvolutions(self.spec.front_channels, bands, self.spec.width)


class TokenProjection(nn.Module):
    """Token states at the network's width; those that have it pass unchanged."""

    def __init__(self, text_width: int, width: int) -> None:
        super().__init__()
        self.linear = None if text_width == width else nn.Linear(text_width, width, bias=False)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        return states if self.linear is None else self.linear(states)


class TextNetwork(BranchNetwork):
    """Token states."""

    def make_front(self) -> nn.Module:
        return TokenProjection(self.reader("text").width, self.spec.width)


class FusionNetwork(Network):
    """Both branches, whose sequences are one sequence of the layers that classify.

    A dimension that a branch predicts is that of the branch; any other is read with the classes.
    Of a branch whose dimension is no task, the read-out is not trained.
    """

    def __init__(self, spec: ModelSpec, audio_dim: int, text_dim: int) -> None:
        super().__init__(spec, audio_dim, text_dim)
        self.standardize = None  # the branches have their own
        self.audio = AudioNetwork(branch_spec(spec, "audio"), audio_dim, text_dim)
        self.text = TextNetwork(branch_spec(spec, "text"), audio_dim, text_dim)
        self.of_branch = {spec.va_audio_dimension: self.audio, spec.va_text_dimension: self.text}
        self.positions: Positions | None = None
        self.modality: nn.Embedding | None = None
        if spec.va_positions:
            self.positions = Positions(spec.width, scaled=False)
            self.modality = nn.Embedding(2, spec.width)
        self.layers = _layers(spec)
        self.read_out = ReadOut(nn.LSTM, spec.width, spec)
        self.pooled_dim = self.read_out.out_width
        own = [name for name in spec.dimensions if name not in self.of_branch]
        self.classifier = _classifier(self.pooled_dim, spec.num_classes + len(own))
        for dimension, branch in self.of_branch.items():
            if spec.va_frozen:
                branch.requires_grad_(False)
            elif dimension not in spec.dimensions:
                branch.read_out.requires_grad_(False)
                branch.classifier.requires_grad_(False)

    def train(self, mode: bool = True) -> FusionNetwork:
        super().train(mode)
        if self.spec.va_frozen:
            self.audio.eval()
            self.text.eval()
        return self

    @property
    def standardizes(self) -> bool:
        return self.audio.standardizes or self.text.standardizes

    def fit_standardization(self, statistics: StateMoments) -> None:
        self.audio.fit_standardization(statistics)
        self.text.fit_standardization(statistics)

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
        branches = (self.audio, self.text)
        sequences = [
            branch.sequence(stream) for branch, stream in zip(branches, streams, strict=True)
        ]
        placed = [self._placed(number, states) for number, (states, _) in enumerate(sequences)]
        x, mask = torch.cat(placed, dim=1), torch.cat([own for _, own in sequences], dim=1)
        for layer in self.layers:
            x = layer(x, mask)
        pooled = mix(self.read_out(*_without_gaps(x, mask)), mixing)
        kept = None
        if self.keeps_sequences:
            frames = sequences[0][0].shape[1]
            kept = {
                "audio": _zeroed(x[:, :frames], mask[:, :frames]),
                "text": _zeroed(x[:, frames:], mask[:, frames:]),
            }
        outputs = self.classifier(pooled)
        if not self.spec.dimensions:
            return self.output(outputs, pooled, kept)
        of_branch = {
            name: branch.outputs(sequence, mixing)[0]
            for (name, branch), sequence in zip(self.of_branch.items(), sequences, strict=True)
            if name in self.spec.dimensions
        }
        classes = self.spec.num_classes
        own = iter(outputs[:, classes:].split(1, dim=1))
        values = [
            of_branch[name] if name in of_branch else next(own) for name in self.spec.dimensions
        ]
        return self.output(torch.cat((outputs[:, :classes], *values), dim=1), pooled, kept)

    def _placed(self, number: int, states: Tensor) -> Tensor:
        """Sequence of the audio (0) or text (1) with positions and modality, if the spec asks."""
        if self.positions is None or self.modality is None:
            return states
        placed: Tensor = self.positions(states) + self.modality.weight[number]
        return placed


def _layers(spec: ModelSpec) -> nn.ModuleList:
    return nn.ModuleList(
        EncoderLayer(
            spec.width, spec.heads, spec.feedforward, spec.dropout, spec.va_double_residual
        )
        for _ in range(spec.layers)
    )


def _classifier(width: int, outputs: int) -> nn.Linear:
    linear = nn.Linear(width, outputs)
    nn.init.xavier_uniform_(linear.weight)
    return linear


def _zeroed(states: Tensor, mask: Tensor) -> Stream:
    return states.masked_fill(~mask[:, :, None], 0.0), mask


def _without_gaps(states: Tensor, mask: Tensor) -> Stream:
    """The sequence [B, T, W] with all its padding last, its other positions in their order."""
    order = torch.argsort((~mask).to(torch.int8), dim=1, stable=True)
    return states.gather(1, order[:, :, None].expand_as(states)), mask.gather(1, order)
