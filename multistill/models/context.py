"""Previous turns of the dialogue: the tensors that describe them and the module that reads them.

`context` is [B, K, text_dim + audio_dim] with one row per previous turn of the same dialogue,
nearest first: the mean of that turn's text states, then the mean of its audio states (zeros if
the turn has none). `context_mask` [B, K] is False where the dialogue has no such turn. A text
model reads the text part only, an audio model the audio part only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from multistill.models.layers import Attention
from multistill.models.spec import ModelSpec


class ContextReader(nn.Module):
    """Attention from an utterance's pooled vector to its previous turns -> [B, width].

    Of the states of a turn it gets what the head reads of an utterance's: `audio_width` and
    `text_width` values (`multistill.models.reading`).

    The output is zero without previous turns, so the first utterance of a dialogue needs no
    special case.
    """

    def __init__(self, spec: ModelSpec, audio_width: int, text_width: int, pooled_dim: int) -> None:
        super().__init__()
        self.turns = spec.context_turns
        self.reads_audio, self.reads_text = spec.reads_audio, spec.reads_text
        self.audio_width, self.text_width = audio_width, text_width
        turn_dim = text_width * spec.reads_text + audio_width * spec.reads_audio
        self.turn = nn.Linear(turn_dim, spec.width)
        self.distance = nn.Parameter(torch.empty(spec.context_turns, spec.width))
        nn.init.normal_(self.distance, std=0.02)
        self.question = nn.Linear(pooled_dim, spec.width)
        self.norm = nn.LayerNorm(spec.width)
        self.attention = Attention(spec.width, spec.heads)

    def forward(
        self,
        pooled: Tensor,
        context: Tensor | None,
        context_mask: Tensor | None,
        present: Sequence[Tensor],
    ) -> Tensor:
        """Attend to the nearest `turns` turns.

        Args:
            present: bool [B] per stream, audio first. A modality that the utterance lacks is
                not read from its previous turns either.
        """
        if context is None:
            context = pooled.new_zeros(pooled.shape[0], 1, self.text_width + self.audio_width)
            context_mask = torch.zeros(pooled.shape[0], 1, dtype=torch.bool, device=pooled.device)
        elif context_mask is None:
            context_mask = torch.ones(context.shape[:2], dtype=torch.bool, device=context.device)
        assert context_mask is not None
        context, context_mask = context[:, : self.turns], context_mask[:, : self.turns]
        context = context.masked_fill(~context_mask[:, :, None], 0.0)
        parts = []
        if self.reads_text:
            parts.append(_mask_missing(context[:, :, : self.text_width], present[-1]))
        if self.reads_audio:
            parts.append(_mask_missing(context[:, :, self.text_width :], present[0]))
        turns = self.turn(torch.cat(parts, dim=-1)) + self.distance[: context.shape[1]]
        query = self.question(pooled)[:, None, :]
        attended = self.attention(self.norm(query), self.norm(turns), context_mask)
        return attended[:, 0]


def _mask_missing(part: Tensor, present: Tensor) -> Tensor:
    return part.masked_fill(~present[:, None, None], 0.0)


def previous_turns(dialogues: Sequence[str], turns: Sequence[int], count: int) -> np.ndarray:
    """Row indices of the `count` turns before each row in its dialogue, nearest first.

    Returns:
        int64 [N, count], -1 where the dialogue has no such turn. Rows with equal turn numbers
        keep their order.
    """
    previous = np.full((len(turns), count), -1, dtype=np.int64)
    order = sorted(range(len(turns)), key=lambda row: (dialogues[row], turns[row], row))
    for position, row in enumerate(order):
        for back in range(1, min(count, position) + 1):
            earlier = order[position - back]
            if dialogues[earlier] != dialogues[row]:
                break
            previous[row, back - 1] = earlier
    return previous


class StateStore(Protocol):
    """The part of the feature store's interface that this module uses."""

    audio_dim: int
    text_dim: int

    def each(self, modality: str, ids: Iterable[str], /) -> Iterator[np.ndarray]: ...

    def __contains__(self, utterance_id: str, /) -> bool: ...


def mean_states(store: StateStore, ids: Sequence[str]) -> np.ndarray:
    """Mean text states, then mean audio states, of each utterance: float32 [N, Dt + Da].

    Zeros for an empty transcript and for utterances that are not in the store.
    """
    result = np.zeros((len(ids), store.text_dim + store.audio_dim), dtype=np.float32)
    stored = [(row, name) for row, name in enumerate(ids) if name in store]
    names = [name for _, name in stored]
    for modality, start in (("text", 0), ("audio", store.text_dim)):
        for (row, _), states in zip(stored, store.each(modality, names), strict=True):
            if len(states):
                mean = np.asarray(states, dtype=np.float32).mean(axis=0)
                result[row, start : start + mean.shape[0]] = mean
    return result


class DialogueContext:
    """Context tensors of any utterance of a manifest; states are averaged once, on construction.

    Args:
        columns: `utterance_id`, `dialogue` and `turn` of the manifest, ALL splits included: a
            test utterance needs its own dialogue, which lies entirely in one split.
    """

    def __init__(self, store: StateStore, columns: Mapping[str, Sequence[Any]], turns: int) -> None:
        ids = list(columns["utterance_id"])
        self._rows = {utterance_id: row for row, utterance_id in enumerate(ids)}
        self._previous = previous_turns(columns["dialogue"], columns["turn"], turns)
        self._states = mean_states(store, ids)

    def batch(self, ids: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return `context` float32 [B, K, Dt + Da] and `context_mask` bool [B, K]."""
        previous = self._previous[[self._rows[utterance_id] for utterance_id in ids]]
        mask = previous >= 0
        states = self._states[np.where(mask, previous, 0)] * mask[:, :, None]
        return torch.from_numpy(states), torch.from_numpy(mask)
