"""What each seed of a job has of its own: a teacher, soft targets, students and controls.

A seed repeats everything that is trained, on one split: its students learn from its teacher. So the
deviation over seeds holds what another teacher would change, and a seed that is added later leaves
the trained ones as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multistill.config import JobConfig
from multistill.distillation.files import SOFT_TARGETS
from multistill.pipeline.step import Artifacts
from multistill.training.model_store import Index
from multistill.workspace import Artifact, fingerprint

if TYPE_CHECKING:
    from multistill.training.task import TrainingTask

SEEDS = "seeds"
"""In the summary of soft targets: the fingerprint of those of each seed."""


@dataclass
class SeedTeachers:
    """Names of the teachers of one seed.

    Attributes:
        ensemble: on all training rows.
        folds: fold -> the teachers that were trained without it.
    """

    ensemble: list[str] = field(default_factory=list)
    folds: dict[int, list[str]] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        return [*self.ensemble, *(name for names in self.folds.values() for name in names)]


def teachers_of(job: JobConfig, index: Index) -> list[SeedTeachers]:
    """The teachers of every seed, by the seed and fold of their entries in an index.

    `teacher.seeds` of them in a row are the ensemble of one seed of the job.
    """
    found = [SeedTeachers() for _ in range(job.seeds)]
    for name, model in index.items():
        offset = model["seed"] - job.seed
        if model["fold"] is None:
            found[offset // job.teacher.seeds].ensemble.append(name)
        else:
            found[offset].folds.setdefault(model["fold"], []).append(name)
    return found


def soft_targets_folder(folder: Path, seed: int) -> Path:
    """Where an artifact keeps the soft targets of one seed, from 0."""
    return folder / f"seed-{seed + 1}" if seed else folder


def soft_targets_fingerprint(
    version: int, config: Any, data: Mapping[str, str], teachers: SeedTeachers, index: Index
) -> str:
    """Of the soft targets of one seed: other seeds of the job do not change it.

    Args:
        data: fingerprints of what the teachers predict on.
    """
    of = {name: str(index[name]["fingerprint"]) for name in teachers.names}
    read = {
        "ensemble": [of[name] for name in teachers.ensemble],
        "folds": {
            str(fold): [of[name] for name in names]
            for fold, names in sorted(teachers.folds.items())
        },
    }
    return fingerprint("soft_targets", version, {"config": config, "teachers": read}, data)


def trainings(base: TrainingTask, seeds: int, soft_targets: Artifact) -> list[TrainingTask]:
    """A training per seed, of which a distilled one learns from the teacher of its seed.

    With more seeds than the job has, teachers take turns.
    """
    from multistill.training.task import seed_tasks

    tasks = seed_tasks(base, seeds)
    if base.soft_targets is None:
        return tasks
    files = _soft_targets_files(soft_targets)
    return [
        replace(task, soft_targets=str(files[number % len(files)]))
        for number, task in enumerate(tasks)
    ]


def inputs_of(
    task: TrainingTask, inputs: Mapping[str, str], artifacts: Artifacts
) -> dict[str, str]:
    """The inputs of a step as those of one training, which reads the soft targets of its seed."""
    if task.soft_targets is None:
        return dict(inputs)
    soft_targets = artifacts["soft_targets"]
    number = _soft_targets_files(soft_targets).index(Path(task.soft_targets))
    return {**inputs, "soft_targets": soft_targets.summary[SEEDS][number]}


def accepted_inputs(inputs: Mapping[str, str], artifacts: Artifacts) -> dict[str, Sequence[str]]:
    """What trainings of a step on these inputs may have read, by input."""
    accepted: dict[str, Sequence[str]] = {name: [value] for name, value in inputs.items()}
    if "soft_targets" in inputs:
        accepted["soft_targets"] = artifacts["soft_targets"].summary[SEEDS]
    return accepted


def _soft_targets_files(artifact: Artifact) -> list[Path]:
    return [
        soft_targets_folder(artifact.path, number) / SOFT_TARGETS
        for number in range(len(artifact.summary[SEEDS]))
    ]
