"""The step that searches one student's settings and retrains the best trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from multistill.config import SearchConfig
from multistill.hardware import Resources
from multistill.pipeline.step import Artifacts, StepRun
from multistill.pipeline.steps.training import ModelStep, planned_training, student_task
from multistill.training.model_store import VERSION
from multistill.workspace import Artifact

if TYPE_CHECKING:
    from multistill.evaluation.candidates import Candidate


class Search(ModelStep):
    """Ray Tune and Optuna over one student, judged on validation."""

    name = "search"
    artifact = "search"
    version = 4
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
        return ("manifest", "features", "statistics", "soft_targets")

    def problems(self) -> Sequence[str]:
        from multistill.search.storage import storage_problem

        problem = storage_problem(self.job.search.storage)
        return [problem] if problem else []

    def build(self, run: StepRun) -> Mapping[str, Any]:
        from multistill.search.finalists import retrain
        from multistill.search.study import search

        job = self.job
        base = student_task(job, run.artifacts, job.searched_student())
        trials = search(base, job.search, job.seed, run.out, run.logger, run.fingerprint)
        final = retrain(
            base,
            trials["top"],
            job.search,
            self.model_store,
            self.inputs(run.artifacts),
            run.out,
            run.logger,
        )
        self._register(final, run)
        return {**trials, **final}

    def _register(self, final: Mapping[str, Any], run: StepRun) -> None:
        """Offer the winner to the model registry, by the job's rule."""
        from multistill.search.champion import register

        rule = self.job.tracking.champion
        if rule is None:
            return
        winner = next(f for f in final["finalists"] if f["name"] == final["winner"])
        folders = [self.model_store.folder(final["models"][n]) for n in winner["members"]]
        name = rule.model or f"{self.job.name}-{self.job.searched_student().name}"
        register(name, folders, rule, run.artifacts["manifest"].path, run.logger)

    def candidates(self, artifact: Artifact) -> list[Candidate]:
        """The winner and its control; their other seeds are `repeats`."""
        summary = artifact.summary
        index = summary["models"]
        student = self.job.searched_student().name
        name, control = f"{student}-search", f"{student}-search-control"
        winner = next(f for f in summary["finalists"] if f["name"] == summary["winner"])
        return [
            self.over_seeds(control, index, summary["control"]["members"]),
            self.over_seeds(name, index, winner["members"], compare_to=control),
        ]

    def plan(self, resources: Resources, artifacts: Artifacts) -> Mapping[str, Any]:
        from multistill.search.capacity import concurrency

        search, student = self.job.search, self.job.searched_student()
        name, finalists = student.name, min(search.retrain, search.trials)
        trial = student.train.model_copy(
            update={"epochs": search.epochs or student.train.epochs, **_trial_resources(search)}
        )
        rows = [
            (f"{name}-trial", search.trials, trial),
            (f"{name}-search", finalists * search.seeds, student.train),
            (f"{name}-search-control", search.seeds, student.train),
        ]
        # How many fit on a cluster is known once its nodes are.
        unknown = self.job.resources.address is not None and search.concurrent is None
        return {
            "models": [
                planned_training(
                    self.job,
                    title,
                    trainings,
                    student.model_copy(update={"train": train}),
                    artifacts,
                )
                for title, trainings, train in rows
            ],
            "search": {
                "student": student.name,
                "trials": search.trials,
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
