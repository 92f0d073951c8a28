"""What a search was asked to do, as the file that drivers and trials read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multistill.config import SearchConfig
from multistill.errors import MultistillError, UsageError
from multistill.training.task import TrainingTask
from multistill.workspace import read_json, write_json

FILE = "search.json"


@dataclass(frozen=True)
class Request:
    """One search.

    Attributes:
        base: the student whose settings are varied.
        fingerprint: of the job's search stage.
        study: name in the Optuna storage, unlike any other.
    """

    base: TrainingTask
    config: SearchConfig
    seed: int
    fingerprint: str
    study: str

    @property
    def epochs(self) -> int:
        """Budget of a trial."""
        return self.config.epochs or self.base.train.epochs

    @property
    def directions(self) -> list[str]:
        first = "maximize" if self.config.mode == "max" else "minimize"
        return [first, "minimize"] if self.config.second else [first]

    def budgeted(self, task: TrainingTask) -> TrainingTask:
        """The task cut to a trial's budget, its best epoch chosen by the search's metric."""
        config = self.config
        return task.with_train(
            epochs=self.epochs,
            metric=config.metric,
            workers=config.workers_per_trial,
            cpus_per_worker=config.cpus_per_trial,
            gpus_per_worker=config.gpus_per_trial,
        )

    def write(self, folder: Path) -> None:
        write_json(
            folder / FILE,
            {
                "base": self.base.to_dict(),
                "config": self.config.model_dump(mode="json"),
                "seed": self.seed,
                "fingerprint": self.fingerprint,
                "study": self.study,
            },
        )

    @classmethod
    def read(cls, folder: Path) -> Request:
        """The search of this folder.

        Raises:
            UsageError: there is none.
            MultistillError: the file is damaged.
        """
        try:
            values: dict[str, Any] = read_json(folder / FILE)
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
        except (ValueError, KeyError, TypeError) as error:
            raise MultistillError(
                f"{folder / FILE} is damaged ({error}); remove the folder {folder} and search anew"
            ) from error
