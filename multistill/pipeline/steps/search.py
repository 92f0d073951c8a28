"""The step that searches one student's settings and retrains the best trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multistill.config import SearchConfig, TrainSection
from multistill.hardware import Resources
from multistill.pipeline.folds import FOLDS, Fold, folds_of, planned_folds
from multistill.pipeline.seeds import inputs_of
from multistill.pipeline.step import Artifacts, StepRun
from multistill.pipeline.steps.training import (
    ModelStep,
    planned_training,
    student_task,
    training_inputs,
)
from multistill.training.model_store import VERSION
from multistill.workspace import Artifact, fold_folder

if TYPE_CHECKING:
    from multistill.evaluation.candidates import Candidate
    from multistill.tracking.logger import RunLogger


class Search(ModelStep):
    """Ray Tune and Optuna over one student, judged on validation.

    Under cross-validation the first fold is searched, and its winner is trained in every fold;
    with `search.nested` every fold is searched. A fold's search is in the fold's folder.
    """

    name = "search"
    artifact = "search"
    version = 5
    sections = frozenset({"search", "students", "distillation"})

    @property
    def needs_dashboard(self) -> bool:
        # Ray Train inside Ray Tune frees the resources of stopped trials through it.
        return self.job.search.workers_per_trial > 1

    def config(self) -> Any:
        return {
            "search": self.job.search.identity(),
            "student": self.job.searched_student().identity(),
            "distillation": self.job.distillation.identity(),
            "tasks": self.job.tasks.weights(),
            "seed": self.job.seed,
            "models": VERSION,
        }

    def reads(self) -> Sequence[str]:
        return (*training_inputs(self.job), "soft_targets")

    def problems(self) -> Sequence[str]:
        from multistill.search.storage import storage_problem

        problem = storage_problem(self.job.search.storage)
        return [problem] if problem else []

    def build(self, run: StepRun) -> Mapping[str, Any]:
        folds = folds_of(run.artifacts)
        if folds[0].number is None:
            return self._search(folds[0], run, run.out, run.logger)
        return self._in_every_fold(folds, run) if self.job.search.nested else self._once(folds, run)

    def _search(self, fold: Fold, run: StepRun, out: Path, logger: RunLogger) -> dict[str, Any]:
        """Search in one fold, or in the only one; returns study.json and the finalists."""
        from multistill.search.finalists import retrain
        from multistill.search.study import search

        job, number = self.job, fold.number
        base = student_task(job, fold.artifacts, job.searched_student())
        name = run.fingerprint if number is None else f"{run.fingerprint}-{number + 1}"
        others = run.out.parent
        trials = search(base, job.search, job.seed, out, logger, name, others=others)
        inputs = inputs_of(base, self.inputs(fold.artifacts), fold.artifacts)
        found = retrain(
            base,
            trials["top"],
            job.search,
            self.model_store,
            inputs,
            out,
            logger,
            fold.model_name,
        )
        self._register(found, fold, logger)
        return {**trials, **found}

    def _once(self, folds: Sequence[Fold], run: StepRun) -> dict[str, Any]:
        """Search in the first fold, and train what it chose in every fold."""
        from multistill.search.finalists import winner_of, winner_tasks

        student, config = self.job.searched_student(), self.job.search
        out = fold_folder(run.out, 0)
        out.mkdir(parents=True, exist_ok=True)
        found = self._search(folds[0], run, out, run.logger)
        winner = winner_of(found)
        trained = self.train(
            lambda artifacts: winner_tasks(
                student_task(self.job, artifacts, student), winner, config
            ),
            run,
        )
        first = {folds[0].model_name(name): entry for name, entry in found["models"].items()}
        return {
            **found,
            "models": {**first, **trained["models"]},
            FOLDS: [{"models": found["models"]}, *trained[FOLDS][1:]],
        }

    def _in_every_fold(self, folds: Sequence[Fold], run: StepRun) -> dict[str, Any]:
        """Nested cross-validation: a search per fold, on the clips outside its test part."""
        models, parts = {}, []
        for fold in folds:
            assert fold.number is not None
            out = fold_folder(run.out, fold.number)
            out.mkdir(parents=True, exist_ok=True)
            number = fold.number + 1
            logger = run.logger.child(f"fold {number}", key=f"fold-{number}", kind="fold")
            status = "FAILED"
            try:
                found = self._search(fold, run, out, logger)
                status = "FINISHED"
            except KeyboardInterrupt:
                status = "KILLED"
                raise
            finally:
                logger.close(status)
            models.update({fold.model_name(k): entry for k, entry in found["models"].items()})
            parts.append(found)
            run.logger.info(f"search: {number} of {len(folds)} folds")
        return {"models": models, FOLDS: parts}

    def _register(self, found: Mapping[str, Any], fold: Fold, logger: RunLogger) -> None:
        """Offer the winner to the model registry, by the job's rule."""
        from multistill.search.champion import register
        from multistill.search.finalists import winner_of

        rule = self.job.tracking.champion
        if rule is None:
            return
        folders = [self.model_store.folder(found["models"][n]) for n in winner_of(found)["members"]]
        name = rule.model or f"{self.job.name}-{self.job.searched_student().name}"
        register(name, folders, rule, fold.artifacts["manifest"].path, logger)

    def candidates(self, artifact: Artifact) -> list[Candidate]:
        """The winner and its control; their other seeds are `repeats`."""
        from multistill.search.finalists import winner_of

        summary = artifact.summary
        index = summary["models"]
        student = self.job.searched_student().name
        name, control = f"{student}-search", f"{student}-search-control"
        members = winner_of(summary)["members"]
        return [
            self.over_seeds(control, index, summary["control"]["members"]),
            self.over_seeds(name, index, members, compare_to=control),
        ]

    def plan(self, resources: Resources, artifacts: Artifacts) -> Mapping[str, Any]:
        from multistill.search.capacity import concurrency

        search, student = self.job.search, self.job.searched_student()
        name, finalists = student.name, min(search.retrain, search.trials)
        folds = planned_folds(self.job, artifacts)
        searches = 1 if not self.job.protocol.crosses or not search.nested else folds
        trial = student.train.model_copy(
            update={"epochs": search.epochs or student.train.epochs, **_trial_resources(search)}
        )
        rows: list[tuple[str, int | None, TrainSection]] = [
            (f"{name}-trial", searches and searches * search.trials, trial),
            (
                f"{name}-search",
                # Losing finalists are trained where they lost only.
                searches and folds and (searches * (finalists - 1) + folds) * search.seeds,
                student.train,
            ),
            (f"{name}-search-control", folds and folds * search.seeds, student.train),
        ]
        # How many fit on a cluster is known once its nodes are.
        unknown = self.job.resources.address is not None and search.concurrent is None
        return {
            "models": [
                {
                    **planned_training(
                        self.job, title, 1, student.model_copy(update={"train": train}), artifacts
                    ),
                    "trainings": trainings,
                }
                for title, trainings, train in rows
            ],
            "search": {
                "student": student.name,
                "trials": search.trials,
                "searches": searches,
                "crossed": self.job.protocol.crosses,
                "parameters": list(search.space),
                "concurrent": None if unknown else concurrency(search, [resources]),
            },
        }


def _trial_resources(search: SearchConfig) -> dict[str, Any]:
    return {
        "workers": search.workers_per_trial,
        "cpus_per_worker": search.cpus_per_trial,
        "gpus_per_worker": search.gpus_per_trial,
    }
