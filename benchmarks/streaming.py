"""How long a stream waits for its label: several streams at once, each at the speed of speech.

    python benchmarks/streaming.py MODEL --audio /data/emodb/wav [--streams 1,4,16] [--seconds 60]
                                   [--piece 0.032] [--min-silence 0.3] [--out FILE]

MODEL is one as of `multistill predict`, or a preset: then an untrained model over log-mel energies
is made, which takes as long as a trained one. Every stream hears other recordings of the folder
in another order, with pauses of 0.6 to 1.4 s between them, cut into pieces that arrive in real
time; each is a thread of one process, and torch computes on one thread in each. All streams share
the model.

A line of FILE (JSON) and a row of the table for each number of streams, over all segments:

- *decided*: from the arrival of the sample at which voice activity knows that a segment ended to
  its final prediction, in milliseconds: the model and what it waited for;
- *spoken*: from the end of the speech (`end` without the padding) to the final prediction, which is
  `min_silence` more, and up to 32 ms for the frame of voice activity;
- interim predictions: computing time of a push that had one, and how many were left out;
- processor time per second of sound of all streams (1: one core is busy).
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from rows import add_row

from multistill import Predictor
from multistill.audio import SAMPLE_RATE
from multistill.audio.reading import read_sound
from multistill.config import FeaturesConfig
from multistill.encoders import side_by_side
from multistill.features.identity import resolved_weights
from multistill.inference.stream_settings import SegmentSettings, StreamSettings
from multistill.inference.streaming import Final, Interim, StreamingPredictor
from multistill.models.build import build
from multistill.models.files import ModelInfo, save_model
from multistill.models.presets import PRESETS, resolve
from multistill.typing import FloatArray

LABELS = ("anger", "boredom", "disgust", "fear", "happiness", "sadness", "neutral")


@dataclass
class Times:
    """Milliseconds of the events of one stream."""

    decided: list[float] = field(default_factory=list)
    spoken: list[float] = field(default_factory=list)
    interim: list[float] = field(default_factory=list)
    skipped: int = 0


def load(model: str) -> Predictor:
    if model not in PRESETS:
        return Predictor.load(model, "cpu")
    config = FeaturesConfig.model_validate({"speech": {"model": "log-mel"}})
    info = side_by_side.load(config.speech, resolved_weights(config), torch.device("cpu")).info
    speech = {**info.to_dict(), "settings": config.identity()["speech"]}
    described = ModelInfo(
        "student", LABELS, encoders={"speech": speech}, dtype=config.dtype, training={"name": model}
    )
    with tempfile.TemporaryDirectory() as folder:
        save_model(build(resolve(model, {}), info.dim, 1), Path(folder), described)
        return Predictor.load(folder, "cpu")


def recordings_with_pauses(paths: list[Path], seconds: float, seed: int) -> FloatArray:
    random = np.random.default_rng(seed)
    parts: list[FloatArray] = []
    length = 0
    while length < seconds * SAMPLE_RATE:
        silence = np.zeros(round(random.uniform(0.6, 1.4) * SAMPLE_RATE), np.float32)
        parts += [silence, read_sound(str(random.choice(paths))).samples]
        length += len(parts[-1]) + len(parts[-2])
    parts.append(np.zeros(SAMPLE_RATE, np.float32))
    return np.concatenate(parts)


def listen(
    stream: StreamingPredictor, samples: FloatArray, piece: float, start: float, padding: float
) -> Times:
    """Give a stream its samples when they arrive, from `start` on."""
    times = Times()
    step = round(piece * SAMPLE_RATE)
    for first in range(0, len(samples), step):
        block = samples[first : first + step]
        arrival = start + (first + len(block)) / SAMPLE_RATE
        time.sleep(max(0.0, arrival - time.perf_counter()))
        began = time.perf_counter()
        events = stream.push(block, waiting=max(0.0, began - arrival))
        ended = time.perf_counter()
        if any(isinstance(event, Interim) for event in events):
            times.interim.append(1000 * (ended - began))
        for event in events:
            if isinstance(event, Final) and not event.cut:
                times.decided.append(1000 * (ended - start - event.at))
                times.spoken.append(1000 * (ended - start - event.end + padding))
    times.skipped = stream.skipped
    return times


def measure(predictor: Predictor, paths: list[Path], count: int, args: Any) -> dict[str, Any]:
    settings = StreamSettings(SegmentSettings(min_silence=args.min_silence))
    padding = settings.segments.padding
    streams = [StreamingPredictor(predictor, settings) for _ in range(count)]
    sounds = [recordings_with_pauses(paths, args.seconds, seed) for seed in range(count)]
    found: list[Times] = []
    start = time.perf_counter() + 0.5

    def run(number: int) -> None:
        # Streams of a server begin at any time, not all at the same piece.
        offset = number * args.piece / count
        found.append(listen(streams[number], sounds[number], args.piece, start + offset, padding))

    cpu = time.process_time()
    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cpu = time.process_time() - cpu
    values = {
        name: [value for times in found for value in getattr(times, name)]
        for name in ("decided", "spoken", "interim")
    }
    return {
        "model": args.model,
        "streams": count,
        "segments": len(values["decided"]),
        "min_silence": args.min_silence,
        "piece": args.piece,
        **{f"{name}_p50": float(np.percentile(each, 50)) for name, each in values.items()},
        **{f"{name}_p95": float(np.percentile(each, 95)) for name, each in values.items()},
        "interims": len(values["interim"]),
        "skipped": sum(times.skipped for times in found),
        "cpu_per_second": cpu / max(len(sound) / SAMPLE_RATE for sound in sounds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--audio", type=Path, required=True)
    parser.add_argument("--streams", default="1,4,16")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--min-silence", type=float, default=SegmentSettings.min_silence)
    parser.add_argument("--piece", type=float, default=0.032)
    parser.add_argument("--out", type=Path, help="file of the rows")
    args = parser.parse_args()
    torch.set_num_threads(1)
    predictor = load(args.model)
    paths = sorted(args.audio.glob("*.wav"))
    stream = StreamingPredictor(predictor)
    stream.push(recordings_with_pauses(paths, 10, 0))  # the first calls are slower
    print("streams segments | decided p50 p95 | spoken p50 p95 | interim p95 skipped | cpu/s")
    for count in map(int, args.streams.split(",")):
        row = measure(predictor, paths, count, args)
        add_row("streaming", row, file=args.out)
        print(
            f"{count:7} {row['segments']:8} | {row['decided_p50']:11.1f} {row['decided_p95']:.1f} "
            f"| {row['spoken_p50']:10.0f} {row['spoken_p95']:.0f} | {row['interim_p95']:11.1f} "
            f"{row['skipped']} of {row['skipped'] + row['interims']} | {row['cpu_per_second']:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
