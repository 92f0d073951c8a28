"""Time and memory of the prepare stage.

    python benchmarks/prepare.py [--files 50000] [--rows 1000000] [--folder /tmp/prepare-bench]

1. A corpus of many small wav files with one CSV table: `prepare` against a bare loop of
   `soundfile.info` over the same files, on one core each (best of `--repeats`, alternating, file
   cache warm).
2. Two tables over the same files, `--rows` and a tenth of it: time, and the additional memory
   that ten times the rows take, compared with the size of the manifest's columns.

Each measurement runs in a process of its own.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
from rows import add_row

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
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow([*names, *CLASSES])
        for row in range(rows):
            votes = np.bincount(rng.integers(0, 7, 10) * (rng.random(10) < 0.5), minlength=7)
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
                    *votes.tolist(),
                ]
            )


def run_measurement(what: str, table: Path) -> dict[str, float]:
    """Run `measure` in a new process."""
    process = subprocess.run(
        [sys.executable, __file__, "--measure", what, str(table)],
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return json.loads(process.stdout.splitlines()[-1])


def measure(what: str, table: Path) -> dict[str, float]:
    """Seconds (and for `prepare`, memory in MB) of one run on one core."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if what == "bare":
        with table.open(encoding="utf-8") as stream:
            paths = [table.parent / row["audio_path"] for row in csv.DictReader(stream)]
        started, cpu = time.perf_counter(), time.process_time()
        for path in paths:
            soundfile.info(path)
        return {"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu}
    from multistill.config import CorpusConfig, SplitConfig
    from multistill.corpora.manifest import read_manifest
    from multistill.corpora.prepare import prepare

    corpus = CorpusConfig(kind="table", path=str(table))
    with tempfile.TemporaryDirectory(dir=table.parent) as out:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started, cpu = time.perf_counter(), time.process_time()
        prepare([corpus], SplitConfig(), Path(out), unpacked=Path(out))
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        manifest = read_manifest(Path(out))
        return {
            "seconds": seconds,
            "cpu": cpu,
            "memory_mb": (peak - before) / 1024,
            "columns_mb": manifest.nbytes / 2**20,
        }


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


def measure_growth(folder: Path, arguments: argparse.Namespace) -> None:
    results = []
    for rows in (arguments.rows // 10, arguments.rows):
        table = folder / f"table{rows}.csv"
        make_table(table, rows, arguments.files)
        results.append(result := run_measurement("prepare", table))
        size = {"rows": rows, "files": arguments.files, "digests": True}
        add_row("prepare", {"what": "rows", **size, **result})
        print(
            f"{rows} rows: {result['seconds']:.1f} s; memory grew by {result['memory_mb']:.0f} MB "
            f"(libraries included), the manifest's columns take {result['columns_mb']:.0f} MB"
        )
    few, many = results
    memory, columns = (many[kind] - few[kind] for kind in ("memory_mb", "columns_mb"))
    print(
        f"ten times the rows: {memory:.0f} MB more for {columns:.0f} MB more of columns, "
        f"ratio {memory / columns:.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=50_000)
    parser.add_argument("--rows", type=int, default=1_000_000, help="0: skip the second part")
    parser.add_argument("--seconds", type=float, default=0.5, help="length of a clip")
    parser.add_argument("--repeats", type=int, default=3)
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
        compare_with_bare_loop(table, arguments)
        if arguments.rows:
            measure_growth(folder, arguments)


if __name__ == "__main__":
    main()
