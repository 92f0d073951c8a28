"""The step that runs the teachers once over all clips outside test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from multistill.cluster.tasks import on_cluster
from multistill.config.models import STATE_WEIGHTS
from multistill.pipeline.folds import build_folds, parts_of
from multistill.pipeline.seeds import (
    SEEDS,
    accepted_inputs,
    soft_targets_fingerprint,
    soft_targets_folder,
    teachers_of,
)
from multistill.pipeline.step import Artifacts, Step, StepRun
from multistill.training.model_store import Index, ModelStore
from multistill.workspace import Artifact


class Distill(Step):
    """The teachers' outputs for every row outside test, of every seed."""

    name = "distill"
    artifact = "soft_targets"
    version = 3
    sections = frozenset({"distillation", "seeds"})
    uses_ray = True

    def config(self) -> Any:
        return {"seeds": self.job.seeds, **self._of_a_seed()}

    def _of_a_seed(self) -> dict[str, Any]:
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
        return all(
            (soft_targets_folder(part.path, seed) / name).is_file()
            for part in parts_of(artifact)
            for seed in range(self.job.seeds)
            for name in names
        )

    def build(self, run: StepRun) -> Mapping[str, Any]:
        from multistill.distillation.files import SOFT_TARGETS
        from multistill.distillation.stage import soft_targets

        model_store = ModelStore(self.workspace)

        def build(artifacts: Artifacts, out: Path) -> Mapping[str, Any]:
            index: Index = artifacts["teachers"].summary["models"]
            read = ("manifest", "features", "statistics")
            inputs = {name: artifacts[name].fingerprint for name in read if name in artifacts}
            model_store.refuse_other_data(index, accepted_inputs(inputs, artifacts))
            summary: Mapping[str, Any] = {}
            fingerprints = []
            for number, teachers in enumerate(teachers_of(self.job, index)):
                summary = on_cluster(
                    soft_targets,
                    artifacts["manifest"].path,
                    artifacts["features"].path,
                    [model_store.folder(index[name]) for name in teachers.ensemble],
                    {
                        fold: [model_store.folder(index[name]) for name in names]
                        for fold, names in teachers.folds.items()
                    },
                    self._reads(*STATE_WEIGHTS),
                    self._reads("sequence_weight"),
                    soft_targets_folder(out, number) / SOFT_TARGETS,
                )
                fingerprints.append(
                    soft_targets_fingerprint(
                        self.version, self._of_a_seed(), inputs, teachers, index
                    )
                )
            return {**summary, SEEDS: fingerprints}

        summary = build_folds(run, build)
        run.logger.metrics({k: v for k, v in summary.items() if isinstance(v, int | float)})
        return summary
