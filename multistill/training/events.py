"""The driver's side of a training: turns events of the workers into records and progress."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray.util.queue import Empty, Queue

from multistill.cluster.waiting import Waiting
from multistill.config import Section
from multistill.errors import MultistillError
from multistill.full_disk import FullDiskError, is_full
from multistill.models.files import read_model_config
from multistill.tracking.logger import RunLogger
from multistill.training.export import is_finished
from multistill.training.progress import TrainingProgress
from multistill.training.task import TrainingTask

_POLL_S = 0.5


class EventListener:
    """Records the events of some tasks, and raises their errors.

    Args:
        out: folder of the results.
        logger: gets a child logger per task.

    Attributes:
        working: a worker group has started and has not died.
    """

    def __init__(self, tasks: Sequence[TrainingTask], out: Path, logger: RunLogger) -> None:
        self.tasks = {task.name: task for task in tasks}
        self.out, self.logger = out, logger
        self.children: dict[str, RunLogger] = {}
        self.failures: dict[str, MultistillError] = {}
        self.working = False
        self._closed: set[str] = set()
        self._progress = TrainingProgress(
            {t.name: t.train.epochs for t in tasks if not is_finished(t.folder(out))}
        )

    @contextmanager
    def listening(self, events: Queue, waiting: Waiting) -> Iterator[None]:
        """Handle events in a thread while the block runs; drain the queue at its end.

        Args:
            waiting: told whether workers run.
        """
        done = threading.Event()
        self.working = False

        def listen() -> None:
            while True:
                draining = done.is_set()
                waiting.look(lambda: self.working)
                try:
                    self.handle(events.get(timeout=_POLL_S))
                except Empty:
                    if draining:
                        return

        thread = threading.Thread(target=listen, name="training-events", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def handle(self, event: dict[str, Any]) -> None:
        """Record one event of `multistill.training.worker`."""
        if event["kind"] in ("working", "lost"):
            self.working = event["kind"] == "working"
            return
        name = event["task"]
        task, child = self.tasks[name], self._child(name)
        epochs = task.train.epochs
        match event["kind"]:
            case "started":
                self._progress.started(name, event["epoch"])
                child.params(_params(task, event))
                child.tags({"worker": event["worker"]})
                for problem in event["problems"]:
                    child.info(f"{name}: {problem}; it is not used")
                if event["epoch"] or event["steps"]:
                    child.info(f"{name}: resuming after {_reached(event)}")
                elif event["problems"]:
                    child.info(f"{name}: no intact checkpoint, training starts from scratch")
            case "epoch":
                metrics = event["metrics"]
                child.metrics(metrics, step=event["epoch"])
                self._progress.reached(name, event["epoch"])
                shown = {
                    key.removeprefix("valid_"): value
                    for key, value in metrics.items()
                    if key in ("train_loss", f"valid_{task.train.metric}")
                }
                if len(self.tasks) == 1:
                    child.progress(event["epoch"], epochs, "epochs", **shown)
                else:
                    self._show_progress()
            case "interrupted":
                child.info(f"{name}: saved after {_reached(event)}")
            case "finished":
                summary = event["summary"]
                child.metrics({"best_epoch": float(summary["best_epoch"])})
                self._progress.ended(name)
                self._close(name, "FINISHED")
            case "failed":
                kind = FullDiskError if event["full_disk"] else MultistillError
                self.failures.setdefault(name, kind(event["reason"]))
                self._progress.ended(name)
                self._close(name, "FAILED")

    def _show_progress(self) -> None:
        progress = self._progress
        left = progress.seconds_left
        stats = {} if left is None else {"seconds_left": left}
        self.logger.progress(
            progress.done, progress.total, "epochs", running=progress.running, **stats
        )

    def raise_error(self, error: Exception, restarts: int) -> None:
        """Raise the first failure that a worker reported, else the error of the worker group."""
        self.close("FAILED")
        for failure in self.failures.values():
            raise failure from error
        if is_full(error):  # of Ray Train's own files
            raise FullDiskError.of(self.out, "finished epochs") from error
        lines = str(error).strip().splitlines()
        raise MultistillError(
            f"training stopped after {restarts} restarts: {lines[-1] if lines else error!r}; "
            "finished epochs are kept, run the same command again to resume"
        ) from error

    def close(self, status: str) -> None:
        """Close the records of all tasks that are still open."""
        for name in self.children:
            self._close(name, status)

    def unfinished(self, tasks: Sequence[TrainingTask]) -> list[TrainingTask]:
        """Those of the tasks that have no result and did not fail."""
        return [
            task
            for task in tasks
            if task.name not in self.failures and not is_finished(task.folder(self.out))
        ]

    def check_results(self, tasks: Sequence[TrainingTask]) -> None:
        """Raise the first failure of the tasks, or an error if one of them has no result."""
        for task in tasks:
            if task.name in self.failures:
                raise self.failures[task.name]
            folder = task.folder(self.out)
            if not is_finished(folder):
                raise MultistillError(
                    f"the training of `{task.name}` ended, but {folder} holds no "
                    "model; the folder must be on storage that every node of the cluster can access"
                )

    def results(self) -> list[dict[str, Any]]:
        """Name, folder, record id and summary of every task."""
        results = []
        for name, task in self.tasks.items():
            folder = task.folder(self.out)
            child = self.children.get(name)
            results.append(
                {
                    **read_model_config(folder)["training"],
                    "name": name,
                    "folder": str(folder),
                    "record_id": child.record_id if child else None,
                }
            )
        return results

    def _child(self, name: str) -> RunLogger:
        if name not in self.children:
            self.children[name] = self.logger.child(name, key=name, kind="model")
        return self.children[name]

    def _close(self, name: str, status: str) -> None:
        if name not in self._closed:
            self._closed.add(name)
            self._child(name).close(status)


def _reached(event: Mapping[str, Any]) -> str:
    steps = f" and step {event['steps']} of the next" if event["steps"] else ""
    return f"epoch {event['epoch']}{steps}"


def _params(task: TrainingTask, event: dict[str, Any]) -> dict[str, object]:
    config, spec = task.train, task.spec
    distillation = task.distillation.model_dump() if task.distillation else {}
    return {
        "training_seed": task.seed,  # a job's `seed` is that of its top-level run
        "modality": spec.modality,
        "layers": spec.layers,
        "width": spec.width,
        "epochs": config.epochs,
        "batch_size": config.batch_size,
        "learning_rate": config.learning_rate,
        "loss": config.loss,
        "workers": config.workers,
        **({"label_share": task.label_share} if task.label_share < 1.0 else {}),
        "train_rows": event["train_rows"],
        "valid_rows": event["valid_rows"],
        **{f"distillation.{key}": value for key, value in distillation.items()},
        **_changed("train.augmentation", config.augmentation),
        **{
            key: value
            for name, source in task.encoders.items()
            for key, value in _changed(f"features.{name}.train", source.config.train).items()
        },
    }


def _changed(section: str, settings: Section) -> dict[str, object]:
    """Settings that are not the default, by their names in the job file."""
    return {
        f"{section}.{key}": value
        for key, value in settings.model_dump(exclude_defaults=True).items()
    }
