"""The loss of a task, from labels alone or from labels and a teacher, and validation metrics."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from multistill.config import TrainConfig
from multistill.distillation.losses import distillation_loss
from multistill.distillation.representations import Hint, LinearCKA, Relations, SequenceHint
from multistill.distillation.schedule import scheduled_weight
from multistill.metrics.classification import from_confusion
from multistill.metrics.dimensions import dimension_metrics
from multistill.models.base import ModelOutput
from multistill.models.dimensions import dimension_loss
from multistill.models.losses import class_weights, label_loss
from multistill.training.examples import Examples
from multistill.training.prefetch import MicroBatch
from multistill.training.task import TrainingTask
from multistill.typing import FloatArray


class Objective(nn.Module):
    """Loss of each utterance under a task.

    The parameters of the objective (the projections of hints) are trained together with the model
    and saved in checkpoints, but are not part of the model.

    Args:
        train: training examples, for class weights and the width of the teacher's states.
        pooled_dim: width of the model's pooled states.
    """

    class_weights: Tensor | None
    dimension_weights: Tensor

    def __init__(self, task: TrainingTask, train: Examples, pooled_dim: int) -> None:
        super().__init__()
        self.config, self.distillation = task.train, task.distillation
        self.classes_weight = task.tasks.get("classes", 0.0)
        weights_of = [task.tasks[name] for name in task.spec.dimensions]
        self.register_buffer("dimension_weights", torch.tensor(weights_of), persistent=False)
        self.per_value = _per_value(train.dimensions[train.own])
        soft = train.teacher_dimensions
        self.per_soft_value = None if soft is None else _per_value(soft)
        shares = torch.from_numpy(train.shares[train.labelled])
        weights = class_weights(shares, self.config.class_weights)
        self.register_buffer("class_weights", weights, persistent=False)
        self.hint: Hint | None = None
        self.cka: LinearCKA | None = None
        self.relations: Relations | None = None
        self.sequence_hints = nn.ModuleDict()
        teacher, distillation = train.teacher_states, self.distillation
        if teacher is not None and distillation is not None:
            if distillation.hint_weight:
                self.hint = Hint(pooled_dim, teacher.states.shape[1], teacher.num_spaces)
            if distillation.cka_weight:
                self.cka = LinearCKA(teacher.num_spaces)
            if distillation.relation_weight:
                self.relations = Relations(teacher.num_spaces)
            for name, (states, _) in teacher.sequences.items():
                self.sequence_hints[name] = SequenceHint(
                    task.spec.width, states.shape[1], teacher.num_spaces
                )

    @property
    def reads_sequences(self) -> bool:
        """Whether the model has to put out its sequences."""
        return len(self.sequence_hints) > 0

    @property
    def depends_on_batch(self) -> bool:
        """Whether the loss of a row depends on the other rows of its micro-batch."""
        distillation = self.distillation
        if len(self.dimension_weights) and self.config.dimension_loss != "mse":
            return True
        if self.cka is not None or self.relations is not None:
            return True
        return distillation is not None and distillation.loss == "dist"

    def forward(self, output: ModelOutput, micro_batch: MicroBatch, progress: float) -> Tensor:
        """Losses [b]; of a mixture, those against both clips by their shares (Zhang et al. 2018).

        For losses that are linear in the target, such as cross-entropy, and for squares up to a
        constant, this is the loss against the mixed target, of labels and of the teacher.

        Args:
            progress: share of the training's steps that are done.
        """
        losses = self._of_clips(output, micro_batch, progress)
        if micro_batch.partner is None or micro_batch.mixing is None:
            return losses
        return self._of_clips(output, micro_batch.partner, progress).lerp(
            losses, micro_batch.mixing
        )

    def _of_clips(self, output: ModelOutput, micro_batch: MicroBatch, progress: float) -> Tensor:
        """Losses [b] against the targets of a micro-batch."""
        distillation = self.distillation

        def scheduled(weight: float) -> float:
            if distillation is None:
                return 0.0
            return scheduled_weight(
                weight, distillation.schedule, progress, distillation.schedule_share
            )

        teacher = scheduled(distillation.weight) if distillation else 0.0
        losses = torch.zeros(len(micro_batch.labels), device=output.logits.device)
        if self.classes_weight:
            losses = self.classes_weight * self._of_classes(output, micro_batch, teacher)
        if output.dimensions is not None:
            losses = losses + self._of_dimensions(output.dimensions, micro_batch, teacher)
        if distillation is None:
            return losses
        for weight, module in (
            (distillation.hint_weight, self.hint),
            (distillation.cka_weight, self.cka),
            (distillation.relation_weight, self.relations),
        ):
            if module is not None:
                states, space = micro_batch.teacher_states, micro_batch.space
                losses = losses + scheduled(weight) * module(output.pooled.float(), states, space)
        if self.reads_sequences:
            weight = scheduled(distillation.sequence_weight) / len(self.sequence_hints)
            losses = losses + weight * self._of_sequences(output, micro_batch)
        return losses

    def _of_sequences(self, output: ModelOutput, micro_batch: MicroBatch) -> Tensor:
        """Sum of the losses of the modalities [b]."""
        assert output.sequences is not None and micro_batch.space is not None
        losses = torch.zeros(len(micro_batch.labels), device=output.logits.device)
        for name, hint in self.sequence_hints.items():
            states, mask = output.sequences[name]
            losses = losses + hint(
                states.float(), mask, *micro_batch.teacher_sequences[name], micro_batch.space
            )
        return losses

    def _of_classes(self, output: ModelOutput, micro_batch: MicroBatch, teacher: float) -> Tensor:
        """Losses of the classes [b].

        Args:
            teacher: weight of the teacher's loss.
        """
        logits = output.logits.float()
        config, distillation = self.config, self.distillation
        if distillation is None:
            losses = label_loss(
                logits,
                micro_batch.shares,
                micro_batch.labels,
                config.loss,
                config.label_source,
                self.class_weights,
                config.label_smoothing,
            )
            weights = micro_batch.label_weights
            return losses if weights is None else losses * weights
        assert micro_batch.teacher_logits is not None
        return distillation_loss(
            logits,
            micro_batch.teacher_logits,
            micro_batch.shares,
            micro_batch.labels,
            loss=distillation.loss,
            temperature=distillation.temperature,
            weight=teacher,
            standardize=distillation.standardize,
            dkd_alpha=distillation.dkd_alpha,
            dkd_beta=distillation.dkd_beta,
            label_kind=config.loss,
            label_source=config.label_source,
            class_weights=self.class_weights,
            label_smoothing=config.label_smoothing,
            label_weights=micro_batch.label_weights,
            teacher_weights=micro_batch.teacher_weights,
        )

    def _of_dimensions(self, values: Tensor, micro_batch: MicroBatch, teacher: float) -> Tensor:
        """Losses of the dimensions [b]: of the labels, and of the teacher's values by its weight.

        Args:
            teacher: weight of the teacher's loss.
        """
        kind = self.config.dimension_loss

        def loss(target: Tensor, per_value: Tensor) -> Tensor:
            weights = self.dimension_weights
            if kind == "mse":  # the others are of the rows that have a value as they are
                weights = weights * per_value.to(weights.device)
            return dimension_loss(values, target, kind, weights)

        losses = loss(micro_batch.dimensions, self.per_value)
        if not teacher:
            return losses
        assert micro_batch.teacher_dimensions is not None and self.per_soft_value is not None
        soft = loss(micro_batch.teacher_dimensions, self.per_soft_value)
        return teacher * soft + (1.0 - teacher) * losses


def _per_value(dimensions: FloatArray) -> Tensor:
    """Factors [D] by which a mean over all rows is the mean over those with a value."""
    present = np.isfinite(dimensions).sum(axis=0)
    return torch.from_numpy(len(dimensions) / np.maximum(present, 1)).float()


def validation_metrics(
    task: TrainingTask, logits: FloatArray, dimensions: FloatArray, examples: Examples
) -> dict[str, float]:
    """Metrics of logits [N, C] and dimensions [N, D] on validation, as in the report.

    Of classes `accuracy`, `uar`, `macro_f1` and `weighted_f1`; of dimensions `ccc`, the mean over
    them, and `ccc_valence`, `rmse_valence` and so on. The `loss` is that of the labels, weighted
    by task, without class weights and label smoothing, so that it is comparable between their
    settings, and between students with and without a teacher. Rows whose votes tie contribute to
    the loss only, rows without a label or a value to neither.
    """
    metrics = {"loss": 0.0}
    if "classes" in task.tasks:
        of_classes = _of_classes(task.train, logits, examples)
        metrics |= of_classes | {"loss": task.tasks["classes"] * of_classes["loss"]}
    if task.spec.dimensions:
        weights = torch.tensor([task.tasks[name] for name in task.spec.dimensions])
        kind = task.train.dimension_loss
        if kind == "mse":
            weights = weights * _per_value(examples.dimensions)
        losses = dimension_loss(
            torch.from_numpy(dimensions), torch.from_numpy(examples.dimensions), kind, weights
        )
        metrics["loss"] += float(losses.double().mean())
        metrics |= dimension_metrics(task.spec.dimensions, dimensions, examples.dimensions)
    return metrics


def _of_classes(config: TrainConfig, logits: FloatArray, examples: Examples) -> dict[str, float]:
    rows = examples.labelled
    examples, logits = (
        replace(examples, shares=examples.shares[rows], labels=examples.labels[rows]),
        logits[rows],
    )
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
    return {"loss": float(losses.double().mean()) if len(rows) else 0.0, **metrics}
