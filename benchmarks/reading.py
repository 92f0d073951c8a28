"""An epoch over a store that is larger than the memory for it, and stores shared by processes.

    python benchmarks/reading.py [--gb 2] [--rounds 3] [--share 0.25] [--folder /tmp/reading-bench]

1. Epochs of a process of its own over a store of random states of encoder size, in the order of a
   training: reading and padding alone, and the training of a model. With the whole store in
   memory, and in a cgroup whose memory is `--share` of the store and what the process itself
   needs, with and without asking for the pages of the next batches; the variants alternate.
   `disk` is what a plain read of the same files takes.
2. Memory of 1, 2 and 4 processes that have read all of the store.

The cgroup (version 1 or 2) is made below `/sys/fs/cgroup`, which takes root.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias
from unittest.mock import patch

import numpy as np
import pyarrow as pa
from rows import add_row

Figures: TypeAlias = dict[str, Any]

PAGE = mmap.PAGESIZE
BATCH = 16
CLIPS_PER_SHARD = 512
MB = 1e6
NAME = "multistill-reading"


def make_inputs(folder: Path, size: float) -> None:
    """A manifest and a store of about `size` bytes; values are slices of one block of noise."""
    from training import AUDIO_DIM, FRAMES_PER_S, TEXT_DIM

    from multistill.config import CLASSES
    from multistill.corpora.manifest import MANIFEST_FIELDS, manifest_schema, write_manifest
    from multistill.features.statistics import compute_statistics
    from multistill.features.store_writer import Clip, finish_store, read_marker, shard_writer

    random = np.random.default_rng(0)
    noise = random.standard_normal(32 << 20, dtype=np.float32).astype(np.float16)
    frames: list[int] = []
    markers = []
    while 2 * AUDIO_DIM * sum(frames) < size:
        shard = len(markers)
        seconds = random.gamma(4.0, 3.5 / 4.0, CLIPS_PER_SHARD).clip(0.4, 20.0)
        lengths = (seconds * FRAMES_PER_S).astype(int).tolist()
        with shard_writer(folder / "features", shard, "float16", AUDIO_DIM, TEXT_DIM, {}) as writer:
            for first in range(0, CLIPS_PER_SHARD, BATCH):
                clips = []
                for row in range(first, first + BATCH):
                    start = int(random.integers(len(noise) - 2048 * AUDIO_DIM))
                    states = noise[start : start + lengths[row] * AUDIO_DIM]
                    text = noise[start : start + 12 * TEXT_DIM].reshape(12, TEXT_DIM)
                    name = f"clip-{len(frames) + row:07d}"
                    clips.append(Clip(name, states.reshape(-1, AUDIO_DIM), text))
                writer.append(clips)
        frames += lengths
        marker = read_marker(folder / "features", shard)
        assert marker is not None
        markers.append(marker)
    info = {"dtype": "float16", "audio_dim": AUDIO_DIM, "text_dim": TEXT_DIM}
    finish_store(folder / "features", markers, info)
    label = random.integers(0, len(CLASSES), len(frames))
    filled = {"string": "-", "int32": 0, "int64": 0, "double": 0.0}
    table = {
        each.name: pa.array([filled[str(each.type)]] * len(frames), each.type)
        for each in MANIFEST_FIELDS
        if not each.nullable and str(each.type) in filled
    }
    table |= {
        "utterance_id": pa.array([f"clip-{row:07d}" for row in range(len(frames))]),
        "label": pa.array([CLASSES[each] for each in label]),
        "label_soft": pa.array(list(np.eye(len(CLASSES), dtype=np.float32)[label])),
        "split": pa.array(["train"] * len(frames)),
    }
    schema = manifest_schema(CLASSES)
    columns = [table.get(f.name, pa.nulls(len(frames))).cast(f.type) for f in schema]
    write_manifest(pa.table(columns, schema=schema), folder)
    compute_statistics(folder / "manifest.parquet", folder / "features", folder / "statistics")


def shards(folder: Path) -> list[Path]:
    return sorted((folder / "features" / "shards").glob("*.arrow"))


def drop(paths: list[Path]) -> None:
    """Forget files that no process has mapped."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def warm(paths: list[Path]) -> Figures:
    """Read files from start to end."""
    started, size = time.perf_counter(), 0
    for path in paths:
        with path.open("rb", buffering=0) as stream:
            while block := stream.read(8 << 20):
                size += len(block)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "mb_per_s": size / MB / seconds}


# -- a measured process --------------------------------------------------------------------------


def epoch(folder: Path, kind: str, ahead: bool) -> Figures:
    """One epoch; its start and what is needed once are not measured."""
    import torch
    from training import make_task

    from multistill.features import collate
    from multistill.training.data import TrainingData
    from multistill.training.epochs import EpochPlanner
    from multistill.training.loop import fit
    from multistill.training.prefetch import Prefetcher

    torch.set_num_threads(1)
    task = make_task((folder / "manifest.parquet", folder / "features"), "small-student",
                     epochs=1, batch_size=BATCH)  # fmt: skip
    # A job computes them once for all trainings.
    task = replace(task, statistics=str(folder / "statistics"))
    data = TrainingData.open(task)
    for name in data.train.ids[::BATCH]:
        data.store.raw("audio", name)  # every shard is opened

    def work() -> None:
        if kind == "training":
            with tempfile.TemporaryDirectory() as state:
                list(fit(task, state_dir=Path(state), device="cpu", data=data))
            return
        planned = EpochPlanner(task, data).plan(1)
        reader = Prefetcher(data.store, torch.device("cpu"), task.train.max_frames)
        for _ in reader.micro_batches(data.train, planned.batches, planned):
            pass

    nothing = patch.object(collate, "will_need", lambda _: None)
    before = disk_bytes()
    started, cpu = time.perf_counter(), time.process_time()
    if ahead:
        work()
    else:
        with nothing:
            work()
    return {
        "seconds": time.perf_counter() - started,
        "cpu_s": time.process_time() - cpu,
        "read_mb": (disk_bytes() - before) / MB,
        "own_mb": own_bytes() / MB,
    }


def disk_bytes() -> int:
    """What this process has caused to be read from disks."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def own_bytes() -> int:
    """Memory of this process that is no file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def hold(folder: Path) -> None:
    """Read all states, and keep the store open until standard input ends."""
    from multistill.features.store import FeatureStore

    store = FeatureStore(folder / "features")
    total = 0.0
    for name in store.ids:
        for kind in ("audio", "text"):
            total += float(store.raw(kind, name)[0].reshape(-1)[:: PAGE // 4].astype(float).sum())
    print("read", total, flush=True)
    sys.stdin.read()


# -- a bound of the page cache ---------------------------------------------------------------------


@dataclass(frozen=True)
class Cgroup:
    """A cgroup with a memory limit: of the processes in it, and of the pages that they read."""

    folder: Path
    limit: str = "memory.max"
    peak: str = "memory.peak"

    @classmethod
    def create(cls) -> Cgroup:
        first = Path("/sys/fs/cgroup/memory")
        if first.is_dir():
            found = cls(first / NAME, "memory.limit_in_bytes", "memory.max_usage_in_bytes")
        else:
            found = cls(Path("/sys/fs/cgroup") / NAME)
        try:
            found.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise SystemExit(
                f"{found.folder} cannot be made, {error.strerror}: run as root"
            ) from None
        return found

    def run(self, command: list[str], limit: float) -> list[str]:
        """The command that runs another one within the limit, in bytes."""
        (self.folder / self.limit).write_text(str(int(limit)))
        if self.peak == "memory.max_usage_in_bytes":
            (self.folder / self.peak).write_text("0")
        enter = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
        return ["sh", "-c", enter, str(self.folder), *command]

    def peak_mb(self) -> float:
        return int((self.folder / self.peak).read_text()) / MB

    def remove(self) -> None:
        self.folder.rmdir()


# -- the comparison --------------------------------------------------------------------------------


def run_epoch(folder: Path, kind: str, ahead: bool, limit: float | None, group: Cgroup) -> Figures:
    """An epoch in a process of its own, with all of the store in memory or within a limit."""
    paths = shards(folder)
    command = [sys.executable, __file__, "--measure", "epoch", str(folder), kind, str(int(ahead))]
    if limit is None:
        warm(paths)
    else:
        drop(paths)  # pages count where they were read first
        command = group.run(command, limit)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures if limit is None else {**figures, "peak_mb": group.peak_mb()}


def measure_epochs(folder: Path, arguments: argparse.Namespace) -> None:
    paths = shards(folder)
    size = sum(path.stat().st_size for path in paths)
    drop(paths)
    disk = warm(paths)
    add_row("reading", {"what": "disk", "store_mb": round(size / MB), **rounded(disk)})
    print(f"plain read {disk['mb_per_s']:.0f} MB/s", flush=True)
    group = Cgroup.create()
    variants = [(1.0, True), (arguments.share, True), (arguments.share, False)]
    for kind in arguments.kinds:
        found: dict[Any, list[Figures]] = {variant: [] for variant in variants}
        for _ in range(arguments.rounds):
            whole: Figures = {}
            for share, ahead in variants:
                limit = share * size + whole["own_mb"] * MB if whole else None
                figures = run_epoch(folder, kind, ahead, limit, group)
                whole = whole or figures
                figures["speed"] = whole["seconds"] / figures["seconds"]
                found[share, ahead].append(figures)
                print(kind, share, ahead, rounded(figures), flush=True)
        for (share, ahead), rounds in found.items():
            medians = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
            variant = f"{kind}, {share:g}, {'ahead' if ahead else 'not ahead'}"
            row = {"what": "epoch", "variant": variant, "kind": kind, "share": share}
            row |= {"ahead": ahead, "store_mb": round(size / MB), "rounds": len(rounds)}
            add_row("reading", {**row, **rounded(medians)})
    group.remove()


def measure_sharing(folder: Path) -> None:
    """Sums over the processes; of a page that several have, PSS counts each one's part."""
    size = sum(path.stat().st_size for path in shards(folder))
    for count in (1, 2, 4):
        command = [sys.executable, __file__, "--measure", "hold", str(folder)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        holders = [subprocess.Popen(command, **pipes) for _ in range(count)]  # type: ignore[call-overload]
        for each in holders:
            each.stdout.readline()
        sums = {"rss_mb": 0.0, "pss_mb": 0.0, "pss_file_mb": 0.0}
        for each in holders:
            for name, value in smaps(each.pid):
                if name in sums:
                    sums[name] += value
        for each in holders:
            each.communicate()
        row = {"what": "shared", "processes": count, "store_mb": round(size / MB), **rounded(sums)}
        add_row("reading", row)
        print(row, flush=True)


def smaps(process: int) -> Iterator[tuple[str, float]]:
    for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]:
        name, value, _ = line.split()
        yield f"{name.rstrip(':').lower()}_mb", int(value) * 1024 / MB


def rounded(figures: Figures) -> Figures:
    return {name: round(value, 3) for name, value in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gb", type=float, default=2.0, help="size of the store")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--share", type=float, default=0.25, help="of the store in memory")
    parser.add_argument("--kinds", nargs="+", default=["reading", "training"])
    parser.add_argument("--folder", type=Path, help="keep the store here for further runs")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        what, folder, *rest = arguments.measure
        if what == "hold":
            hold(Path(folder))
        else:
            print(json.dumps(epoch(Path(folder), rest[0], rest[1] == "1")))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        if not (folder / "statistics").exists():
            make_inputs(folder, arguments.gb * 1e9)
        measure_epochs(folder, arguments)
        measure_sharing(folder)


if __name__ == "__main__":
    main()
