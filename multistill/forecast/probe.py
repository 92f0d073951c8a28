"""Measures rates with a few clips and a few epochs, in processes like those of a run. No Ray.

Each function that ends in `_in_worker` runs in a process of its own kind, several at the same time
where a run would have several, so that their rates include what they take from each other.
"""

from __future__ import annotations

import multiprocessing
import resource
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from multistill.config import FeaturesConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from multistill.training.task import TrainingTask

CLIPS = 24
"""Clips that are encoded, evenly over the lengths of the corpus."""
BATCHES = 4
MIN_ROWS = 32
"""Rows of a probe's epoch: so many batches, and at least so many."""
SECONDS = 6.0
MIN_EPOCHS, MAX_EPOCHS = 2, 6
"""A training's probe ends after the epoch in which the seconds are over; the first epoch, which
allocates memory, does not count."""


@dataclass(frozen=True)
class TrainingProbe:
    """A training to measure: the task, on a small manifest, and how a run would place it."""

    key: str
    title: str
    task: TrainingTask
    threads: int
    together: int


def spaced(durations: Sequence[float], count: int) -> list[int]:
    """Places of `count` clips whose lengths are spread as those of all; all if there are fewer."""
    order = np.argsort(np.asarray(durations), kind="stable")
    if len(order) <= count:
        return [int(place) for place in order]
    steps = (np.arange(count) + 0.5) * len(order) / count
    return [int(order[int(step)]) for step in steps]


@contextmanager
def workers(count: int) -> Iterator[ProcessPoolExecutor]:
    """New processes, as a run's workers are."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context) as pool:
        yield pool


def measure_encoding(
    manifest: Path, config: FeaturesConfig, out: Path, together: int, cuda: bool
) -> tuple[dict[str, float], Path]:
    """Encode the clips of a manifest in `together` processes, each all of them.

    Returns:
        the rate's values, and the feature store of the first process.

    Raises:
        MultistillError: an encoder cannot be loaded, or no clip can be encoded.
    """
    folders = [out / f"store-{number}" for number in range(together)]
    with workers(together) as pool:
        futures = [
            pool.submit(_encode_in_worker, manifest, config, folder, cuda) for folder in folders
        ]
        found = [future.result() for future in futures]
    for folder in folders[1:]:
        shutil.rmtree(folder, ignore_errors=True)
    return {name: _middle([each[name] for each in found]) for name in found[0]}, folders[0]


def measure_trainings(
    probes: Sequence[TrainingProbe], out: Path
) -> tuple[dict[str, dict[str, float]], float]:
    """Train each a few epochs, as many at the same time as a run would.

    Returns:
        the values of each by key, and the seconds of a worker's start.
    """
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[dict[str, float]]] = {}
    starts: list[float] = []
    # Long ones and short ones side by side would measure less company than a run has.
    for together in sorted({probe.together for probe in probes}):
        same = [probe for probe in probes if probe.together == together]
        copies = [probe for probe in same for _ in range(1 if len(same) >= together else together)]
        with workers(min(together, len(copies))) as pool:
            started = time.time()
            starts.append(pool.submit(_start_in_worker, started).result())
            futures = [
                (probe, pool.submit(_train_in_worker, probe, out / f"state-{number}-{together}"))
                for number, probe in enumerate(copies)
            ]
            for probe, future in futures:
                found.setdefault(probe.key, []).append(future.result())
    values = {
        key: {name: _middle([each[name] for each in many]) for name in many[0]}
        for key, many in found.items()
    }
    return values, _middle(starts)


def _middle(values: Sequence[float]) -> float:
    return float(np.median(values))


def _start_in_worker(started: float) -> float:
    """Seconds until a worker has imported what a training imports."""
    import multistill.training.worker  # noqa: F401

    return time.time() - started


def _encode_in_worker(
    manifest: Path, config: FeaturesConfig, out: Path, cuda: bool
) -> dict[str, float]:
    import torch

    from multistill.errors import MultistillError
    from multistill.features.decode import Wave  # noqa: F401 - imported before the clock starts
    from multistill.features.identity import resolved_weights, store_info
    from multistill.features.shards import plan_shards
    from multistill.features.sizing import CPUS_PER_ENCODER
    from multistill.features.store import SHARDS
    from multistill.features.store_writer import finish_store, read_marker
    from multistill.features.waves import RECORDINGS
    from multistill.features.worker import PROBE_TEXT, ShardEncoder, probe_wave

    torch.set_num_threads(int(CPUS_PER_ENCODER))
    started = time.monotonic()
    (out / SHARDS).mkdir(parents=True, exist_ok=True)
    plan = plan_shards(manifest, config.shard_seconds, out, RECORDINGS.columns)
    encoder = ShardEncoder(config, resolved_weights(config), "cuda" if cuda else "cpu")
    encoder.speech.encode([probe_wave()])
    encoder.text.encode([PROBE_TEXT])
    loaded = time.monotonic()
    for shard in range(plan.shards):
        encoder.write(RECORDINGS.decode(plan.path, shard, config), shard, out)
    seconds = time.monotonic() - loaded
    markers = [marker for n in range(plan.shards) if (marker := read_marker(out, n)) is not None]
    audio = sum(marker["audio_seconds"] for marker in markers)
    if not audio:
        [reason] = [marker["quarantined"][0][2] for marker in markers][:1]
        raise MultistillError(
            f"the probe could encode none of {plan.clips} clips, the first since: {reason}; "
            "check the recordings with `multistill validate JOB --data`"
        )
    stored = sum(marker["bytes"] for marker in markers)
    finish_store(out, markers, store_info(config, plan.clips, markers[0]))
    return {
        "seconds_per_audio_second": seconds / audio,
        "bytes_per_audio_second": stored / audio,
        "start_seconds": loaded - started,
        **_memory(cuda),
    }


def _train_in_worker(probe: TrainingProbe, state: Path) -> dict[str, float]:
    import torch

    from multistill.hardware import default_device
    from multistill.training.data import TrainingData
    from multistill.training.loop import fit

    torch.set_num_threads(probe.threads)
    device = default_device()
    task = probe.task.with_train(epochs=MAX_EPOCHS, patience=None)
    data = TrainingData.open(task)
    reports, walls = [], []
    begun = before = time.monotonic()
    for report in fit(task, state_dir=state, device=device, data=data):
        now = time.monotonic()
        reports.append(report.metrics)
        walls.append(now - before)
        before = now
        if len(reports) >= MIN_EPOCHS and now - begun > SECONDS:
            break
    sizes = [file.stat().st_size for file in state.rglob("*.safetensors") if "epoch-" in str(file)]
    models = [file.stat().st_size for file in state.rglob("model.safetensors")]
    shutil.rmtree(state, ignore_errors=True)
    train = [len(data.train) / each["samples_per_second"] for each in reports[1:]]
    whole = [each["seconds"] for each in reports[1:]]
    valid = [all_of - part for all_of, part in zip(whole, train, strict=True)]
    rest = [wall - all_of for wall, all_of in zip(walls[1:], whole, strict=True)]
    return {
        "train_seconds_per_row": _middle(train) / max(1, len(data.train)),
        "valid_seconds_per_row": _middle(valid) / max(1, len(data.valid)),
        "epoch_seconds": max(0.0, _middle(rest)),
        "checkpoint_bytes": float(sum(sizes) + sum(models[:1])),
        "model_bytes": float(max(models, default=0)),
        **_memory(device.type == "cuda"),
    }


def _memory(cuda: bool) -> dict[str, float]:
    """Peak bytes of this process and of its GPU."""
    import torch

    peak = {"peak_bytes": float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)}
    if cuda:
        peak["gpu_peak_bytes"] = float(torch.cuda.max_memory_allocated())
    return peak
