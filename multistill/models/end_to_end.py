"""`EndToEnd`: log-mel chunks and text, trained end to end (FE2E and MESM, Dai et al. 2021).

Log-mel energies are cut into chunks, each is an image that a VGG-like network turns into one
state, and a transformer reads the chunks. The text is one state, the encoder's, which is meant to
be trained with the network (`features.text.train`). Each modality has logits of its own, and the
two meet in a late fusion. In MESM, the text also chooses which points of a chunk are computed
(`multistill.models.sparse`). Video, the third modality of both, is left out.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multistill.models.base import ModelOutput, Network, mix
from multistill.models.fusion import Stream
from multistill.models.layers import FirstPool, MeanPool, Positions
from multistill.models.sparse import PointConv, Stage, TextGuidedSelection, pool_points
from multistill.models.spec import ModelSpec

STAGES = 3
"""Stages after the stem; each doubles the channels and halves bands and frames."""


class ChunkNetwork(nn.Module):
    """A stem at half the resolution and three stages, from a chunk to one state of the width.

    Args:
        bands: values of a frame, neighbours in frequency.
        query_dim: width of the text that selects points; None: all are computed.
    """

    def __init__(self, spec: ModelSpec, bands: int, query_dim: int | None) -> None:
        super().__init__()
        channels, kind = spec.front_channels, spec.chunk_normalization
        self.input = PointConv(1, channels, 5, kind)
        self.stem = nn.ModuleList(PointConv(channels, channels, 3, kind) for _ in range(4))
        self.stages = nn.ModuleList()
        height, width = _halved(bands), _halved(spec.chunk_frames)
        for _ in range(STAGES):
            selection = None
            if query_dim is not None:
                selection = TextGuidedSelection(
                    channels, query_dim, spec.top_p, spec.selection_gradient
                )
            self.stages.append(Stage(channels, 2 * channels, kind, selection))
            channels, height, width = 2 * channels, _halved(height), _halved(width)
        self.hidden = nn.Linear(channels * height * width, spec.chunk_hidden)
        self.projection = nn.Linear(spec.chunk_hidden, spec.width)

    def forward(self, chunks: Tensor, mask: Tensor, query: Tensor | None) -> Tensor:
        """Chunks [N, bands, frames] with mask [N, frames], query [N, D] -> [N, width]."""
        x = chunks[:, None]
        points = mask[:, None, :].expand(chunks.shape)
        x, points = pool_points(self.input(x, points), points)
        for layer in self.stem:
            x = layer(x, points)
        for stage in self.stages:
            x, points = stage(x, points, query)
        result: Tensor = self.projection(F.relu(self.hidden(x.flatten(1))))
        return result


class ChunkTransformer(nn.Module):
    """A transformer over the chunks of a clip with a learnt first position, as published post-norm.

    Args:
        positions: whether the order of the chunks is known to it.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(spec.width) / math.sqrt(spec.width))
        self.positions = Positions(spec.width) if spec.chunk_positions else None
        layer = nn.TransformerEncoderLayer(
            spec.width, spec.heads, spec.feedforward, spec.dropout, batch_first=True
        )
        # Nested tensors would make the length of the output that of the longest clip.
        self.layers = nn.TransformerEncoder(layer, spec.layers, enable_nested_tensor=False)

    def forward(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """States [B, S, W] with mask [B, S] -> first position [B, W], the chunks [B, S, W]."""
        first = self.first.to(states.dtype).expand(len(states), 1, -1)
        x = torch.cat((first, states.masked_fill(~mask[..., None], 0.0)), dim=1)
        if self.positions is not None:
            x = self.positions(x)
        x = self.layers(x, src_key_padding_mask=F.pad(~mask, (1, 0), value=False))
        return x[:, 0], x[:, 1:].masked_fill(~mask[..., None], 0.0)


class LateFusion(nn.Module):
    """The outputs of audio and text as one; those of a missing modality do not count.

    `weighted`: one learnt weight for each modality, as published. `gated`: a convex combination
    for each output, with weights that follow from both states (Arevalo et al. 2017, section 3.2).
    """

    def __init__(self, spec: ModelSpec, pooled_dim: int) -> None:
        super().__init__()
        gated = spec.late_fusion == "gated"
        self.weights = None if gated else nn.Linear(2, 1, bias=False)
        self.gate = nn.Linear(pooled_dim, 2 * spec.outputs) if gated else None

    def forward(self, outputs: Tensor, pooled: Tensor, present: Tensor) -> Tensor:
        """Outputs [B, C, 2] of audio and text, pooled [B, D], present bool [B, 2] -> [B, C]."""
        present = (present | ~present.any(dim=1, keepdim=True))[:, None]
        if self.weights is not None:
            result: Tensor = self.weights(outputs * present).squeeze(-1)
            return result
        assert self.gate is not None
        scores = self.gate(pooled).view(outputs.shape).masked_fill(~present, -torch.inf)
        return (scores.softmax(dim=-1) * outputs).sum(dim=-1)


class EndToEnd(Network):
    """FE2E; as MESM (`network: mesm`) with points that the text selects.

    With `top_p` 1, MESM is FE2E without the biases of the convolutions of its stages.
    """

    classifiers = ("audio_head", "text_head", "fusion.weights", "fusion.gate")

    def __init__(self, spec: ModelSpec, audio_dim: int, text_dim: int) -> None:
        super().__init__(spec, audio_dim, text_dim)
        bands, query = self.reader("audio").width, self.reader("text").width
        self.chunk_network = ChunkNetwork(spec, bands, query if spec.network == "mesm" else None)
        self.chunk_transformer = ChunkTransformer(spec)
        self.dropout = nn.Dropout(spec.classifier_dropout)
        self.audio_head = nn.Linear(spec.width, spec.outputs)
        self.text_pool = FirstPool() if spec.pooling == "published" else MeanPool()
        self.text_head = nn.Linear(query, spec.outputs)
        self.pooled_dim = spec.width + query
        self.fusion = LateFusion(spec, self.pooled_dim)
        self.null_text: nn.Parameter | None = None
        if spec.null_text:
            self.null_text = nn.Parameter(torch.randn(query) / math.sqrt(query))

    @property
    def frame_width(self) -> int:
        """A frame is largest after the first convolution."""
        return self.reader("audio").width * self.spec.front_channels

    @property
    def depends_on_batch(self) -> bool:
        return self.spec.chunk_normalization == "batch"

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
        """See `Network.forward`; there is no context."""
        streams = self.read(self.streams(audio, audio_mask, text, text_mask))
        query = self._query(*streams[1])
        chunks, mask = in_chunks(*streams[0], self.spec.chunk_frames)
        batch, count = mask.shape[:2]
        states = self.chunk_network(
            chunks.flatten(0, 1).transpose(1, 2),
            mask.flatten(0, 1),
            query.repeat_interleave(count, dim=0),
        ).view(batch, count, self.spec.width)
        kept = mask.any(dim=2)
        pooled, sequence = self.chunk_transformer(states, kept)
        pooled = mix(torch.cat((pooled, query.to(pooled.dtype)), dim=1), mixing)
        outputs = self._outputs(pooled, [stream_mask.any(dim=1) for _, stream_mask in streams])
        sequences = {"audio": (sequence, kept)} if self.keeps_sequences else None
        return self.output(outputs, pooled, sequences)

    def _query(self, states: Tensor, mask: Tensor) -> Tensor:
        """The text as one state [B, D]; the learnt one of a clip without text."""
        query: Tensor = self.text_pool(states, mask)
        if self.null_text is None:
            return query
        return torch.where(mask.any(dim=1, keepdim=True), query, self.null_text.to(query.dtype))

    def _outputs(self, pooled: Tensor, present: list[Tensor]) -> Tensor:
        """Outputs [B, C] of pooled states [B, D]; of a mixture, a modality of either is present."""
        width = self.spec.width
        audio = self.audio_head(self.dropout(pooled[:, :width]))
        text = self.text_head(self.dropout(pooled[:, width:]))
        both = torch.stack(present, dim=1)
        if len(both) != len(pooled):
            both = both[: len(pooled)] | both[len(pooled) :]
        fused: Tensor = self.fusion(torch.stack((audio, text), dim=2), pooled, both)
        return fused


def in_chunks(states: Tensor, mask: Tensor, frames: int) -> Stream:
    """States [B, T, D] with mask [B, T] -> [B, S, frames, D] with mask [B, S, frames].

    S is T / frames rounded up; the last chunk is filled with padding.
    """
    missing = -states.shape[1] % frames
    states, mask = F.pad(states, (0, 0, 0, missing)), F.pad(mask, (0, missing), value=False)
    return states.unflatten(1, (-1, frames)), mask.unflatten(1, (-1, frames))


def _halved(size: int) -> int:
    return (size + 1) // 2
