"""Steps that train: the teacher, its soft targets, the students with their controls."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multistill.cluster.tasks import on_cluster
from multistill.config import (
    DistillationConfig,
    JobConfig,
    ModelConfig,
    StudentConfig,
    TeacherConfig,
    TrainSection,
)
from multistill.config.models import STATE_WEIGHTS
from multistill.errors import UsageError
from multistill.hardware import Resources
from multistill.pipeline.folds import FOLDS, build_folds, folds_of, parts_of, planned_folds
from multistill.pipeline.step import Artifacts, Step, StepRun
from multistill.training.defaults import defaults_of, resolve_training
from multistill.training.model_store import VERSION, Index, ModelStore
from multistill.workspace import Artifact, Workspace

if TYPE_CHECKING:
    from multistill.evaluation.candidates import Candidate
    from multistill.training.task import TrainingTask


class ModelStep(Step):
    """A step whose artifact is an index of models in the workspace's model store."""

    uses_ray = True

    def __init__(self, job: JobConfig, workspace: Workspace) -> None:
        super().__init__(job, workspace)
        self.model_store = ModelStore(workspace)

    def is_intact(self, artifact: Artifact) -> bool:
        return self.model_store.holds(artifact.summary["models"])

    @abstractmethod
    def candidates(self, artifact: Artifact) -> list[Candidate]:
        """Models that `evaluate` scores on the test split."""

    def train(
        self, tasks_of: Callable[[Artifacts], Sequence[TrainingTask]], run: StepRun
    ) -> dict[str, Any]:
        """Train the tasks of all folds together; returns `{"models": Index}`.

        Args:
            tasks_of: the tasks of one fold's artifacts.
        """
        folds = folds_of(run.artifacts)
        tasks = [tasks_of(fold.artifacts) for fold in folds]
        planned = [
            (replace(task, name=fold.model_name(task.name)), self.inputs(fold.artifacts))
            for fold, own in zip(folds, tasks, strict=True)
            for task in own
        ]
        trained = self.model_store.train(planned, run.out, run.logger)
        if folds[0].number is None:
            return trained
        index = trained["models"]
        parts = [
            {"models": {task.name: index[fold.model_name(task.name)] for task in own}}
            for fold, own in zip(folds, tasks, strict=True)
        ]
        return {**trained, FOLDS: parts}

    def train_members(
        self, members_of: Callable[[Artifacts], Mapping[str, Sequence[TrainingTask]]], run: StepRun
    ) -> dict[str, Any]:
        """Train models of several seeds; the summary has their trainings under `members`.

        Args:
            members_of: the trainings by model of one fold's artifacts.
        """

        def tasks_of(artifacts: Artifacts) -> list[TrainingTask]:
            return [task for tasks in members_of(artifacts).values() for task in tasks]

        members = members_of(folds_of(run.artifacts)[0].artifacts)  # equal names in all folds
        names = {model: [task.name for task in tasks] for model, tasks in members.items()}
        return {**self.train(tasks_of, run), "members": names}

    def candidate(self, name: str, index: Index, members: Sequence[str], **more: Any) -> Candidate:
        """Models of an index as one candidate; several members are an ensemble."""
        from multistill.evaluation.candidates import Candidate

        first = index[members[0]]
        return Candidate(
            name=name,
            role=str(first["role"]),
            folders=[str(self.model_store.folder(index[member])) for member in members],
            mlflow_run_id=first["record_id"],
            **more,
        )

    def over_seeds(self, name: str, index: Index, members: Sequence[str], **more: Any) -> Candidate:
        """The first member as the candidate; the other seeds are its `repeats`."""
        repeats = [str(self.model_store.folder(index[member])) for member in members[1:]]
        return self.candidate(name, index, members[:1], repeats=repeats, **more)


class Teacher(ModelStep):
    """A teacher per model and seed on all training rows; for out-of-fold targets, per fold too."""

    name = "teacher"
    artifact = "teachers"
    sections = frozenset({"teacher", "distillation", "tasks"})

    def config(self) -> Any:
        return {
            "teacher": self.job.teacher.identity(),
            "tasks": self.job.tasks.weights(),
            "seed": self.job.seed,
            "targets": self.job.distillation.targets,
            "models": VERSION,
        }

    def reads(self) -> Sequence[str]:
        return ("manifest", "features", "statistics")

    def preflight(self, artifacts: Artifacts) -> None:
        if "manifest" in artifacts:
            for fold in folds_of(artifacts):
                self.folds(fold.artifacts)

    def build(self, run: StepRun) -> Mapping[str, Any]:
        return self.train(self.tasks, run)

    def tasks(self, artifacts: Artifacts) -> list[TrainingTask]:
        from multistill.training.task import fold_tasks, seed_tasks

        teacher, folds = self.job.teacher, self.folds(artifacts)
        members = [
            training_task(self.job, artifacts, name, "teacher", model, teacher.train)
            for name, model in teacher.members.items()
        ]
        of_all = [task for member in members for task in seed_tasks(member, teacher.seeds)]
        return of_all + [task for member in members for task in fold_tasks(member, folds)]

    def folds(self, artifacts: Artifacts) -> list[int]:
        """Folds that hold training rows, each of which gets a teacher; none for in-sample targets.

        Raises:
            UsageError: there are fewer than two, so a teacher would have nothing to train on.
        """
        import pyarrow.compute as pc

        from multistill.corpora.manifest import read_manifest

        if self.job.distillation.targets != "out-of-fold":
            return []
        rows = read_manifest(artifacts["manifest"].path, ["split", "fold"])
        folds = rows.filter(pc.equal(rows["split"], "train"))["fold"].unique().to_pylist()
        if len(folds) < 2:
            raise UsageError(
                f"out-of-fold targets need training groups in at least two of the "
                f"{self.job.split.folds} folds (split.folds), and there is {len(folds)}; add data, "
                "split by another key, or set `distillation.targets: in-sample`"
            )
        return sorted(folds)

    def candidates(self, artifact: Artifact) -> list[Candidate]:
        index = artifact.summary["models"]
        members = [name for name, model in index.items() if model["fold"] is None]
        return [self.candidate("teacher", index, members)]

    def plan(self, resources: Resources, artifacts: Artifacts) -> Mapping[str, Any]:
        teacher, split = self.job.teacher, self.job.split
        folds = 0
        if self.job.distillation.targets == "out-of-fold":
            known = training_clips(artifacts) is not None
            folds = len(self.folds(folds_of(artifacts)[0].artifacts)) if known else split.folds
        return {
            "models": [
                planned_training(self.job, name + suffix, trainings, teacher, artifacts, model)
                for name, model in teacher.members.items()
                for suffix, trainings in (("", teacher.seeds), ("-fold", folds))
                if trainings
            ]
        }


class Distill(Step):
    """The teacher's outputs for every row outside test."""

    name = "distill"
    artifact = "soft_targets"
    version = 3
    sections = frozenset({"distillation"})
    uses_ray = True

    def config(self) -> Any:
        return {
            "targets": self.job.distillation.targets,
            "states": self._reads(*STATE_WEIGHTS),
            "sequences": self._reads("sequence_weight"),
        }

    def _reads(self, *weights: str) -> bool:
        """Whether a student reads what one of these weights needs, or the search may ask for it."""
        searched = self.job.search.space if self.job.search.enabled else {}
        return any(
            getattr(self.job.distillation, name) > 0 or f"distillation.{name}" in searched
            for name in weights
        )

    def reads(self) -> Sequence[str]:
        return ("manifest", "features", "teachers")

    def is_intact(self, artifact: Artifact) -> bool:
        from multistill.distillation.files import SOFT_TARGETS, STATES

        names = (SOFT_TARGETS, *(STATES,) * self._reads(*STATE_WEIGHTS))
        return all((part.path / name).is_file() for part in parts_of(artifact) for name in names)

    def build(self, run: StepRun) -> Mapping[str, Any]:
        from multistill.distillation.files import SOFT_TARGETS
        from multistill.distillation.stage import soft_targets

        model_store = ModelStore(self.workspace)

        def build(artifacts: Artifacts, out: Path) -> Mapping[str, Any]:
            index: Index = artifacts["teachers"].summary["models"]
            read = ("manifest", "features", "statistics")
            model_store.refuse_other_data(
                index, {name: artifacts[name].fingerprint for name in read if name in artifacts}
            )
            by_fold: dict[Any, list[Path]] = {}
            for model in index.values():
                by_fold.setdefault(model["fold"], []).append(model_store.folder(model))
            summary: Mapping[str, Any] = on_cluster(
                soft_targets,
                artifacts["manifest"].path,
                artifacts["features"].path,
                by_fold.pop(None),
                by_fold,
                self._reads(*STATE_WEIGHTS),
                self._reads("sequence_weight"),
                out / SOFT_TARGETS,
            )
            return summary

        summary = build_folds(run, build)
        run.logger.metrics({k: v for k, v in summary.items() if isinstance(v, int | float)})
        return summary


class Students(ModelStep):
    """Every student distilled, and trained without a teacher as its control."""

    name = "students"
    artifact = "students"
    sections = frozenset({"students", "distillation", "seeds", "tasks"})

    def config(self) -> Any:
        return {
            "students": [student.identity() for student in self.job.students],
            "distillation": self.job.distillation.identity(),
            "tasks": self.job.tasks.weights(),
            "seed": self.job.seed,
            "seeds": self.job.seeds,
            "models": VERSION,
        }

    def reads(self) -> Sequence[str]:
        return ("manifest", "features", "statistics", "soft_targets")

    def build(self, run: StepRun) -> Mapping[str, Any]:
        return self.train_members(self.tasks, run)

    def tasks(self, artifacts: Artifacts) -> dict[str, list[TrainingTask]]:
        """The trainings of every student and control, one per seed."""
        from multistill.training.task import seed_tasks

        members: dict[str, list[TrainingTask]] = {}
        for student in self.job.students:
            task = student_task(self.job, artifacts, student)
            for base in (task, task.control(f"{student.name}-control")):
                members[base.name] = seed_tasks(base, self.job.seeds)
        return members

    def candidates(self, artifact: Artifact) -> list[Candidate]:
        index: Index = artifact.summary["models"]
        members: Mapping[str, Sequence[str]] = artifact.summary["members"]
        candidates = []
        for student in self.job.students:
            control = f"{student.name}-control"
            candidates += [
                self.over_seeds(student.name, index, members[student.name], compare_to=control),
                self.over_seeds(control, index, members[control]),
            ]
        return candidates

    def plan(self, resources: Resources, artifacts: Artifacts) -> Mapping[str, Any]:
        return {
            "models": [
                planned_training(self.job, name, self.job.seeds, student, artifacts)
                for student in self.job.students
                for name in (student.name, f"{student.name}-control")
            ]
        }


def training_task(
    job: JobConfig,
    artifacts: Artifacts,
    name: str,
    role: Any,
    model: ModelConfig,
    train: TrainSection,
    **more: Any,
) -> TrainingTask:
    """A training on the run's manifest and features, with every number decided."""
    from multistill.models.presets import resolve
    from multistill.training.task import TrainingTask

    clips = training_clips(artifacts, unlabelled=role != "teacher")
    resolved = resolve_training(train, model.preset, clips, job.tasks.metric)
    assert resolved is not None, "the manifest exists, so the number of clips is known"
    tasks = job.tasks.weights()
    decided = {
        **job.features.side_by_side(),
        "num_classes": len(job.labels.classes) if "classes" in tasks else 0,
        "dimensions": job.tasks.dimensions,
    }
    return TrainingTask(
        name=name,
        role=role,
        spec=resolve(model.preset, {**model.overrides(), **decided}),
        train=resolved,
        seed=job.seed,
        manifest=str(artifacts["manifest"].path),
        features=str(artifacts["features"].path),
        statistics=str(artifacts["statistics"].path),
        tasks=tasks,
        **more,
    )


def student_task(job: JobConfig, artifacts: Artifacts, student: StudentConfig) -> TrainingTask:
    """The student, distilled from the run's soft targets."""
    from multistill.distillation.files import SOFT_TARGETS

    distillation: DistillationConfig = job.distillation
    return training_task(
        job,
        artifacts,
        student.name,
        "student",
        student.model,
        student.train,
        soft_targets=str(artifacts["soft_targets"].path / SOFT_TARGETS),
        distillation=distillation,
    )


def training_clips(artifacts: Artifacts, unlabelled: bool = False) -> int | None:
    """Training clips of the manifest, of the first fold; None before it exists.

    Args:
        unlabelled: count those without labels too, which students learn from. A control has the
            budget of its student.
    """
    manifest = folds_of(artifacts)[0].artifacts.get("manifest")
    splits = manifest.summary.get("splits") if manifest is not None else None
    if splits is None:
        return None
    return sum(int(splits.get(part, 0)) for part in ("train", *("unlabelled",) * unlabelled))


def planned_training(
    job: JobConfig,
    name: str,
    trainings: int,
    section: TeacherConfig | StudentConfig,
    artifacts: Artifacts,
    model: ModelConfig | None = None,
) -> dict[str, Any]:
    """A line of `multistill plan`: equal trainings.

    `epochs` is None where `prepare` decides it, `trainings` where it decides the number of folds.

    Args:
        model: of several that the section has; default: its `model`.
    """
    model, train = model or section.model, section.train
    clips = training_clips(artifacts, unlabelled=isinstance(section, StudentConfig))
    resolved = resolve_training(train, model.preset, clips)
    gpus, folds = train.gpus_per_worker, planned_folds(job, artifacts)
    return {
        "model": name,
        "trainings": None if folds is None else trainings * folds,
        "workers": train.workers,
        "cpus_per_worker": train.cpus_per_worker,
        "gpus_per_worker": "1 where there are GPUs" if gpus is None else gpus,
        "epochs": resolved.epochs if resolved else None,
        "batch_size": train.batch_size or defaults_of(model.preset).batch_size,
        "learning_rate": train.learning_rate or defaults_of(model.preset).learning_rate,
    }
