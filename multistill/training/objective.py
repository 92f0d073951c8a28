"""What a task minimises: labels alone, or labels and a teacher."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from multistill.config import CLASSES, TrainConfig
from multistill.distillation.losses import distillation_loss
from multistill.distillation.schedule import scheduled_weight
from multistill.evaluation.metrics import from_confusion
from multistill.models.losses import class_weights, label_loss
from multistill.training.data import Floats, Rows
from multistill.training.supply import Piece
from multistill.training.task import TrainingTask

Objective = Callable[[Tensor, Piece, float], Tensor]
"""(logits [b, 7], piece, share of the training's steps that are done) -> losses [b]."""


def objective(task: TrainingTask, train: Rows, device: torch.device) -> Objective:
    """The loss of each utterance under a task.

    Args:
        train: class weights count its labels.
    """
    config = task.train_config
    weights = class_weights(torch.from_numpy(train.shares), config.class_weights)
    if weights is not None:
        weights = weights.to(device)
    distillation = task.distillation_config
    if distillation is None:

        def from_labels(logits: Tensor, piece: Piece, progress: float) -> Tensor:
            return label_loss(
                logits, piece.shares, piece.winner, config.loss, config.label_source, weights
            )

        return from_labels

    def from_teacher(logits: Tensor, piece: Piece, progress: float) -> Tensor:
        assert piece.teacher is not None
        return distillation_loss(
            logits,
            piece.teacher,
            piece.shares,
            piece.winner,
            loss=distillation.loss,
            temperature=distillation.temperature,
            weight=scheduled_weight(
                distillation.weight, distillation.schedule, progress, distillation.schedule_share
            ),
            standardize=distillation.standardize,
            dkd_alpha=distillation.dkd_alpha,
            dkd_beta=distillation.dkd_beta,
            label_kind=config.loss,
            label_source=config.label_source,
            class_weights=weights,
        ).total

    return from_teacher


def scores(config: TrainConfig, logits: Floats, rows: Rows) -> dict[str, float]:
    """loss, accuracy, uar, macro_f1 and weighted_f1 of logits [N, 7], as the report defines them.

    The loss is the label loss without class weights: comparable between weightings, and
    between students with and without a teacher. Ties count for the loss only.
    """
    losses = label_loss(
        torch.from_numpy(logits),
        torch.from_numpy(rows.shares),
        torch.from_numpy(rows.winner),
        config.loss,
        config.label_source,
    )
    confusion = np.zeros((len(CLASSES), len(CLASSES)))
    decided = rows.winner >= 0
    np.add.at(confusion, (rows.winner[decided], logits[decided].argmax(axis=1)), 1)
    hard = {name: float(value) for name, value in from_confusion(confusion).items()}
    return {"loss": float(losses.double().mean()), **hard}


def sampling_weights(shares: Floats) -> npt.NDArray[np.float64]:
    """Chance of each row [N] to be drawn, so that all classes weigh the same in an epoch.

    A row with mixed votes counts for each class by its share.
    """
    counts = shares.sum(axis=0, dtype=np.float64)
    inverse = np.divide(1.0, counts, out=np.zeros_like(counts), where=counts > 0)
    weights = shares @ inverse
    return np.asarray(weights / weights.sum())
