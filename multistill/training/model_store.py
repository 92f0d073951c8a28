"""Trained models as artifacts of their own, found by any job that needs the same training.

A model's name does not count: equal data, settings and seed give one model, whatever it is
called. So adding a student trains one student, and a searched student that equals one
already trained is not trained again.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multistill.workspace import DONE, Workspace, clear, fingerprint, read_json

if TYPE_CHECKING:
    from multistill.tracking.logger import RunLogger
    from multistill.training.task import TrainingTask

KIND = "models"
VERSION = 2
"""Raise it when a change alters trained weights or the files of a model."""

HISTORY = "history.json"
FILES = ("model.safetensors", "config.json", HISTORY)

Index = Mapping[str, Mapping[str, Any]]
"""Model name -> `fingerprint`, `record_id` (in the tracking server), `role`, `seed`, `fold`
(the one it was not trained on, or None) and `control_of`."""


class ModelStore:
    """The models of one workspace."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace

    def folder(self, model: Mapping[str, Any]) -> Path:
        """Folder of a model of an `Index`."""
        return self.workspace.folder(KIND, str(model["fingerprint"]))

    def holds(self, index: Index) -> bool:
        """Whether all models of an index exist: folders may have been deleted by hand."""
        return all((self.folder(model) / DONE).exists() for model in index.values())

    def histories(self, index: Index) -> dict[str, Any]:
        """history.json of every model of an index."""
        return {name: read_json(self.folder(model) / HISTORY) for name, model in index.items()}

    def train(
        self,
        tasks: Sequence[TrainingTask],
        inputs: Mapping[str, str],
        out: Path,
        logger: RunLogger,
    ) -> dict[str, Any]:
        """Train the models that do not exist yet.

        Args:
            inputs: fingerprints of what the tasks read, by the task's field: `manifest`,
                `features` and, for distilled students, `soft_targets`. Those of fields that a
                task leaves empty do not count, so a control is the same under any teacher.
            out: the calling stage's partial folder; holds checkpoints until all are done.
        Returns:
            `{"models": Index}`, for the stage's summary.
        """
        from multistill.training.launcher import train

        names = {task.name: self._fingerprint(task, inputs) for task in tasks}
        absent = [t for t in tasks if self.workspace.find(KIND, names[t.name]) is None]
        if len(absent) < len(tasks):
            logger.info(f"{len(tasks) - len(absent)} of {len(tasks)} models exist already")
        # Equal trainings under several names run once, under the first name.
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
                inputs=_read_by(task, inputs),
                provenance={"record_id": records.get(task.name)},
            )
        index = {task.name: self._entry(task, names[task.name]) for task in tasks}
        shutil.rmtree(work, ignore_errors=True)
        return {"models": index}

    def _entry(self, task: TrainingTask, name: str) -> dict[str, Any]:
        artifact = self.workspace.find(KIND, name)
        assert artifact is not None
        return {
            "fingerprint": name,
            "record_id": artifact.meta["provenance"].get("record_id"),
            "role": task.role,
            "seed": task.seed,
            "fold": task.leave_out_fold,
            "control_of": task.control_of,
        }

    @staticmethod
    def _fingerprint(task: TrainingTask, inputs: Mapping[str, str]) -> str:
        return fingerprint(KIND, VERSION, task.identity(), _read_by(task, inputs))


def _read_by(task: TrainingTask, inputs: Mapping[str, str]) -> dict[str, str]:
    return {field: value for field, value in inputs.items() if getattr(task, field) is not None}
