"""The teacher's outputs for the training examples of a student: soft targets and states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from multistill.distillation.files import STATES
from multistill.distillation.targets import SoftTargets, read_soft_targets, read_states
from multistill.errors import MultistillError
from multistill.features.ids import Ids
from multistill.training.examples import Examples, TeacherStates
from multistill.training.task import TrainingTask
from multistill.typing import IntArray


def with_teacher(
    train: Examples, task: TrainingTask, classes: tuple[str, ...], tested: Ids
) -> Examples:
    """Add the teacher's outputs to the training examples, before labels are hidden.

    A clip that has no class, or no value of a dimension, teaches a student nothing of it, as it
    teaches the control nothing: else the student would learn from clips that its control lacks.
    Corpora without labels are there for just that, so the teacher's word on them is all there is.

    Args:
        tested: ids of the test split, of which no file of soft targets may know.
    """
    path, ids, config = Path(task.soft_targets or ""), train.ids, task.distillation
    targets = read_soft_targets(path)
    if task.spec.num_classes == 0:
        classes = ()
    if targets.classes != classes:
        raise MultistillError(
            f"the soft targets in {path} are of the classes {', '.join(targets.classes)}, and the "
            f"manifest has {', '.join(classes)}; use soft targets and a manifest of the same job"
        )
    known = Ids(targets.ids)
    leaked = known.take(np.flatnonzero(tested.places(known) >= 0))
    if len(leaked):
        raise MultistillError(
            f"the soft targets in {path} have {len(leaked)} utterances of the test split (first: "
            f"{leaked[0]}), so they are of another fold or split; remove that file and run the job "
            "again"
        )
    rows = known.places(ids)
    absent = ids.take(np.flatnonzero(rows < 0))
    if len(absent):
        raise MultistillError(
            f"the soft targets in {path} lack {len(absent)} of {len(ids)} training utterances "
            f"(first: {absent[0]}); remove that file and run the job again"
        )
    if targets.dimension_names != task.spec.dimensions:
        has, wanted = (
            ", ".join(d) or "none" for d in (targets.dimension_names, task.spec.dimensions)
        )
        raise MultistillError(
            f"the soft targets in {path} have the dimensions {has}, and the model `{task.name}` "
            f"has {wanted}; use soft targets and a model of the same job"
        )
    logits = targets.for_loss(config.loss if config else "kd")[rows]
    dimensions = targets.dimensions[rows]
    bad = np.flatnonzero(~np.isfinite(np.concatenate([logits, dimensions], axis=1)).all(axis=1))
    if len(bad):
        raise MultistillError(
            f"the soft targets in {path} are not finite for {len(bad)} utterances "
            f"(first: {ids[int(bad[0])]}); remove that file and run the job again"
        )
    taught, weights = np.isfinite(train.dimensions), train.label_weights
    if train.unlabelled:
        assert weights is not None
        weights = weights.copy()
        taught[-train.unlabelled :], weights[-train.unlabelled :] = True, 1.0
    states = None
    if config is not None and config.reads_states:
        read = task.spec.sequences if config.sequence_weight else ()
        states = _teacher_states(path, targets, rows, ids, read)
        if config.sequence_weight and not states.sequences:
            raise MultistillError(
                f"{path.with_name(STATES)} has no sequences of what `{task.name}` reads, and "
                "`distillation.sequence_weight` needs them; run a job that sets it, with a teacher "
                "that reads the same"
            )
    return replace(
        train,
        teacher_logits=logits,
        teacher_dimensions=np.where(taught, dimensions, np.float32(np.nan)),
        teacher_states=states,
        teacher_weights=weights,
    )


def _teacher_states(
    path: Path, targets: SoftTargets, rows: IntArray, ids: Ids, sequences: Sequence[str]
) -> TeacherStates:
    """States of the soft targets' `rows`, whose utterances are `ids`.

    Args:
        sequences: modalities of which the sequences are read, as far as they are there.
    """
    stored = read_states(path)
    state_index = np.full(len(targets.ids), -1, dtype=np.int64)
    state_index[stored.rows] = np.arange(len(stored.rows))
    absent = np.flatnonzero(state_index[rows] < 0)
    if len(absent):
        raise MultistillError(
            f"the teacher's states in {path.with_name(STATES)} lack {len(absent)} of "
            f"{len(ids)} training utterances (first: {ids[int(absent[0])]}); remove that file and "
            "run the job again"
        )
    spaces, space = np.unique(stored.teacher[state_index[rows]], return_inverse=True)
    return TeacherStates(
        stored.pooled,
        state_index[rows],
        space.astype(np.int64),
        len(spaces),
        {
            name: (states, np.concatenate([[0], np.cumsum(lengths)]))
            for name, (states, lengths) in stored.sequences.items()
            if name in sequences
        },
    )
