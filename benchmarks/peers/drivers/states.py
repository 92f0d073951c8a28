"""Stored states and the network for the peers that train: what multistill's own loop gets too.

`states/NAME.npy` holds float32 [T, D] of a clip.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from spec import CLASSES, HEAD, read_corpus
from torch import Tensor, nn

from multistill.models.build import build
from multistill.models.presets import resolve

NAMES = sorted(CLASSES.values())

Item = tuple[Tensor, int]
Batch = tuple[Tensor, Tensor, Tensor]


def load_part(given: dict[str, Any], part: str) -> list[Item]:
    """States and class of the part's clips, all in memory."""
    rows = [row for row in read_corpus(Path(given["corpus"])) if row["split"] == part]
    folder = Path(given["states"])
    return [
        (
            torch.from_numpy(np.load(folder / f"{row['utterance_id']}.npy")),
            NAMES.index(row["label"]),
        )
        for row in rows
    ]


def pad(sequences: list[Tensor]) -> tuple[Tensor, Tensor]:
    """States [B, T, D] and mask [B, T], False at padding."""
    lengths = torch.tensor([len(states) for states in sequences])
    padded = nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    return padded, torch.arange(padded.shape[1])[None] < lengths[:, None]


def collate(items: list[Item]) -> Batch:
    states, mask = pad([states for states, _ in items])
    return states, mask, torch.tensor([label for _, label in items])


class Head(nn.Module):
    """Logits [B, C] of states [B, T, D] and a mask [B, T]."""

    def __init__(self, dim: int, classifier_dropout: float | None = None) -> None:
        super().__init__()
        changed = {} if classifier_dropout is None else {"classifier_dropout": classifier_dropout}
        settings: dict[str, Any] = {**HEAD, **changed, "num_classes": len(NAMES)}
        spec = resolve(settings.pop("preset"), settings)
        self.network = build(spec, dim, 0)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        logits: Tensor = self.network(states, mask).logits
        return logits


def uar(labels: Tensor, answers: Tensor) -> float:
    """Recall of the classes that occur, unweighted mean."""
    recalls = [
        (answers[labels == label] == label).float().mean() for label in labels.unique().tolist()
    ]
    return float(torch.stack(recalls).mean())
