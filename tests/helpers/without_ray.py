"""What workers of Ray do, done in this process: a job's results need no cluster to be tested.

Their start takes most of the time of a small job. What is sent to them, and what they return, is
pickled here, too. How Ray schedules, restarts and moves this work is tested with Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pyarrow as pa
import pytest
import torch

from multistill.config import FeaturesConfig
from multistill.features import encode as encoding
from multistill.features.actors import EncodeShard
from multistill.features.identity import resolved_weights
from multistill.features.shards import plan_shards
from multistill.features.store import SHARDS
from multistill.pipeline.step import Step
from multistill.pipeline.steps import continual, data, distill, evaluation, pretrain
from multistill.tracking.logger import NullLogger, RunLogger
from multistill.training import launcher, worker
from multistill.training.distributed import ProcessGroup
from multistill.training.events import EventListener
from multistill.training.task import TrainingTask

T = TypeVar("T")

_encode = encoding.encode


@contextmanager
def without_ray() -> Iterator[None]:
    """Runs of jobs start no Ray and no process. Searches and several workers need one."""
    with _in_this_process() as patch:
        for step in _with_ray(Step):
            patch.setattr(step, "uses_ray", False)
        yield


def _with_ray(step: type[Step]) -> Iterator[type[Step]]:
    """Steps, from this one on, that say of themselves that they use Ray."""
    if vars(step).get("uses_ray"):
        yield step
    for kind in step.__subclasses__():
        yield from _with_ray(kind)


@contextmanager
def search_alone() -> Iterator[None]:
    """Runs of jobs use Ray for the trials of their search only."""
    with _in_this_process():
        yield


@contextmanager
def _in_this_process() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        for step in (continual, data, distill, evaluation, pretrain):
            patch.setattr(step, "on_cluster", on_cluster)
        patch.setattr(encoding, "encode", encode)
        patch.setattr(launcher, "train", train)
        yield patch


def on_cluster(function: Callable[..., T], *arguments: Any) -> T:
    function, arguments = _sent((function, arguments))
    return _sent(function(*arguments))


def encode(
    manifest: Path,
    config: FeaturesConfig,
    out: Path,
    logger: RunLogger | None = None,
) -> dict[str, Any]:
    """Shard by shard, as a single actor encodes."""
    out.mkdir(parents=True, exist_ok=True)
    plan = plan_shards(manifest, config.shard_seconds, out)
    (out / SHARDS).mkdir(exist_ok=True)
    weights = resolved_weights(config)
    actor = EncodeShard(config.model_dump(), weights, str(plan.path), str(out), False, 1)
    for shard in range(plan.shards):
        assert actor(pa.table({"shard": [shard]}))["error"].to_pylist() == [None]
    return _encode(manifest, config, out, logger)  # every shard is done: it finishes the store


def train(
    tasks: Sequence[TrainingTask], out: Path, logger: RunLogger | None = None
) -> list[dict[str, Any]]:
    """One after another, as a single worker trains."""
    out.mkdir(parents=True, exist_ok=True)
    listener = EventListener(tasks, out, logger or NullLogger())
    events: Any = SimpleNamespace(put=lambda event: listener.handle(_sent(event)))
    alone, cpu = ProcessGroup(), torch.device("cpu")
    watch: Any = lambda: False  # noqa: E731 - nobody asks to hand back
    for task in _sent(list(tasks)):
        assert task.train.workers == 1
        worker._train(task, task.folder(out), alone, cpu, events, watch)
    listener.check_results(tasks)
    return listener.results()


def _sent(value: T) -> T:
    from ray import cloudpickle

    received: T = cloudpickle.loads(cloudpickle.dumps(value))
    return received
