"""Time and memory of the prepare stage.

    python benchmarks/prepare.py [--files 50000] [--rows 1000000] [--folder /tmp/prepare-bench]

1. A corpus of many small wav files with one CSV table: `prepare` against a bare loop of
   `soundfile.info` over the same files, on one core each (best of `--repeats`, alternating, file
   cache warm).
2. Tables of `--rows` and of a tenth of it over the same files: `prepare`, the shard plan, writing
   and opening the index of a feature store of all clips, a training's data of it, and the batches
   of an epoch over all rows.

Each measurement runs in a process of its own.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pyarrow as pa
import soundfile
from rows import add_row

if TYPE_CHECKING:
    from multistill.training.task import TrainingTask

Figures: TypeAlias = dict[str, float]

CLASSES = ("neutral", "happy", "surprise", "angry", "sad", "disgust", "fear")


def clip_name(number: int) -> str:
    return f"wav/{number // 1000:05d}/clip{number:07d}.wav"


def make_files(folder: Path, files: int, seconds: float) -> None:
    """Write distinct clips of noise, a thousand per folder."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.1, 16_000 * 60).astype(np.float32)
    size = int(16_000 * seconds)
    for number in range(files):
        path = folder / clip_name(number)
        if number % 1000 == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
        start = int(rng.integers(len(noise) - size))
        soundfile.write(path, noise[start : start + size] * rng.uniform(0.5, 1), 16_000, "PCM_16")


def make_table(path: Path, rows: int, files: int) -> None:
    """Write rows with ten votes each, 200 per session; with more rows than files, files repeat."""
    rng = np.random.default_rng(1)
    names = ("utterance_id", "audio_path", "text", "speaker", "session", "dialogue", "turn")
    shares = (4 / 7, *(1 / 14,) * 6)
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow([*names, *CLASSES])
        for start in range(0, rows, 100_000):
            votes = rng.multinomial(10, shares, min(100_000, rows - start)).tolist()
            for row, given in enumerate(votes, start):
                session = row // 200
                writer.writerow(
                    [
                        f"utt{row:08d}",
                        clip_name(row % files),
                        f"문장 {row} 은 이렇게 들립니다",
                        f"spk{2 * session + row % 2:06d}",
                        f"ses{session:05d}",
                        f"dlg{row // 20:06d}",
                        row % 20,
                        *given,
                    ]
                )


def run_measurement(what: str, table: Path) -> Figures:
    """Run `measure` in a new process."""
    process = subprocess.run(
        [sys.executable, __file__, "--measure", what, str(table)],
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return json.loads(process.stdout.splitlines()[-1])


def measure(what: str, table: Path) -> Figures:
    """Seconds, and memory in MB, of one run on one core."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if what == "bare":
        with table.open(encoding="utf-8") as stream:
            paths = [table.parent / row["audio_path"] for row in csv.DictReader(stream)]
        started, cpu = time.perf_counter(), time.process_time()
        for path in paths:
            soundfile.info(path)
        return {"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu}
    steps: dict[str, Callable[[Path], Figures]] = {
        "prepare": prepare_table,
        "shards": plan_shards,
        "index": make_index,
        "opening": open_store,
        "data": open_data,
        "batches": plan_epoch,
    }
    return steps[what](table)


def timed(work: Callable[[], object]) -> Figures:
    """Seconds of wall and of processor time."""
    started, cpu = time.perf_counter(), time.process_time()
    work()
    return {"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu}


def peak_mb() -> float:
    """Most memory that this process has had, libraries included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def outputs(table: Path) -> Path:
    """Where what is made from a table stays for the next steps."""
    return table.with_suffix("")


def prepare_table(table: Path) -> Figures:
    from multistill.config import CorpusConfig, SplitConfig
    from multistill.corpora.prepare import prepare

    corpus = CorpusConfig(kind="table", path=str(table))
    out = outputs(table)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    result = timed(lambda: prepare([corpus], SplitConfig(), out, unpacked=out))
    return {**result, "peak_mb": peak_mb()}


def plan_shards(table: Path) -> Figures:
    from multistill.features.shards import plan_shards

    manifest, out = outputs(table) / "manifest.parquet", outputs(table) / "plan"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    return {**timed(lambda: plan_shards(manifest, 1800.0, out)), "peak_mb": peak_mb()}


def make_index(table: Path) -> Figures:
    """A store of all clips without their states."""
    from multistill.corpora.manifest import read_manifest
    from multistill.features.index import write_index
    from multistill.features.store import FORMAT, INFO
    from multistill.workspace import write_json

    manifest = read_manifest(outputs(table), ["utterance_id", "duration_s"])
    numbers = np.arange(len(manifest), dtype=np.int32)
    clips = {
        "utterance_id": manifest["utterance_id"],
        "shard": numbers // 4096,
        "batch": numbers // 16 % 256,
        "row": numbers % 16,
        "audio_frames": (manifest["duration_s"].to_numpy() * 50).astype(np.int32) + numbers % 100,
        "text_tokens": numbers % 20,
    }
    out = outputs(table) / "features"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    result = timed(lambda: write_index(out, pa.table(clips)))
    info = {"format": FORMAT, "dtype": "float16", "audio_dim": 1024, "text_dim": 768, "shards": []}
    write_json(out / INFO, info)
    return {**result, "peak_mb": peak_mb()}


def open_store(table: Path) -> Figures:
    """Until a first batch is found."""
    from multistill.features.store import FeatureStore

    name = f"table/utt{7:08d}"

    def work() -> None:
        FeatureStore(outputs(table) / "features").audio_frames([name])

    return {**timed(work), "peak_mb": peak_mb()}


def training_task(table: Path) -> TrainingTask:
    from multistill.config import TrainConfig
    from multistill.models.presets import resolve
    from multistill.training.task import TrainingTask

    config = TrainConfig.model_validate({"batch_size": 16, "epochs": 1, "learning_rate": 1e-3})
    inputs = (str(outputs(table)), str(outputs(table) / "features"))
    return TrainingTask("benchmark", "student", resolve("small-student", {}), config, 0, *inputs)


def open_data(table: Path) -> Figures:
    from multistill.training.data import TrainingData

    task = training_task(table)
    return {**timed(lambda: TrainingData.open(task)), "peak_mb": peak_mb()}


def plan_epoch(table: Path) -> Figures:
    """Over all rows, those of validation and test too."""
    from multistill.features.store import FeatureStore
    from multistill.training.data import TrainingData
    from multistill.training.epochs import EpochPlanner
    from multistill.training.examples import Examples

    store = FeatureStore(outputs(table) / "features")
    shares = np.zeros((len(store), len(CLASSES)), np.float32)
    labels = np.zeros(len(store), np.int64)
    lengths = store.audio_frames(store.ids)
    train = Examples(store.ids, shares, labels, lengths, np.zeros((len(store), 0), np.float32))
    data = TrainingData(CLASSES, store, train, train, 0, train.ids)
    planner = EpochPlanner(training_task(table), data)
    result = timed(lambda: planner.plan(1))
    return {**result, "peak_mb": peak_mb()}


def compare_with_bare_loop(table: Path, arguments: argparse.Namespace) -> None:
    run_measurement("bare", table)  # warms the file cache
    best: dict[str, dict[str, float]] = {}
    for _ in range(arguments.repeats):
        for what in ("bare", "prepare"):
            result = run_measurement(what, table)
            times = best.setdefault(what, {"seconds": float("inf"), "cpu": float("inf")})
            best[what] = {kind: min(times[kind], result[kind]) for kind in times}
    files = arguments.files
    print(f"{files} files of {arguments.seconds} s, best of {arguments.repeats}, one core")
    for what, name in (("bare", "loop of soundfile.info"), ("prepare", "prepare")):
        seconds, cpu = best[what]["seconds"], best[what]["cpu"]
        figures = {"seconds_per_thousand": seconds / files * 1000}
        figures["ratio"] = seconds / best["bare"]["seconds"]
        add_row("prepare", {"what": what, "files": files, "digests": True, **figures})
        print(
            f"  {name:24} {seconds / files * 1000:.4f} s per thousand files (CPU "
            f"{cpu / files * 1000:.4f}), ratio {seconds / best['bare']['seconds']:.2f} (CPU "
            f"{cpu / best['bare']['cpu']:.2f})"
        )


STEPS = ("prepare", "shards", "index", "opening", "data", "batches")


def measure_scale(folder: Path, arguments: argparse.Namespace) -> None:
    for rows in (arguments.rows // 10, arguments.rows):
        table = folder / f"table{rows}.csv"
        if not table.exists():
            make_table(table, rows, arguments.files)
        figures: dict[str, float] = {}
        for what in STEPS:
            result = run_measurement(what, table)
            names = {"seconds": f"{what}_s", "cpu": f"{what}_cpu_s", "peak_mb": f"{what}_peak_mb"}
            figures |= {names[kind]: round(value, 2) for kind, value in result.items()}
            print(
                f"{rows} rows, {what}: {result['seconds']:.2f} s (CPU {result['cpu']:.2f}), "
                f"at most {result['peak_mb']:.0f} MB",
                flush=True,
            )
        add_row("prepare", {"what": "scale", "rows": rows, "files": arguments.files, **figures})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=50_000)
    parser.add_argument("--rows", type=int, default=1_000_000, help="0: skip the second part")
    parser.add_argument("--seconds", type=float, default=0.5, help="length of a clip")
    parser.add_argument("--repeats", type=int, default=3, help="0: skip the first part")
    parser.add_argument("--folder", type=Path, help="keep the files here for further runs")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        what, table = arguments.measure
        print(json.dumps(measure(what, Path(table))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        if not (folder / clip_name(arguments.files - 1)).exists():
            make_files(folder, arguments.files, arguments.seconds)
        table = folder / f"table{arguments.files}.csv"
        make_table(table, arguments.files, arguments.files)
        if arguments.repeats:
            compare_with_bare_loop(table, arguments)
        if arguments.rows:
            measure_scale(folder, arguments)


if __name__ == "__main__":
    main()
