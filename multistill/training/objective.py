"""The loss of a task, from labels alone or from labels and a teacher, and validation metrics."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from multistill.config import TrainConfig
from multistill.distillation.losses import distillation_loss
from multistill.distillation.representations import Hint, LinearCKA
from multistill.distillation.schedule import scheduled_weight
from multistill.metrics.classification import from_confusion
from multistill.models.build import ModelOutput
from multistill.models.losses import class_weights, label_loss
from multistill.training.data import Examples
from multistill.training.prefetch import MicroBatch
from multistill.training.task import TrainingTask
from multistill.typing import FloatArray


class Objective(nn.Module):
    """Loss of each utterance under a task.

    The parameters of the objective (a hint's projection) are trained together with the model and
    saved in checkpoints, but are not part of the model.

    Args:
        train: training examples, for class weights and the width of the teacher's states.
        pooled_dim: width of the model's pooled states.
    """

    class_weights: Tensor | None

    def __init__(self, task: TrainingTask, train: Examples, pooled_dim: int) -> None:
        super().__init__()
        self.config, self.distillation = task.train, task.distillation
        shares = torch.from_numpy(train.shares[train.labelled])
        weights = class_weights(shares, self.config.class_weights)
        self.register_buffer("class_weights", weights, persistent=False)
        self.hint: Hint | None = None
        self.cka: LinearCKA | None = None
        teacher, distillation = train.teacher_states, self.distillation
        if teacher is not None and distillation is not None:
            if distillation.hint_weight:
                self.hint = Hint(pooled_dim, teacher.states.shape[1], teacher.num_spaces)
            if distillation.cka_weight:
                self.cka = LinearCKA(teacher.num_spaces)

    @property
    def depends_on_batch(self) -> bool:
        """Whether the loss of a row depends on the other rows of its micro-batch."""
        distillation = self.distillation
        return self.cka is not None or (distillation is not None and distillation.loss == "dist")

    def forward(self, output: ModelOutput, micro_batch: MicroBatch, progress: float) -> Tensor:
        """Losses [b].

        Args:
            progress: share of the training's steps that are done.
        """
        logits = output.logits.float()
        config, distillation = self.config, self.distillation
        if distillation is None:
            return label_loss(
                logits,
                micro_batch.shares,
                micro_batch.labels,
                config.loss,
                config.label_source,
                self.class_weights,
                config.label_smoothing,
            )
        assert micro_batch.teacher_logits is not None

        def scheduled(weight: float) -> float:
            return scheduled_weight(
                weight, distillation.schedule, progress, distillation.schedule_share
            )

        losses = distillation_loss(
            logits,
            micro_batch.teacher_logits,
            micro_batch.shares,
            micro_batch.labels,
            loss=distillation.loss,
            temperature=distillation.temperature,
            weight=scheduled(distillation.weight),
            standardize=distillation.standardize,
            dkd_alpha=distillation.dkd_alpha,
            dkd_beta=distillation.dkd_beta,
            label_kind=config.loss,
            label_source=config.label_source,
            class_weights=self.class_weights,
            label_smoothing=config.label_smoothing,
            label_weights=micro_batch.label_weights,
        )
        for weight, module in (
            (distillation.hint_weight, self.hint),
            (distillation.cka_weight, self.cka),
        ):
            if module is not None:
                states, space = micro_batch.teacher_states, micro_batch.space
                losses = losses + scheduled(weight) * module(output.pooled.float(), states, space)
        return losses


def validation_metrics(
    config: TrainConfig, logits: FloatArray, examples: Examples
) -> dict[str, float]:
    """loss, accuracy, uar, macro_f1 and weighted_f1 of logits [N, C], as in the report.

    The loss is the label loss without class weights and label smoothing, so that it is comparable
    between their settings, and between students with and without a teacher. Rows whose votes tie
    contribute to the loss only.
    """
    losses = label_loss(
        torch.from_numpy(logits),
        torch.from_numpy(examples.shares),
        torch.from_numpy(examples.labels),
        config.loss,
        config.label_source,
    )
    confusion = np.zeros((logits.shape[1], logits.shape[1]))
    labelled = examples.labels >= 0
    np.add.at(confusion, (examples.labels[labelled], logits[labelled].argmax(axis=1)), 1)
    metrics = {name: float(value) for name, value in from_confusion(confusion).items()}
    return {"loss": float(losses.double().mean()), **metrics}


def sampling_weights(shares: FloatArray) -> npt.NDArray[np.float64]:
    """Probability of drawing each row [N] under which all classes have equal weight.

    A row with mixed votes counts for each class by its share.
    """
    counts = shares.sum(axis=0, dtype=np.float64)
    inverse = np.divide(1.0, counts, out=np.zeros_like(counts), where=counts > 0)
    weights = shares @ inverse
    return np.asarray(weights / weights.sum())
