"""When decoder and encoders work, and what a worker encodes per second of 1 to 100,000 clips.

    python benchmarks/encoding.py                       both parts
    python benchmarks/encoding.py --only trace [--encoder large] [--trace-file FILE]
    python benchmarks/encoding.py --only sizes [--sizes 1 10 100 1000]

trace: clips with the lengths of dialogue speech through a small wav2vec2 and `untrained-electra`,
from the intervals that the workers record (`features.trace`). A worker's time is that from the
first batch of its speech encoder to the end of the last.

sizes: clips of about 0.8 s through `log-mel` and `hashed-ngrams`, so that the largest corpus ends
within minutes. Clips per second of a worker are its clips divided by the time from its first batch
to its last finished shard: without Ray, the start of the process and the loading of encoders, with
everything after. Other work on the machine changes it; the processor time of the worker's steps
per clip is there for that. Of a small corpus the median of several rounds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from features import cluster, save_encoder, write_corpus
from rows import add_row

from multistill.config import FeaturesConfig
from multistill.features.encode import encode
from multistill.features.spans import TRACE
from multistill.hardware import cores
from multistill.workspace import read_json

SIZES = (1, 10, 100, 1_000, 10_000, 100_000)
ROUNDS_CLIPS = 1_000
"""Corpora of at most so many clips are encoded several times."""
STEPS = ("decode", "speech", "text", "write")

Interval = tuple[float, float]


def merged(intervals: Iterable[Interval]) -> list[Interval]:
    """The union of intervals, in order."""
    union: list[Interval] = []
    for start, end in sorted(intervals):
        if union and start <= union[-1][1]:
            union[-1] = (union[-1][0], max(end, union[-1][1]))
        else:
            union.append((start, end))
    return union


def length(intervals: Iterable[Interval]) -> float:
    return sum(end - start for start, end in merged(intervals))


def overlap(some: Iterable[Interval], others: Iterable[Interval]) -> float:
    """Seconds in which both are at work."""
    one, two = list(some), list(others)
    return length(one) + length(two) - length([*one, *two])


class Trace:
    """What the workers recorded of one run, in seconds.

    Attributes:
        by_worker: intervals of the encoder processes by process and kind of work.
        all_decoding: of all processes.
        processor: seconds of processor time by kind of work.
    """

    def __init__(self, store: Path) -> None:
        events = read_json(store / TRACE)["traceEvents"]
        workers = {event["pid"] for event in events if event["name"] == "speech"}
        self.by_worker: dict[int, dict[str, list[Interval]]] = {
            pid: defaultdict(list) for pid in workers
        }
        self.all_decoding: list[Interval] = []
        self.processor: dict[str, float] = defaultdict(float)
        for event in events:
            interval = (event["ts"] / 1e6, (event["ts"] + event["dur"]) / 1e6)
            self.processor[event["name"]] += event["tdur"] / 1e6
            if event["name"] == "decode":
                self.all_decoding.append(interval)
            if event["pid"] in workers:
                self.by_worker[event["pid"]][event["name"]].append(interval)

    def overlaps(self) -> dict[str, float]:
        """Shares of the workers' time, summed over the workers."""
        wall = idle = waiting_for_text = decode = text = write = 0.0
        decoding = texts = writes = 0.0
        for of_worker in self.by_worker.values():
            speech = merged(of_worker["speech"])
            begun, ended = speech[0][0], speech[-1][1]
            wall += ended - begun
            idle += ended - begun - length(speech)
            within = [
                (max(start, begun), min(end, ended))
                for start, end in self.all_decoding
                if end > begun and start < ended
            ]
            decoding += length(within)
            decode += overlap(within, speech)
            texts += length(of_worker["text"])
            text += overlap(of_worker["text"], speech)
            writes += length(of_worker["write"])
            write += overlap(of_worker["write"], speech)
            waiting_for_text += length(of_worker["text awaited"])
        return {
            "speech_encoder_waits": idle / wall,
            "speech_encoder_waits_for_text": waiting_for_text / wall,
            "decoding_beside_speech": decode / decoding if decoding else 0.0,
            "text_beside_speech": text / texts,
            "writing_beside_speech": write / writes,
            "decode_share_of_processor": self.processor["decode"] / self._processor(),
            "text_share_of_processor": self.processor["text"] / self._processor(),
        }

    def _processor(self) -> float:
        return sum(self.processor[name] for name in STEPS)

    def throughput(self, clips: int) -> dict[str, float]:
        seconds = sum(
            max(end for _, end in of_worker["shard"])
            - min(start for start, _ in of_worker["speech"])
            for of_worker in self.by_worker.values()
        )
        return {
            "workers": len(self.by_worker),
            "clips_per_s_of_a_worker": clips / seconds,
            "processor_ms_per_clip": 1000 * self._processor() / clips,
            **{f"{name}_ms_per_clip": 1000 * self.processor[name] / clips for name in STEPS},
        }


def traced(settings: dict[str, Any], manifest: Path, out: Path) -> tuple[Trace, dict[str, Any]]:
    """Encode with a trace, on a running Ray. The store is removed, its trace is left."""
    summary = encode(manifest, FeaturesConfig.model_validate({**settings, "trace": True}), out)
    trace = Trace(out)
    shutil.rmtree(out / "shards")
    return trace, summary


def measure_overlap(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    model = save_encoder(options.encoder, folder / "encoder")
    settings = {"speech": {"model": str(model)}, "shard_seconds": options.shard_seconds}
    manifest = write_corpus(folder / "corpus", options.clips)
    trace, summary = traced(settings, manifest, folder / "overlap")
    if options.trace_file:
        shutil.copy(folder / "overlap" / TRACE, options.trace_file)
    return {
        "what": "trace",
        "encoder": options.encoder,
        "text_encoder": summary["text"]["name"],
        "clips": options.clips,
        "shards": summary["shards"],
        "workers": len(trace.by_worker),
        **trace.overlaps(),
    }


def measure_size(clips: int, rounds: int, folder: Path) -> dict[str, Any]:
    manifest = short_clips(folder / "short", clips)
    settings = {"speech": {"model": "log-mel"}, "text": {"model": "hashed-ngrams"}}
    found = []
    for number in range(rounds if clips <= ROUNDS_CLIPS else 1):
        trace, summary = traced(settings, manifest, folder / f"{clips}-{number}")
        found.append(trace.throughput(clips))
    figures = {name: statistics.median(each[name] for each in found) for name in found[0]}
    return {
        "what": "size",
        "clips": clips,
        "rounds": len(found),
        "shards": summary["shards"],
        "audio_hours": summary["audio_seconds"] / 3600,
        **figures,
    }


def short_clips(folder: Path, clips: int) -> Path:
    """A manifest like that of `write_corpus`, of clips of 0.4 to 1.2 s in steps of 20 ms."""
    lengths = np.linspace(0.4, 1.2, 41)
    return write_corpus(folder, clips, lengths=np.random.default_rng(1).permutation(lengths))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=["trace", "sizes"])
    parser.add_argument("--encoder", default="small", help="shape, as of features.py")
    parser.add_argument("--clips", type=int, default=400, help="of the trace")
    parser.add_argument("--shard-seconds", type=float, default=120.0, help="of the trace")
    parser.add_argument("--trace-file", type=Path, help="copy of the trace, for Perfetto")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cpus", type=int, default=cores())
    parser.add_argument("--results", type=Path, help="file of the rows")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name, cluster(options.cpus):
        rows = []
        if options.only != "sizes":
            rows.append(measure_overlap(options, Path(name)))
        if options.only != "trace":
            rows += [measure_size(size, options.rounds, Path(name)) for size in options.sizes]
    for row in rows:
        print(json.dumps(add_row("encoding", row, seed=0, file=options.results)))


if __name__ == "__main__":
    main()
