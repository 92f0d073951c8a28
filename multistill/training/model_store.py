"""Trained models as workspace artifacts, shared by all jobs that need the same training.

The fingerprint of a model covers data, settings and seed, but not its name. So adding a student
to a job trains only that student, and a searched student that equals a trained one is not
trained again.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multistill.errors import MultistillError
from multistill.workspace import DONE, Workspace, clear, fingerprint, read_json

if TYPE_CHECKING:
    from multistill.tracking.logger import RunLogger
    from multistill.training.task import TrainingTask

KIND = "models"
VERSION = 7
"""Increase it when a change alters trained weights or the files of a model."""

HISTORY = "history.json"
FILES = ("model.safetensors", "encoder.safetensors", "config.json", HISTORY)
"""Of a model folder; there is no encoder.safetensors where no encoder was trained."""

Index = Mapping[str, Mapping[str, Any]]
"""Model name -> `fingerprint`, `record_id` (on the tracking server), `role`, `seed`, `fold` (the
one that it was not trained on, or None)."""


class ModelStore:
    """The trained models of one workspace."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace

    def folder(self, model: Mapping[str, Any]) -> Path:
        """Folder of a model of an `Index`."""
        return self.workspace.folder(KIND, str(model["fingerprint"]))

    def holds(self, index: Index) -> bool:
        """Whether all models of an index exist; their folders may have been deleted by hand."""
        return all((self.folder(model) / DONE).exists() for model in index.values())

    def refuse_other_data(self, index: Index, inputs: Mapping[str, Collection[str]]) -> None:
        """Refuse models that were trained on other data, such as those of another fold.

        Args:
            inputs: accepted fingerprints of `manifest`, whose clips they are to predict, and of
                what else of that fold models read: `statistics`, `soft_targets` (one per seed).

        Raises:
            MultistillError: names the first.
        """
        for name, model in index.items():
            artifact = self.workspace.find(KIND, str(model["fingerprint"]))
            recorded = {} if artifact is None else artifact.meta["inputs"]
            if "manifest" not in recorded or any(
                key in recorded and recorded[key] not in accepted
                for key, accepted in inputs.items()
            ):
                raise MultistillError(
                    f"the model `{name}` in {self.folder(model)} was trained on another split or "
                    "fold than the one that it is to predict, so it may know these clips; remove "
                    "the folder of its stage and run the job again"
                )

    def histories(self, index: Index) -> dict[str, Any]:
        """history.json of every model of an index."""
        return {name: read_json(self.folder(model) / HISTORY) for name, model in index.items()}

    def train(
        self,
        planned: Sequence[tuple[TrainingTask, Mapping[str, str]]],
        out: Path,
        logger: RunLogger,
    ) -> dict[str, Any]:
        """Train the models that do not exist yet.

        Args:
            planned: tasks of different names, each with the fingerprints of the artifacts that it
                reads, by field of the task: `manifest`, `features`, `statistics` and, for
                distilled students, `soft_targets`. An input is ignored if the field is None or
                there is none, so a control does not depend on the teacher. Models that a task
                starts from are part of its identity.
            out: the calling stage's partial folder; holds checkpoints until all are done.

        Returns:
            `{"models": Index}`, for the stage's summary.
        """
        from multistill.training.launcher import train

        tasks = [task for task, _ in planned]
        inputs_of = {task.name: _inputs_of(task, inputs) for task, inputs in planned}
        fingerprints = {task.name: self._fingerprint(task, inputs) for task, inputs in planned}
        missing = [t for t in tasks if self.workspace.find(KIND, fingerprints[t.name]) is None]
        if len(missing) < len(tasks):
            logger.info(f"{len(tasks) - len(missing)} of {len(tasks)} models already exist")
        # Tasks with equal fingerprints are trained once, under the first name.
        first = {fingerprints[task.name]: task for task in reversed(missing)}
        to_train = [task for task in missing if first[fingerprints[task.name]] is task]
        work = out / "training"
        results = train(to_train, work, logger) if to_train else []
        records = {result["name"]: result.get("record_id") for result in results}
        for task in to_train:

            def build(folder: Path, task: TrainingTask = task) -> None:
                clear(folder)
                for file in FILES:
                    if (task.folder(work) / file).exists():
                        shutil.copy2(task.folder(work) / file, folder / file)

            self.workspace.make(
                KIND,
                fingerprints[task.name],
                build,
                config=task.identity(),
                inputs=inputs_of[task.name],
                provenance={"record_id": records.get(task.name)},
            )
        index = {task.name: self._entry(task, fingerprints[task.name]) for task in tasks}
        shutil.rmtree(work, ignore_errors=True)
        return {"models": index}

    def _entry(self, task: TrainingTask, fingerprint: str) -> dict[str, Any]:
        artifact = self.workspace.find(KIND, fingerprint)
        assert artifact is not None
        return {
            "fingerprint": fingerprint,
            "record_id": artifact.meta["provenance"].get("record_id"),
            "role": task.role,
            "seed": task.seed,
            "fold": task.leave_out_fold,
        }

    @staticmethod
    def _fingerprint(task: TrainingTask, inputs: Mapping[str, str]) -> str:
        return fingerprint(KIND, VERSION, task.identity(), _inputs_of(task, inputs))


def _inputs_of(task: TrainingTask, inputs: Mapping[str, str]) -> dict[str, str]:
    return {
        field: value for field, value in inputs.items() if getattr(task, field, None) is not None
    }
