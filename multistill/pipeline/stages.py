"""The eight stages: each turns typed config and input artifacts into one artifact.

A stage knows its inputs and nothing of the stages after it. What happens inside is the
rooms' business (`corpora`, `features`, `training`, ...); here is only the joint between
them: which config and which inputs decide a stage's fingerprint, and which room does the
work. `multistill.pipeline.runner` decides order, skipping and recording.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multistill.cluster.tasks import on_cluster
from multistill.config import JobConfig, ModelConfig, StudentConfig, TrainConfig
from multistill.errors import UsageError
from multistill.training.model_store import FORMAT, ModelStore
from multistill.workspace import (
    DONE,
    Artifact,
    Workspace,
    clear,
    fingerprint,
    read_json,
)

if TYPE_CHECKING:
    from multistill.tracking.logger import RunLogger
    from multistill.training.task import TrainingTask

STAGES = (
    "prepare",
    "features",
    "teacher",
    "distill",
    "students",
    "search",
    "evaluate",
    "report",
)
"""In the order of the data."""

VERSIONS = {**dict.fromkeys(STAGES, 1), "search": 2}
"""Format of each stage's artifact; raise one and that stage and all after it are made anew.
What changes trained weights is `model_store.FORMAT` instead: models are found by it."""

SOFT_TARGETS = "soft_targets.parquet"


@dataclass(frozen=True)
class Step:
    """One stage of one job, ready to be looked up or built."""

    stage: str
    kind: str
    config: Any
    inputs: Mapping[str, str]
    build: Callable[[Path, RunLogger], Mapping[str, Any]]

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.stage, VERSIONS[self.stage], self.config, self.inputs)


class Stages:
    """The stages of one job in one workspace.

    `step(name)` needs the artifacts of its inputs in `done`; it raises KeyError without.
    Only `prepare` must have run for every later fingerprint to be known: the features'
    identity is the content of the manifest, not the settings that led to it, so another
    split of the same clips finds the same features.
    """

    def __init__(self, job: JobConfig, workspace: Workspace) -> None:
        self.job = job
        self.workspace = workspace
        self.model_store = ModelStore(workspace)
        self.done: dict[str, Artifact] = {}
        self.records: dict[str, str] = {}  # stage or model -> id in the tracking server

    def names(self) -> tuple[str, ...]:
        return tuple(s for s in STAGES if s != "search" or self.job.search.enabled)

    def step(self, stage: str) -> Step:
        step: Step = getattr(self, f"_{stage}")()
        return step

    def intact(self, artifact: Artifact) -> bool:
        """Whether the models it names are still stored: folders may be deleted by hand."""
        index = artifact.summary.get("models", {})
        return all((self.model_store.folder(m) / DONE).exists() for m in index.values())

    # -- prepare and features -------------------------------------------------------------

    def _prepare(self) -> Step:
        from multistill.corpora.prepare import listing, prepare

        job = self.job

        def build(out: Path, logger: RunLogger) -> Mapping[str, Any]:
            return prepare(
                job.corpora,
                job.split,
                job.seed,
                clear(out),
                unpacked=self.workspace.root / "corpora",
                logger=logger,
            )

        config = {
            "corpora": [corpus.identity() for corpus in job.corpora],
            "split": job.split.identity(),
            "seed": job.seed,
        }
        return Step("prepare", "prepare", config, {"files": listing(job.corpora)}, build)

    def _features(self) -> Step:
        from multistill.features.identity import features_identity

        manifest = self.done["prepare"]

        def build(out: Path, logger: RunLogger) -> Mapping[str, Any]:
            from multistill.corpora.manifest import MANIFEST
            from multistill.features.encode import encode

            self.folds()  # what is wrong with them is said before the hours of encoding
            return encode(manifest.path / MANIFEST, self.job.features, out, logger)

        inputs = {"content": str(manifest.summary["content"])}
        return Step("features", "features", features_identity(self.job.features), inputs, build)

    # -- teacher, soft targets, students --------------------------------------------------

    def _inputs(self, *stages: str) -> dict[str, str]:
        return {stage: self.done[stage].fingerprint for stage in stages}

    def _task(
        self, name: str, model: ModelConfig, train: TrainConfig, seed: int, **more: Any
    ) -> TrainingTask:
        from multistill.models.presets import resolve
        from multistill.training.task import TrainingTask

        layers = self.job.features.side_by_side()
        return TrainingTask(
            name=name,
            spec=resolve(model.preset, {**model.overrides(), **layers}).to_dict(),
            train=train.model_dump(mode="json"),
            seed=seed,
            manifest=str(self.done["prepare"].path),
            features=str(self.done["features"].path),
            **more,
        )

    def folds(self) -> list[int]:
        """Folds that hold training rows, each of which gets a teacher; none for in-sample targets.

        Raises:
            UsageError: there are fewer than two, so a teacher would have nothing to train on.
        """
        import pyarrow.compute as pc

        from multistill.corpora.manifest import read_manifest

        if self.job.distillation.targets != "out-of-fold":
            return []
        rows = read_manifest(self.done["prepare"].path, ["split", "fold"])
        held = rows.filter(pc.equal(rows["split"], "train"))["fold"].unique().to_pylist()
        if len(held) < 2:
            raise UsageError(
                f"out-of-fold targets need training groups in at least two of the "
                f"{self.job.split.folds} folds (split.folds), and there is {len(held)}; add data, "
                "split by another key, or set `distillation.targets: in-sample`"
            )
        return sorted(held)

    def teacher_tasks(self) -> list[TrainingTask]:
        """A teacher per seed on all training rows; for out-of-fold targets, one per fold too."""
        from multistill.training.task import fold_tasks, seed_tasks

        teacher, job = self.job.teacher, self.job
        base = self._task("teacher", teacher.model, teacher.train, job.seed)
        return seed_tasks(base, teacher.seeds) + fold_tasks(base, self.folds())

    def _teacher(self) -> Step:
        job = self.job
        config = {
            "teacher": job.teacher.identity(),
            "seed": job.seed,
            "targets": job.distillation.targets,
            "models": FORMAT,
        }

        def build(out: Path, logger: RunLogger) -> Mapping[str, Any]:
            return self.model_store.train(
                self.teacher_tasks(), self._inputs("prepare", "features"), out, logger
            )

        return Step("teacher", "teacher", config, self._inputs("prepare", "features"), build)

    def _distill(self) -> Step:
        job = self.job
        searched = job.search.space if job.search.enabled else {}
        pooled = job.distillation.reads_pooled or bool(
            {"distillation.hint_weight", "distillation.cka_weight"} & set(searched)
        )
        config = {"targets": job.distillation.targets, "pooled": pooled}

        def build(out: Path, logger: RunLogger) -> Mapping[str, Any]:
            index = self.done["teacher"].summary["models"]
            teachers = {name: self.model_store.folder(model) for name, model in index.items()}
            folds = {
                int(name.removeprefix("teacher-fold")): str(folder)
                for name, folder in teachers.items()
                if name.startswith("teacher-fold")
            }
            whole = [str(f) for name, f in teachers.items() if not name.startswith("teacher-fold")]
            from multistill.distillation.stage import soft_targets

            summary: Mapping[str, Any] = on_cluster(
                soft_targets,
                str(self.done["prepare"].path),
                str(self.done["features"].path),
                whole,
                folds,
                job.teacher.train.max_frames,
                job.teacher.train.loss == "mse",
                pooled,
                str(out / SOFT_TARGETS),
            )
            logger.metrics({k: v for k, v in summary.items() if isinstance(v, int | float)})
            return summary

        inputs = self._inputs("prepare", "features", "teacher")
        return Step("distill", "distill", config, inputs, build)

    def student_task(self, student: StudentConfig, *, control: bool = False) -> TrainingTask:
        """The distilled student, or its control: no teacher, but the same seed and budget."""
        if control:
            return self._task(
                f"{student.name}-control", student.model, student.train, self.job.seed
            )
        return self._task(
            student.name,
            student.model,
            student.train,
            self.job.seed,
            soft_targets=str(self.done["distill"].path / SOFT_TARGETS),
            distillation=self.job.distillation.model_dump(mode="json"),
        )

    def _students(self) -> Step:
        job = self.job
        config = {
            "students": [student.identity() for student in job.students],
            "distillation": job.distillation.identity(),
            "seed": job.seed,
            "models": FORMAT,
        }

        def build(out: Path, logger: RunLogger) -> Mapping[str, Any]:
            tasks = [
                self.student_task(student, control=control)
                for student in job.students
                for control in (False, True)
            ]
            return self.model_store.train(tasks, inputs, out, logger)

        inputs = self._inputs("prepare", "features", "distill")
        return Step("students", "students", config, inputs, build)

    # -- search ---------------------------------------------------------------------------

    def _search(self) -> Step:
        job = self.job
        student = job.searched_student()
        config = {
            "search": job.search.identity(),
            "student": student.identity(),
            "distillation": job.distillation.identity(),
            "seed": job.seed,
            "models": FORMAT,
        }
        inputs = self._inputs("prepare", "features", "distill")

        def build(out: Path, logger: RunLogger) -> Mapping[str, Any]:
            from multistill.search.finalists import retrain
            from multistill.search.study import search

            base = self.student_task(student)
            found = search(base, job.search, job.seed, out, logger, step.fingerprint)
            final = retrain(base, found["top"], job.search, self.model_store, inputs, out, logger)
            self._register(final, logger)
            return {**found, **final}

        step = Step("search", "search", config, inputs, build)
        return step

    def _register(self, final: Mapping[str, Any], logger: RunLogger) -> None:
        """Offer the winner to the model registry, by the job's rule."""
        from multistill.search.champion import register

        rule = self.job.tracking.champion
        if rule is not None:
            winner = next(f for f in final["finalists"] if f["name"] == final["winner"])
            folders = [self.model_store.folder(final["models"][name]) for name in winner["members"]]
            name = rule.model or f"{self.job.name}-{self.job.searched_student().name}"
            data, train = self.done["prepare"].path, final["winner_train"]
            register(name, folders, rule, data, train, logger)

    # -- evaluate and report --------------------------------------------------------------

    def _evaluate(self) -> Step:
        stages = ["prepare", "features", "teacher", "distill", "students"]
        if self.job.search.enabled:
            stages.append("search")

        def build(out: Path, logger: RunLogger) -> Mapping[str, Any]:
            from multistill.evaluation.stage import evaluate_models

            summary: Mapping[str, Any] = on_cluster(
                evaluate_models,
                str(self.done["prepare"].path),
                str(self.done["features"].path),
                self.candidates(),
                self.job.evaluation.model_dump(mode="json"),
                str(clear(out)),
                self.job.seed,
            )
            for name, figures in summary.get("headline", {}).items():
                logger.metrics({f"{name}_{key}": value for key, value in figures.items()})
            return summary

        config = self.job.evaluation.identity()
        return Step("evaluate", "evaluate", config, self._inputs(*stages), build)

    def candidates(self) -> list[dict[str, Any]]:
        """What `evaluate` scores: teacher, students, their controls and the searched student."""
        job = self.job

        def entry(
            stage: str, names: list[str], role: str, title: str, train: TrainConfig, **more: Any
        ) -> dict[str, Any]:
            index = self.done[stage].summary["models"]
            record = index[names[0]].get("record_id")
            return {
                "name": title,
                "role": role,
                "folders": self._folders(stage, names),
                "max_frames": train.max_frames,
                "raw": train.loss == "mse",
                "mlflow_run_id": record,
                **more,
            }

        whole = [n for n in self.done["teacher"].summary["models"] if "-fold" not in n]
        found = [entry("teacher", whole, "teacher", "teacher", job.teacher.train)]
        for student in job.students:
            name, control = student.name, f"{student.name}-control"
            found += [
                entry("students", [name], "student", name, student.train, compare_to=control),
                entry("students", [control], "control", control, student.train),
            ]
        if job.search.enabled:
            summary = self.done["search"].summary
            student = job.searched_student()
            train = TrainConfig.model_validate(summary["winner_train"])
            winner = next(f for f in summary["finalists"] if f["name"] == summary["winner"])
            name, control = f"{student.name}-search", f"{student.name}-search-control"
            for members, role, title, more in (
                (summary["control"]["members"], "control", control, {}),
                (winner["members"], "student", name, {"compare_to": control}),
            ):
                repeats = self._folders("search", members[1:])
                found.append(
                    entry("search", members[:1], role, title, train, repeats=repeats, **more)
                )
        return found

    def _folders(self, stage: str, names: Sequence[str]) -> list[str]:
        index = self.done[stage].summary["models"]
        return [str(self.model_store.folder(index[name])) for name in names]

    def _report(self) -> Step:
        job = self.job

        def build(out: Path, logger: RunLogger) -> Mapping[str, Any]:
            from multistill.report.build import write_report

            search = self.done.get("search")
            write_report(
                clear(out),
                job=job,
                prepare=self.done["prepare"],
                features=self.done["features"],
                distill=self.done["distill"],
                evaluate=self.done["evaluate"],
                search=search,
                histories=self._histories(),
                stages=[
                    {
                        "name": name,
                        "fingerprint": artifact.fingerprint,
                        "seconds": artifact.seconds,
                        "cached": name not in self.records,
                    }
                    for name, artifact in self.done.items()
                ],
            )
            logger.artifact(out / "report.html", "report")
            logger.artifact(out / "report.json", "report")
            return {}

        config = {"name": job.name, "job": job.identity()}
        return Step("report", f"reports/{job.name}", config, self._inputs("evaluate"), build)

    def _histories(self) -> dict[str, Any]:
        found = {}
        for stage in ("teacher", "students", "search"):
            if stage in self.done:
                for name, model in self.done[stage].summary["models"].items():
                    found[name] = read_json(self.model_store.folder(model) / "history.json")
        return found
