"""Trained models as artifacts of their own, found by any job that asks for the same training.

A model's name does not count: equal data, settings and seed give one model, whatever it is
called. So adding a student trains one student, and a searched student that equals one
already trained is not trained twice.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multistill.workspace import Workspace, clear, fingerprint

if TYPE_CHECKING:
    from multistill.tracking.logger import RunLogger
    from multistill.training.task import TrainingTask

KIND = "models"
FORMAT = 1
FILES = ("model.safetensors", "config.json", "history.json")

Index = Mapping[str, Mapping[str, Any]]
"""Model name -> its `fingerprint` and `record_id` (in the tracking server)."""


class ModelStore:
    """The models of one workspace."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace

    def folder(self, model: Mapping[str, Any]) -> Path:
        return self.workspace.folder(KIND, str(model["fingerprint"]))

    def train(
        self,
        tasks: Sequence[TrainingTask],
        inputs: Mapping[str, str],
        out: Path,
        logger: RunLogger,
    ) -> dict[str, Any]:
        """Train what is missing.

        Args:
            inputs: artifact name -> fingerprint of what the tasks read; `distill` counts for
                tasks with soft targets only, so a control is the same under any teacher.
            out: the calling stage's partial folder; holds checkpoints until all are done.
        Returns:
            `{"models": Index}`, for the stage's summary.
        """
        from multistill.training.launcher import train

        names = {task.name: self._fingerprint(task, inputs) for task in tasks}
        absent = [t for t in tasks if self.workspace.find(KIND, names[t.name]) is None]
        if len(absent) < len(tasks):
            logger.info(f"{len(tasks) - len(absent)} of {len(tasks)} models are there already")
        # Two names for one training are trained once, under the first.
        first = {names[task.name]: task for task in reversed(absent)}
        missing = [task for task in absent if first[names[task.name]] is task]
        work = out / "training"
        results = train(missing, work, logger) if missing else []
        records = {result["name"]: result.get("record_id") for result in results}
        for task in missing:

            def build(folder: Path, source: Path = work / task.name) -> None:
                clear(folder)
                for file in FILES:
                    shutil.copy2(source / file, folder / file)

            self.workspace.make(
                KIND,
                names[task.name],
                build,
                config=task.identity(),
                inputs=inputs,
                provenance={"record_id": records.get(task.name)},
            )
        index = {}
        for name, print_ in names.items():
            found = self.workspace.find(KIND, print_)
            assert found is not None
            record = found.meta["provenance"].get("record_id")
            index[name] = {"fingerprint": print_, "record_id": record}
        shutil.rmtree(work, ignore_errors=True)
        return {"models": index}

    @staticmethod
    def _fingerprint(task: TrainingTask, inputs: Mapping[str, str]) -> str:
        read = {k: v for k, v in inputs.items() if k != "distill" or task.soft_targets is not None}
        return fingerprint(KIND, FORMAT, task.identity(), read)
