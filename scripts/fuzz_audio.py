"""Damage recordings in every way, and see that each ends in sound or in one clear sentence.

    python scripts/fuzz_audio.py [--minutes 60] [--seed 0] [--out build/fuzz-audio]

One short recording of every container and encoding that libsndfile writes, and of MPEG-4 where
`av` is installed, is changed: bytes, numbers of two to eight bytes, parts that are cut out, doubled
or taken from another file, the end. A child process with bounded memory decodes each
(`read_sound`, and the same block by block). It counts as found, and is kept in the folder:

- crash: the process ended, with its signal;
- hang: no answer within `--seconds`;
- unclear: another error than `UnusableClipError`, or its sentence is none;
- wrong: samples that are not finite, or that differ block by block;
- printed: something was written to standard output, where results are.

The same seed makes the same recordings. Ends with 1 if anything was found; the last line is JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import io
import json
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections import Counter
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

from multistill.audio.errors import UnusableClipError
from multistill.audio.reading import read_blocks, read_sound

EDGES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF,
         2**63 - 1, 2**63, 2**64 - 1)  # fmt: skip
HEAD = 200
"""Bytes at the beginning in which half of all changes are made: there the headers are."""
LONGEST_SENTENCE = 300
FAULTS = ("crash", "hang", "unclear", "wrong", "printed")


def written() -> dict[str, bytes]:
    """A recording of a fifth of a second by container and encoding."""
    random = np.random.default_rng(0)
    found = {}
    for container in soundfile.available_formats():
        if container in ("RAW", "SD2"):
            continue  # the header is missing, or a second file
        for encoding in soundfile.available_subtypes(container):
            for rate, channels in ((8_000, 1), (16_000, 1), (44_100, 2)):
                samples = random.normal(0, 0.1, (rate // 5, channels))
                file = io.BytesIO()
                try:
                    soundfile.write(file, samples, rate, encoding, format=container)
                except (soundfile.LibsndfileError, ValueError):
                    continue  # the container does not have this encoding at this rate
                found[f"{container} {encoding} {rate}"] = file.getvalue()
    if find_spec("av") is not None:
        for codec in ("aac", "alac"):
            found[f"MPEG-4 {codec.upper()}"] = mpeg4(codec, random)
    return found


def mpeg4(codec: str, random: np.random.Generator) -> bytes:
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="ipod") as container:
        stream = container.add_stream(codec, rate=16_000, layout="mono")
        form = "fltp" if codec == "aac" else "s16p"
        samples = random.normal(0, 0.1, (1, 3_200))
        whole = samples.astype(np.float32) if codec == "aac" else (3e4 * samples).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(whole, format=form, layout="mono")
        frame.sample_rate = 16_000
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    return file.getvalue()


def damaged(content: bytes, other: bytes, random: np.random.Generator) -> bytes:
    """A recording after one to eight changes.

    Args:
        other: a recording of which parts may be taken.
    """
    changed = bytearray(content)
    for _ in range(int(random.integers(1, 9))):
        if not changed:
            break
        within = min(HEAD, len(changed)) if random.random() < 0.5 else len(changed)
        at = int(random.integers(within))
        length = int(random.integers(1, 65))
        match int(random.integers(7)):
            case 0:
                changed[at] ^= 1 << int(random.integers(8))
            case 1:
                changed[at : at + length] = random.bytes(len(changed[at : at + length]))
            case 2:
                width = int(random.choice([2, 4, 8]))
                number = int(EDGES[int(random.integers(len(EDGES)))]) % 256**width
                order = "little" if random.random() < 0.5 else "big"
                changed[at : at + width] = number.to_bytes(width, order)  # type: ignore[arg-type]
            case 3:
                del changed[at : at + length]
            case 4:
                changed[at:at] = changed[at : at + length]
            case 5:
                start = int(random.integers(len(other)))
                changed[at : at + length] = other[start : start + length]
            case _:
                del changed[max(1, at) :]
    return bytes(changed)


def judge(content: bytes) -> tuple[str, str]:
    """What comes of a recording, and the sentence."""
    found: list[npt.NDArray[np.float32] | str] = []
    with os.fdopen(os.memfd_create("fuzz"), "w+b") as file:
        file.write(content)
        file.flush()
        path = f"/proc/self/fd/{file.fileno()}"
        for read in (
            lambda: read_sound(content).samples,
            lambda: np.concatenate([*read_blocks(path)]),
        ):
            try:
                found.append(read())
            except UnusableClipError as error:
                found.append(str(error))
            except BaseException as error:
                return "unclear", f"{type(error).__name__}: {error}"
    whole, blocks = found
    if isinstance(whole, str) or isinstance(blocks, str):
        sentences = [each for each in found if isinstance(each, str)]
        for each in sentences:
            if "\n" in each or not each.isprintable() or not 0 < len(each) <= LONGEST_SENTENCE:
                return "unclear", repr(each)
        same = len(sentences) == 2
        return ("refused", sentences[0]) if same else ("wrong", f"once only: {sentences[0]}")
    if whole.dtype != np.float32 or whole.ndim != 1 or not np.isfinite(whole).all():
        return "wrong", f"{whole.dtype} {whole.shape}, not all finite"
    if not np.array_equal(whole, blocks):
        return "wrong", f"{len(whole)} samples, block by block {len(blocks)} or others"
    return "sound", ""


def child(connection: Connection, memory_mb: int) -> None:
    """Judge what comes, within so much memory more than the libraries take."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = now + memory_mb * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # codecs write what they think of their input
    os.dup2(os.memfd_create("printed"), 1)
    flush = ctypes.CDLL(None).fflush
    while True:
        found = judge(connection.recv_bytes())
        flush(None)
        if printed := os.pread(1, 200, 0):
            found = ("printed", repr(printed))
            os.truncate(1, 0)
            os.lseek(1, 0, os.SEEK_SET)
        connection.send(found)


class Child:
    """A process that is started again when it ended or did not answer."""

    def __init__(self, memory_mb: int, seconds: float) -> None:
        self._memory_mb = memory_mb
        self._seconds = seconds
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=child, args=(theirs, self._memory_mb), daemon=True)
        self._process.start()
        theirs.close()

    def judge(self, content: bytes) -> tuple[str, str]:
        try:
            self._connection.send_bytes(content)
            if self._connection.poll(self._seconds):
                kind, sentence = self._connection.recv()
                return kind, sentence
            self._process.kill()
            found = ("hang", f"no answer within {self._seconds:g} s")
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode or 0
            found = ("crash", signal.Signals(-code).name if code < 0 else f"exit code {code}")
        self._process.join()
        self._start()
        return found

    def end(self) -> None:
        self._process.kill()
        self._process.join()


def fuzz(args: argparse.Namespace) -> dict[str, Any]:
    corpus = written()
    names = sorted(corpus)
    judge_of = Child(args.memory_mb, args.seconds)
    kinds: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    slowest, said = 0.0, time.monotonic()
    start, end = said, said + 60 * args.minutes
    try:
        for name in names:
            kind, sentence = judge_of.judge(corpus[name])
            if kind != "sound":
                kinds["undamaged refused"] += 1
                print(f"undamaged {name}: {kind}: {sentence}", flush=True)
        number = 0
        while (now := time.monotonic()) < end:
            random = np.random.default_rng([args.seed, number])
            name, other = (names[int(random.integers(len(names)))] for _ in range(2))
            content = damaged(corpus[name], corpus[other], random)
            kind, sentence = judge_of.judge(content)
            took = time.monotonic() - now
            slowest = max(slowest, took)
            kinds[kind] += 1
            if kind == "refused":
                reasons[sentence.partition(":")[0]] += 1
            elif kind != "sound":
                args.out.mkdir(parents=True, exist_ok=True)
                kept = args.out / f"{kind}-{args.seed}-{number}"
                kept.write_bytes(content)
                print(f"{kind}: {name}: {sentence} ({kept})", flush=True)
            number += 1
            if now - said > 60:
                said = now
                print(f"{(now - start) / 60:.0f} min: {dict(kinds)}", flush=True)
    finally:
        judge_of.end()
    return {
        "minutes": round((time.monotonic() - start) / 60, 1),
        "seed": args.seed,
        "containers": len(names),
        "recordings": number,
        **{kind: kinds[kind] for kind in ("sound", "refused", *FAULTS)},
        "undamaged_refused": kinds["undamaged refused"],
        "slowest_s": round(slowest, 2),
        "reasons": dict(reasons.most_common()),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=30.0, help="until a recording hangs")
    parser.add_argument("--memory-mb", type=int, default=1500, help="beside what libraries take")
    parser.add_argument("--out", type=Path, default=Path("build/fuzz-audio"))
    found = fuzz(parser.parse_args())
    print(json.dumps(found))
    return int(any(found[kind] for kind in FAULTS))


if __name__ == "__main__":
    sys.exit(main())
