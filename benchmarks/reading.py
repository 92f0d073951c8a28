"""An epoch over a store that is larger than the memory for it, and stores shared by processes.

    python benchmarks/reading.py [--gb 2] [--rounds 3] [--share 0.25] [--folder /tmp/reading-bench]
    python benchmarks/reading.py --within "systemd-run --user --scope -p MemoryMax={bytes}"

1. Epochs of a process of its own over a store of random states of encoder size, in the order of a
   training: reading and padding alone, and the training of a model. With the whole store in
   memory, and with at most `--share` of it, with and without asking for the pages of the next
   batches; the variants alternate. `disk` is what a plain read of the same files takes.
2. Memory of 1, 2 and 4 processes that have read all of the store.

`--within` limits the process by a command that it is run in; `{bytes}` is the share of the store,
to which the process's own memory comes. Without it, where no such command works, a second process
(`evict`) looks every 50 ms which pages of the store are in memory, and drops those that came first
beyond the share: from the memory of the process and from the page cache. That is no cgroup: between
two looks more can be there (`resident_mb` is the most that was seen), and memory that is no page of
the store is not limited.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias
from unittest.mock import patch

import numpy as np
import pyarrow as pa
from rows import add_row

Figures: TypeAlias = dict[str, Any]

PAGE = mmap.PAGESIZE
CHUNK = 1 << 20
"""Bytes that are dropped at once."""
BATCH = 16
CLIPS_PER_SHARD = 512
MB = 1e6
_PROCESS_MADVISE, _MADV_PAGEOUT = 440, 21  # of the kernel's interface
_LIBRARY = ctypes.CDLL(None, use_errno=True)


def make_inputs(folder: Path, size: float) -> None:
    """A manifest and a store of about `size` bytes; values are slices of one block of noise."""
    from training import AUDIO_DIM, FRAMES_PER_S, TEXT_DIM

    from multistill.config import CLASSES
    from multistill.corpora.manifest import MANIFEST_FIELDS, manifest_schema, write_manifest
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
    }


def disk_bytes() -> int:
    """What this process has caused to be read from disks."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


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


# -- a bound of the page cache without a cgroup ----------------------------------------------------


class _Piece(ctypes.Structure):
    _fields_ = (("start", ctypes.c_void_p), ("length", ctypes.c_size_t))


def mapped(process: int, paths: list[Path]) -> dict[Path, int]:
    """Where a process has mapped files that it maps from their start."""
    wanted = {str(path.resolve()): path for path in paths}
    found = {}
    for line in Path(f"/proc/{process}/maps").read_text().splitlines():
        parts = line.split(maxsplit=5)
        if len(parts) == 6 and parts[5] in wanted:
            start = int(parts[0].partition("-")[0], 16) - int(parts[2], 16)
            found.setdefault(wanted[parts[5]], start)
    return found


def evict(process: subprocess.Popen[str], paths: list[Path], limit: float) -> float:
    """Keep at most `limit` bytes of files in memory while a process runs; the most that was seen.

    Chunks go in the order in which they came, as they would from the kernel's list of pages that
    were used once.
    """
    views = []
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        view = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
        views.append((path, descriptor, view, len(view)))
    pages = {path: (ctypes.c_ubyte * -(-size // PAGE))() for path, _, _, size in views}
    came: dict[tuple[Path, int], int] = {}
    handle = os.pidfd_open(process.pid)
    most = 0.0
    while process.poll() is None:
        resident: dict[tuple[Path, int], int] = {}
        for path, _, view, size in views:
            address = np.frombuffer(view, np.uint8).__array_interface__["data"][0]
            _LIBRARY.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), pages[path])
            there = np.frombuffer(pages[path], np.uint8) & 1
            step = CHUNK // PAGE
            counts = np.add.reduceat(there, np.arange(0, len(there), step), dtype=np.int64)
            for chunk in np.flatnonzero(counts).tolist():
                resident[path, chunk * CHUNK] = int(counts[chunk]) * PAGE
        came = {key: 0 for key in came if key in resident} | dict.fromkeys(resident, 0)
        held = sum(resident.values())
        most = max(most, held)
        places: dict[Path, int] | None = None
        descriptors = {path: descriptor for path, descriptor, _, _ in views}
        sizes = {path: size for path, _, _, size in views}
        for path, start in list(came):
            if held <= limit:
                break
            try:
                places = mapped(process.pid, paths) if places is None else places
            except OSError:
                break
            length = min(CHUNK, sizes[path] - start)
            if path in places:
                piece = _Piece(places[path] + start, length)
                _LIBRARY.syscall(_PROCESS_MADVISE, handle, ctypes.byref(piece), 1, _MADV_PAGEOUT, 0)
            os.posix_fadvise(descriptors[path], start, length, os.POSIX_FADV_DONTNEED)
            held -= resident[path, start]
            del came[path, start]
        time.sleep(0.05)
    os.close(handle)
    for _, descriptor, view, _ in views:
        os.close(descriptor)
        del view
    return most


# -- the comparison --------------------------------------------------------------------------------


def run_epoch(
    folder: Path, kind: str, ahead: bool, share: float | None, within: str | None
) -> Figures:
    """An epoch in a process of its own, with all or a share of the store in memory."""
    paths = shards(folder)
    size = sum(path.stat().st_size for path in paths)
    if share is None:
        warm(paths)
    else:
        drop(paths)
    command = [sys.executable, __file__, "--measure", "epoch", str(folder), kind, str(int(ahead))]
    if share is not None and within:
        command = [*shlex.split(within.format(bytes=int(share * size))), *command]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    most = evict(process, paths, share * size) if share is not None and not within else None
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"the epoch failed with status {process.returncode}")
    figures: Figures = json.loads(output.splitlines()[-1])
    return figures if most is None else {**figures, "resident_mb": most / MB}


def measure_epochs(folder: Path, arguments: argparse.Namespace) -> None:
    paths = shards(folder)
    size = sum(path.stat().st_size for path in paths)
    drop(paths)
    disk = warm(paths)
    add_row("reading", {"what": "disk", "store_mb": round(size / MB), **rounded(disk)})
    print(f"plain read {disk['mb_per_s']:.0f} MB/s", flush=True)
    limit = "a process that drops pages"
    limit = arguments.within.split()[0] if arguments.within else limit
    for kind in arguments.kinds:
        variants = [(None, True), (arguments.share, True), (arguments.share, False)]
        found: dict[Any, list[Figures]] = {variant: [] for variant in variants}
        for _ in range(arguments.rounds):
            for share, ahead in variants:
                figures = run_epoch(folder, kind, ahead, share, arguments.within)
                figures["speed"] = 1.0
                if found[variants[0]] and share is not None:
                    figures["speed"] = found[variants[0]][-1]["seconds"] / figures["seconds"]
                found[share, ahead].append(figures)
                print(kind, share, ahead, rounded(figures), flush=True)
        for (share, ahead), rounds in found.items():
            medians = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
            variant = f"{kind}, {share or 1:g}, {'ahead' if ahead else 'not ahead'}"
            row = {
                "what": "epoch",
                "variant": variant,
                "kind": kind,
                "share": share or 1.0,
                "ahead": ahead,
            }
            row |= {"store_mb": round(size / MB), "rounds": len(rounds)}
            row |= {"limit": limit if share else "all"}
            add_row("reading", {**row, **rounded(medians)})


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
    parser.add_argument("--within", help="command that limits the memory of what it runs")
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
        if not (folder / "manifest.parquet").exists():
            make_inputs(folder, arguments.gb * 1e9)
        measure_epochs(folder, arguments)
        measure_sharing(folder)


if __name__ == "__main__":
    main()
