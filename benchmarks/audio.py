"""Cost of the whole-file digests against decoding, and of resampling.

    python benchmarks/audio.py [--clips 400] [--repeats 5]

Clips of 3.5 s as 16-bit WAV at 16 and 48 kHz and as FLAC, in the file cache: the digest of every
clip, its decoding (`features.decode` without a digest), and looking a remembered digest up. One
core, processor time, the best of the repeats, which alternate.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
from rows import add_row

from multistill.audio import digests
from multistill.audio.reading import opened
from multistill.features.decode import decode

SECONDS = 3.5
KINDS = {"WAV, 16 kHz": ("WAV", 16_000), "WAV, 48 kHz": ("WAV", 48_000), "FLAC": ("FLAC", 16_000)}


def make_clips(folder: Path, clips: int, container: str, rate: int) -> list[str]:
    rng = np.random.default_rng(0)
    paths = []
    for number in range(clips):
        path = folder / f"{number}.{container.lower()}"
        samples = rng.normal(0, 0.1, round(SECONDS * rate))
        soundfile.write(path, samples, rate, "PCM_16", format=container)
        os.utime(path, (1, 1))
        paths.append(str(path))
    return paths


def processor_time(work: Callable[[str], object], paths: list[str]) -> float:
    """Milliseconds per clip."""
    started = time.process_time()
    for path in paths:
        work(path)
    return 1000 * (time.process_time() - started) / len(paths)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    def digest(path: str) -> None:
        with opened(path) as handle:
            digests.digest_of(handle)

    def decoded(path: str) -> None:
        decode(path, max_seconds=30, long_clips="cut")

    for name, (container, rate) in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            paths = make_clips(Path(folder), arguments.clips, container, rate)
            time.sleep(digests.SETTLED + 0.5)
            known = digests.Digests(Path(folder) / "digests.npy")

            def look_up(path: str, known: digests.Digests = known) -> None:
                with opened(path) as handle:
                    known.digest(path, handle)

            processor_time(look_up, paths)
            known.save()
            works = {"digest": digest, "decode": decoded, "remembered": look_up}
            best = dict.fromkeys(works, float("inf"))
            for _ in range(arguments.repeats):
                for what, work in works.items():
                    best[what] = min(best[what], processor_time(work, paths))
        add_row(
            "audio",
            {
                "clips": name,
                **{f"{what}_ms": round(milliseconds, 4) for what, milliseconds in best.items()},
                "share": round(best["digest"] / best["decode"], 4),
            },
        )
        print(
            f"{name:12} digest {best['digest']:.3f} ms, decode {best['decode']:.3f} ms per clip of "
            f"{SECONDS} s: {best['digest'] / best['decode']:.1%}; remembered "
            f"{best['remembered']:.3f} ms"
        )


if __name__ == "__main__":
    main()
