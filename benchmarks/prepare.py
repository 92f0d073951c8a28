"""What `prepare` costs beyond reading headers, and what it holds in memory.

    python benchmarks/prepare.py [--files 50000] [--rows 1000000] [--folder /tmp/prepare-bench]

1. A corpus of many small wav files behind one CSV table, prepared on one core and on all of
   them, against a bare loop of `soundfile.info` over the same files (best of `--repeats`,
   taken in turns, file cache warm).
2. Tables of many rows over those files, on one core and on all of them: time, and how much
   more memory ten times the rows take, against how much more the manifest's own columns hold.

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

CLASSES = ("neutral", "happy", "surprise", "angry", "sad", "disgust", "fear")


def make_files(folder: Path, files: int, seconds: float) -> None:
    """Distinct clips of noise in folders of a thousand."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.1, 16_000 * 60).astype(np.float32)
    size = int(16_000 * seconds)
    for at in range(files):
        path = folder / clip(at)
        if at % 1000 == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
        start = int(rng.integers(len(noise) - size))
        soundfile.write(path, noise[start : start + size] * rng.uniform(0.5, 1), 16_000, "PCM_16")


def clip(at: int) -> str:
    return f"wav/{at // 1000:05d}/clip{at:07d}.wav"


def make_table(path: Path, rows: int, files: int) -> None:
    """Rows with ten votes each, 200 a session; more rows than files use files again."""
    rng = np.random.default_rng(1)
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(
            [
                "utterance_id",
                "audio_path",
                "text",
                "speaker",
                "session",
                "dialogue",
                "turn",
                *CLASSES,
            ]
        )
        for at in range(rows):
            votes = np.bincount(rng.integers(0, 7, 10) * (rng.random(10) < 0.5), minlength=7)
            session = at // 200
            names = [f"utt{at:08d}", clip(at % files), f"문장 {at} 은 이렇게 들립니다"]
            who = [f"spk{2 * session + at % 2:06d}", f"ses{session:05d}"]
            when = [f"dlg{at // 20:06d}", at % 20]
            writer.writerow([*names, *who, *when, *votes.tolist()])


def measure(what: str, table: Path, workers: int) -> dict[str, float]:
    """Run one measurement in a fresh process."""
    done = subprocess.run(
        [sys.executable, __file__, "--measure", what, str(table), str(workers)],
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def measured(what: str, table: Path, workers: int) -> dict[str, float]:
    if workers == 1 and hasattr(os, "sched_setaffinity"):
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
        prepare([corpus], SplitConfig(), 0, Path(out), unpacked=Path(out), workers=workers)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        manifest = read_manifest(Path(out))
        return {
            "seconds": seconds,
            "cpu": cpu,
            "grown_mb": (peak - before) / 1024,
            "columns_mb": manifest.nbytes / 2**20,
            "rows": len(manifest),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=50_000)
    parser.add_argument("--rows", type=int, default=1_000_000, help="0: leave the second part out")
    parser.add_argument("--seconds", type=float, default=0.5, help="of a clip")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="keep the files here for another run")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        what, table, workers = arguments.measure
        print(json.dumps(measured(what, Path(table), int(workers))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        run(arguments.folder or Path(temporary), arguments)


def run(folder: Path, arguments: argparse.Namespace) -> None:
    files, cores = arguments.files, len(os.sched_getaffinity(0))
    if not (folder / clip(files - 1)).exists():
        make_files(folder, files, arguments.seconds)
    table = folder / f"table{files}.csv"
    make_table(table, files, files)
    measure("bare", table, 1)  # warms the file cache
    best: dict[str, float] = {}
    for _ in range(arguments.repeats):
        for name, workers in (("bare", 1), ("prepare", 1), ("prepare-all", cores)):
            found = measure(name.split("-")[0], table, workers)
            for kind in ("seconds", "cpu"):
                key = f"{name} {kind}"
                best[key] = min(best.get(key, float("inf")), found[kind])
    per_thousand = {name: value / files * 1000 for name, value in best.items()}
    print(f"{files} files of {arguments.seconds} s, best of {arguments.repeats}")
    for name in ("bare", "prepare", "prepare-all"):
        text = {"bare": "soundfile.info, 1 core", "prepare": "prepare, 1 core"}
        label = text.get(name, f"prepare, {cores} cores")
        print(
            f"  {label:24} {per_thousand[f'{name} seconds']:.4f} s per thousand files "
            f"(CPU of this process {per_thousand[f'{name} cpu']:.4f}), ratio "
            f"{best[f'{name} seconds'] / best['bare seconds']:.2f} "
            f"(CPU {best[f'{name} cpu'] / best['bare cpu']:.2f})"
        )
    if arguments.rows:
        held = {}
        for rows in (arguments.rows // 10, arguments.rows):
            table = folder / f"table{rows}.csv"
            make_table(table, rows, files)
            alone = measure("prepare", table, 1)
            held[rows] = found = measure("prepare", table, cores)
            print(
                f"{rows} rows: {alone['seconds']:.1f} s on 1 core, {found['seconds']:.1f} s on "
                f"{cores} ({found['seconds'] / alone['seconds']:.2f} of it); memory grew by "
                f"{found['grown_mb']:.0f} MB (libraries included), "
                f"the manifest's own columns hold {found['columns_mb']:.0f} MB"
            )
        few, many = held.values()
        grown, columns = (many[kind] - few[kind] for kind in ("grown_mb", "columns_mb"))
        print(
            f"ten times the rows: {grown:.0f} MB more for {columns:.0f} MB more of columns, "
            f"ratio {grown / columns:.2f}"
        )


if __name__ == "__main__":
    main()
