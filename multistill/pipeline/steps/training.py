"""Steps that train: the teachers, and the students with their controls."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from multistill.config import (
    DistillationConfig,
    JobConfig,
    ModelConfig,
    StudentConfig,
    TeacherConfig,
    TrainSection,
)
from multistill.config.continual import ContinualConfig
from multistill.errors import UsageError
from multistill.forecast.keys import training_key
from multistill.hardware import Resources
from multistill.pipeline.folds import FOLDS, folds_of, planned_folds
from multistill.pipeline.seeds import accepted_inputs, inputs_of, teachers_of, trainings
from multistill.pipeline.step import Artifacts, Step, StepRun
from multistill.pipeline.steps.transcripts import refuse_without_text
from multistill.training.defaults import defaults_of, resolve_training
from multistill.training.model_store import VERSION, Index, ModelStore
from multistill.workspace import Artifact, Workspace, read_json

if TYPE_CHECKING:
    from multistill.encoders.source import EncoderSource
    from multistill.evaluation.candidates import Candidate
    from multistill.models.spec import Encoder, ModelSpec
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
            (
                replace(task, name=fold.model_name(task.name)),
                inputs_of(task, self.inputs(fold.artifacts), fold.artifacts),
            )
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

    def candidate(
        self, name: str, index: Index, seeds: Sequence[Sequence[str]], **more: Any
    ) -> Candidate:
        """The models of the first seed as the candidate; those of the others are its `repeats`.

        Args:
            seeds: names of the models of every seed; several are an ensemble.
        """
        from multistill.evaluation.candidates import Candidate

        folders = [[str(self.model_store.folder(index[one])) for one in seed] for seed in seeds]
        first = index[seeds[0][0]]
        return Candidate(
            name=name,
            role=str(first["role"]),
            folders=folders[0],
            mlflow_run_id=first["record_id"],
            repeats=folders[1:],
            **more,
        )

    def over_seeds(self, name: str, index: Index, members: Sequence[str], **more: Any) -> Candidate:
        """A candidate of one model per seed."""
        return self.candidate(name, index, [[member] for member in members], **more)

    def refuse_other_data(self, artifacts: Artifacts) -> None:
        """Refuse models of this step's artifact that were trained on other data than `artifacts`.

        Raises:
            MultistillError: names the first.
        """
        models = artifacts[self.artifact].summary["models"]
        accepted = accepted_inputs(self.inputs(artifacts), artifacts)
        self.model_store.refuse_other_data(models, accepted)


class Teacher(ModelStep):
    """Teachers of every seed: one per model on all training rows, and per fold for out-of-fold."""

    name = "teacher"
    artifact = "teachers"
    sections = frozenset({"teacher", "distillation", "seeds", "tasks"})

    def config(self) -> Any:
        return {
            "teacher": self.job.teacher.identity(),
            "tasks": self.job.tasks.weights(),
            "seed": self.job.seed,
            "seeds": self.job.seeds,
            "targets": self.job.distillation.targets,
            "models": VERSION,
        }

    def reads(self) -> Sequence[str]:
        return training_inputs(self.job)

    def preflight(self, artifacts: Artifacts) -> None:
        if "manifest" in artifacts:
            students = (student.model for student in self.job.students)
            models = [*self.job.teacher.members.values(), *students]
            refuse_without_text(models, artifacts["manifest"])
            for fold in folds_of(artifacts):
                self.folds(fold.artifacts)

    def build(self, run: StepRun) -> Mapping[str, Any]:
        return self.train(self.tasks, run)

    def tasks(self, artifacts: Artifacts) -> list[TrainingTask]:
        return self.repeated(list(self.members(artifacts).values()), artifacts)

    def members(self, artifacts: Artifacts) -> dict[str, TrainingTask]:
        """The training of each model on all training rows, with the job's first seed."""
        teacher = self.job.teacher
        return {
            name: training_task(self.job, artifacts, name, "teacher", model, teacher.train)
            for name, model in teacher.members.items()
        }

    def repeated(self, members: Sequence[TrainingTask], artifacts: Artifacts) -> list[TrainingTask]:
        """Trainings with every seed, on all training rows and without each fold."""
        from multistill.training.task import fold_tasks, seed_tasks

        seeds, folds = self.job.seeds, self.folds(artifacts)
        of_all = [
            task for base in members for task in seed_tasks(base, seeds * self.job.teacher.seeds)
        ]
        left_out = [task for base in members for task in fold_tasks(base, folds)]
        return of_all + [task for base in left_out for task in seed_tasks(base, seeds)]

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
        index: Index = artifact.summary["models"]
        seeds = [teachers.ensemble for teachers in teachers_of(self.job, index)]
        return [self.candidate("teacher", index, seeds)]

    def plan(self, resources: Resources, artifacts: Artifacts) -> Mapping[str, Any]:
        teacher = self.job.teacher
        return {
            "models": [
                planned_training(
                    self.job, name + suffix, count, teacher, artifacts, teacher.members[name]
                )
                for name, suffix, count in self.planned(artifacts)
            ]
        }

    def planned(self, artifacts: Artifacts) -> list[tuple[str, str, int]]:
        """Name of each model, of its kind of training, and the number of equal trainings."""
        folds = 0
        if self.job.distillation.targets == "out-of-fold":
            known = training_clips(artifacts) is not None
            folds = self.job.split.folds
            folds = len(self.folds(folds_of(artifacts)[0].artifacts)) if known else folds
        return [
            (name, suffix, count * self.job.seeds)
            for name in self.job.teacher.members
            for suffix, count in (("", self.job.teacher.seeds), ("-fold", folds))
            if count
        ]


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
        return (*training_inputs(self.job), "soft_targets")

    def build(self, run: StepRun) -> Mapping[str, Any]:
        return self.train_members(self.tasks, run)

    def tasks(self, artifacts: Artifacts) -> dict[str, list[TrainingTask]]:
        """The trainings of every student and control, one per seed."""
        members: dict[str, list[TrainingTask]] = {}
        for student in self.job.students:
            task = student_task(self.job, artifacts, student)
            for base in (task, task.control(f"{student.name}-control")):
                members[base.name] = trainings(base, self.job.seeds, artifacts["soft_targets"])
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


def training_inputs(job: JobConfig) -> tuple[str, ...]:
    """Artifacts that every training of a job reads."""
    copies = ("copies",) if job.features.augmentation.copies else ()
    return ("manifest", "features", "statistics", *copies)


def training_task(
    job: JobConfig,
    artifacts: Artifacts,
    name: str,
    role: Any,
    model: ModelConfig,
    train: TrainSection,
    clips: int | None = None,
    **more: Any,
) -> TrainingTask:
    """A training on the run's manifest and features, with every number decided.

    Args:
        clips: training clips that it reads; None: all.
    """
    from multistill.features.augmented import STORE
    from multistill.models.presets import resolve
    from multistill.training.task import TrainingTask

    if clips is None:
        clips = training_clips(artifacts, unlabelled=role != "teacher")
    resolved = resolve_training(train, model.preset, clips, job.tasks.metric)
    assert resolved is not None, "the manifest exists, so the number of clips is known"
    tasks = job.tasks.weights()
    decided = {
        **job.features.side_by_side(),
        "speech_parts": speech_parts(job, artifacts),
        "num_classes": len(job.labels.classes) if "classes" in tasks else 0,
        "dimensions": job.tasks.dimensions,
    }
    spec = resolve(model.preset, {**model.overrides(), **decided})
    copies = None
    if "copies" in artifacts and spec.reads_audio:
        copies = str(artifacts["copies"].path / STORE)
    return TrainingTask(
        name=name,
        role=role,
        spec=spec,
        train=resolved,
        seed=job.seed,
        manifest=str(artifacts["manifest"].path),
        features=str(artifacts["features"].path),
        statistics=str(artifacts["statistics"].path) if "statistics" in artifacts else None,
        copies=copies,
        tasks=tasks,
        encoders=_encoders(job, artifacts, spec),
        **more,
    )


def _encoders(
    job: JobConfig, artifacts: Artifacts, spec: ModelSpec
) -> dict[Encoder, EncoderSource]:
    """The trained encoders that a model reads, from the weights that the features are of."""
    if not job.features.trained:
        return {}
    from multistill.encoders.source import trained_encoders
    from multistill.features.store import INFO

    info = read_json(artifacts["features"].path / INFO)
    reads = {"speech": spec.reads_audio, "text": spec.reads_text}
    trained = trained_encoders(job.features, info)
    return {name: source for name, source in trained.items() if reads[name]}


def speech_parts(job: JobConfig, artifacts: Artifacts) -> list[dict[str, Any]]:
    """What the states hold of each of several speech encoders; empty if there is one."""
    if not job.features.speech.additional:
        return []
    parts = artifacts["features"].summary["speech"]["parts"]
    return [
        {"title": part["title"], "width": part["dim"], "layers": part["side_by_side"]}
        for part in parts
    ]


def student_task(job: JobConfig, artifacts: Artifacts, student: StudentConfig) -> TrainingTask:
    """The student, distilled from the soft targets of the run's first seed."""
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
    count: int,
    section: TeacherConfig | StudentConfig | ContinualConfig,
    artifacts: Artifacts,
    model: ModelConfig | None = None,
    clips: int | None = None,
) -> dict[str, Any]:
    """A line of `multistill plan`: `count` equal trainings per fold.

    `epochs` is None where `prepare` decides it, `trainings` where it decides the number of folds.

    Args:
        model: of several that the section has; default: its `model`.
        clips: training clips that it reads; default: all.
    """
    model, train = model or section.model, section.train
    if clips is None:
        clips = training_clips(artifacts, unlabelled=isinstance(section, StudentConfig))
    resolved = resolve_training(train, model.preset, clips)
    gpus, folds = train.gpus_per_worker, planned_folds(job, artifacts)
    return {
        "model": name,
        "trainings": None if folds is None else count * folds,
        "workers": train.workers,
        "cpus_per_worker": train.cpus_per_worker,
        "gpus_per_worker": "1 where there are GPUs" if gpus is None else gpus,
        "epochs": resolved.epochs if resolved else None,
        "batch_size": train.batch_size or defaults_of(model.preset).batch_size,
        "learning_rate": train.learning_rate or defaults_of(model.preset).learning_rate,
        "patience": train.patience,
        "rate": training_key(job, model, train),
    }
