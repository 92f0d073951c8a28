"""Previous turns of the dialogue.

Contract: `context` is [B, K, text_dim + audio_dim] with one row per previous turn of the
same dialogue, the nearest first: the mean of that turn's text states, then the mean of its
audio states (zeros where the turn has none). `context_mask` [B, K] is True where there was
such a turn. A text model reads the text part only, an audio model the audio part only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from multistill.models.layers import Attention
from multistill.models.spec import ModelSpec


class ContextReader(nn.Module):
    """The utterance's pooled vector attends to its previous turns -> [B, width].

    Zeros where there was no turn, so the first utterance of a dialogue needs no special case.
    """

    def __init__(self, spec: ModelSpec, audio_dim: int, text_dim: int, pooled_dim: int) -> None:
        super().__init__()
        self.turns = spec.context_turns
        self.reads_audio, self.reads_text = spec.reads_audio, spec.reads_text
        self.audio_dim, self.text_dim = audio_dim, text_dim
        turn_dim = text_dim * spec.reads_text + audio_dim * spec.reads_audio
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
        """Read at most `turns` turns.

        Args:
            present: bool [B] per stream, audio first: what is missing now is not read earlier.
        """
        if context is None:
            context = pooled.new_zeros(pooled.shape[0], 1, self.text_dim + self.audio_dim)
            context_mask = torch.zeros(pooled.shape[0], 1, dtype=torch.bool, device=pooled.device)
        elif context_mask is None:
            context_mask = torch.ones(context.shape[:2], dtype=torch.bool, device=context.device)
        assert context_mask is not None
        context, context_mask = context[:, : self.turns], context_mask[:, : self.turns]
        context = context.masked_fill(~context_mask[:, :, None], 0.0)
        parts = []
        if self.reads_text:
            parts.append(_where_present(context[:, :, : self.text_dim], present[-1]))
        if self.reads_audio:
            parts.append(_where_present(context[:, :, self.text_dim :], present[0]))
        turns = self.turn(torch.cat(parts, dim=-1)) + self.distance[: context.shape[1]]
        question = self.question(pooled)[:, None, :]
        attended = self.attention(self.norm(question), self.norm(turns), context_mask)
        return attended[:, 0]


def _where_present(part: Tensor, present: Tensor) -> Tensor:
    return part.masked_fill(~present[:, None, None], 0.0)


def previous_turns(dialogues: Sequence[str], turns: Sequence[int], count: int) -> np.ndarray:
    """Row numbers of the `count` turns before each row in its dialogue, nearest first.

    Returns:
        int64 [N, count], -1 where there is no such turn. Rows of equal turn number keep
        their order.
    """
    found = np.full((len(turns), count), -1, dtype=np.int64)
    order = sorted(range(len(turns)), key=lambda row: (dialogues[row], turns[row], row))
    for place, row in enumerate(order):
        for back in range(1, min(count, place) + 1):
            earlier = order[place - back]
            if dialogues[earlier] != dialogues[row]:
                break
            found[row, back - 1] = earlier
    return found


class States(Protocol):
    """What is asked of the feature store."""

    audio_dim: int
    text_dim: int

    def audio(self, utterance_id: str, /) -> np.ndarray: ...

    def text(self, utterance_id: str, /) -> np.ndarray: ...

    def __contains__(self, utterance_id: str, /) -> bool: ...


def mean_states(store: States, ids: Sequence[str]) -> np.ndarray:
    """Mean text states, then mean audio states, of each utterance: float32 [N, Dt + Da].

    Zeros for an empty transcript and for utterances that the store does not hold.
    """
    result = np.zeros((len(ids), store.text_dim + store.audio_dim), dtype=np.float32)
    for row, utterance_id in enumerate(ids):
        if utterance_id not in store:
            continue
        for states, start in (
            (store.text(utterance_id), 0),
            (store.audio(utterance_id), store.text_dim),
        ):
            if len(states):
                mean = np.asarray(states, dtype=np.float32).mean(axis=0)
                result[row, start : start + mean.shape[0]] = mean
    return result


class DialogueContext:
    """Context of any utterance of a manifest, from states pooled once.

    Args:
        columns: the manifest's `utterance_id`, `dialogue` and `turn` of ALL splits: a test
            utterance's past is its own dialogue, which the split keeps on one side.
    """

    def __init__(self, store: States, columns: Mapping[str, Sequence[Any]], turns: int) -> None:
        ids = list(columns["utterance_id"])
        self._rows = {utterance_id: row for row, utterance_id in enumerate(ids)}
        self._previous = previous_turns(columns["dialogue"], columns["turn"], turns)
        self._states = mean_states(store, ids)

    def batch(self, ids: Sequence[str]) -> tuple[Tensor, Tensor]:
        """context float32 [B, K, Dt + Da] and context_mask bool [B, K]."""
        previous = self._previous[[self._rows[utterance_id] for utterance_id in ids]]
        mask = previous >= 0
        states = self._states[np.where(mask, previous, 0)] * mask[:, :, None]
        return torch.from_numpy(states), torch.from_numpy(mask)
