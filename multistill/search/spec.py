"""The specification of a search, in the file that its drivers and trials read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multistill.config import SearchConfig
from multistill.damaged import reading
from multistill.errors import UsageError
from multistill.training.task import TrainingTask
from multistill.workspace import read_json, write_json

SPEC = "search.json"


@dataclass(frozen=True)
class SearchSpec:
    """One search.

    Attributes:
        base: the student whose settings are varied.
        fingerprint: of the job's search stage.
        study: unique name of the study in the Optuna storage.
    """

    base: TrainingTask
    config: SearchConfig
    seed: int
    fingerprint: str
    study: str

    @property
    def epochs(self) -> int:
        """Epoch budget of a trial."""
        return self.config.epochs or self.base.train.epochs

    @property
    def directions(self) -> list[str]:
        """Optuna's direction of each objective."""
        first = "maximize" if self.config.mode == "max" else "minimize"
        return [first, "minimize"] if self.config.second else [first]

    def with_budget(self, task: TrainingTask) -> TrainingTask:
        """The task with the epochs, workers and metric of a trial."""
        config = self.config
        return task.with_train(
            epochs=self.epochs,
            metric=config.metric,
            workers=config.workers_per_trial,
            cpus_per_worker=config.cpus_per_trial,
            gpus_per_worker=config.gpus_per_trial,
        )

    def write(self, folder: Path) -> None:
        """Write the specification to `folder`."""
        write_json(
            folder / SPEC,
            {
                "base": self.base.to_dict(),
                "config": self.config.model_dump(mode="json"),
                "seed": self.seed,
                "fingerprint": self.fingerprint,
                "study": self.study,
            },
        )

    @classmethod
    def read(cls, folder: Path) -> SearchSpec:
        """Read the specification from `folder`.

        Raises:
            UsageError: the folder holds no search.
            MultistillError: the file is damaged.
        """
        try:
            with reading(folder / SPEC):
                values: dict[str, Any] = read_json(folder / SPEC)
                return cls(
                    base=TrainingTask.from_dict(values["base"]),
                    config=SearchConfig.model_validate(values["config"]),
                    seed=int(values["seed"]),
                    fingerprint=str(values["fingerprint"]),
                    study=str(values["study"]),
                )
        except FileNotFoundError as error:
            raise UsageError(
                f"{folder} holds no search; give the folder or name of a search that was started"
            ) from error
