"""What the light students cost: size on disk, and processor time of a clip of three seconds.

    python benchmarks/light_cost.py [--clips 40]

Of every row: parameters with the front end, bytes of the weights file (float32, and in 8 bits as
`multistill quantize` writes it), and the median processor time of front end and head on one
thread. The last column is the head with PyTorch's dynamic quantisation of its linear layers, which
rounds activations too. Processor time, not wall time, so that it holds on a shared machine; the
clips are noise, since nothing here depends on what is said. No weights are needed: smart-turn is
built empty. Where the package opensmile is installed, its functionals and a linear classifier are
measured in the same run (`openSMILE`, times `light-student-s`).
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from rows import add_row
from torch import nn

from multistill.audio import SAMPLE_RATE
from multistill.config import SpeechEncoderConfig
from multistill.encoders.smart_turn import empty_encoder
from multistill.encoders.speech import LogMel
from multistill.encoders.whisper import WhisperStates
from multistill.features.functionals import SETS, TITLES, extractor, missing_package
from multistill.inference.quantize import stored_bytes
from multistill.models.build import build, count_parameters
from multistill.models.presets import resolve

SECONDS = 3.0
WARM_UP = 3
ROWS = {
    "light-student-s": ("light-student-s", None),
    "light-student": ("light-student", None),
    "light-student-l": ("light-student-l", None),
    "small-audio-student on log-mel": ("small-audio-student", None),
    "small-audio-student on smart-turn, layer 1": ("small-audio-student", 1),
    "small-audio-student on smart-turn, layer 2": ("small-audio-student", 2),
}


def encoder(layer: int | None) -> Any:
    if layer is None:
        return LogMel()
    config = SpeechEncoderConfig(model="smart-turn", layers=[layer])
    network = empty_encoder()
    return WhisperStates(network, config, "untrained", revision=None, device=torch.device("cpu"))


def median_ms(function: Callable[[], object], clips: int) -> float:
    """Median processor time of a call."""
    times = []
    with torch.inference_mode():
        for number in range(clips + WARM_UP):
            start = time.process_time()
            function()
            if number >= WARM_UP:
                times.append(1000 * (time.process_time() - start))
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=int, default=40)
    given = parser.parse_args()
    torch.set_num_threads(1)
    noise = np.random.default_rng(0).standard_normal(round(SECONDS * SAMPLE_RATE))
    wave = noise.astype(np.float32)
    costs: list[float] = []
    for name, (preset, layer) in ROWS.items():
        front = encoder(layer)
        [states] = front.encode([wave])
        batch = torch.from_numpy(states)[None]
        model = build(resolve(preset, {}), batch.shape[-1], 0).eval()
        with warnings.catch_warnings():
            # Deprecated in favour of torchao, which is no dependency here.
            warnings.simplefilter("ignore")
            dynamic = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)

        def encode(front: Any = front) -> None:
            front.encode([wave])

        def head(model: nn.Module = model, batch: torch.Tensor = batch) -> None:
            model(batch)

        def quantized(model: nn.Module = dynamic, batch: torch.Tensor = batch) -> None:
            model(batch)

        before, after = (median_ms(function, given.clips) for function in (encode, head))
        costs.append(before + after)
        count = front.info.params + count_parameters(model)
        sizes = [
            (stored_bytes(model, int8=int8) + front.info.params * (1 if int8 else 4)) / 1e6
            for int8 in (False, True)
        ]
        figures = {
            "row": name,
            "parameters": count,
            "mb": round(sizes[0], 2),
            "int8_mb": round(sizes[1], 2),
            "front_end_ms": round(before, 2),
            "head_ms": round(after, 2),
            "real_time_factor": round((before + after) / 1000 / SECONDS, 5),
            "dynamic_int8_ms": round(median_ms(quantized, given.clips), 2),
        }
        print(add_row("light_cost", figures), flush=True)
    if (missing := missing_package()) is not None:
        print(f"openSMILE: not measured, {missing}")
        return
    for name in SETS:
        extract, values = extractor(name)
        weights = np.zeros((len(values), 4), np.float32)

        def classify(extract: Any = extract, weights: Any = weights) -> None:
            np.argmax(extract(wave) @ weights)

        cost = median_ms(classify, given.clips)
        figures = {"functionals": TITLES[name], "values": len(values), "ms": round(cost, 2)}
        figures["times_light_student_s"] = round(cost / costs[0], 1)
        print(add_row("light_cost", figures), flush=True)


if __name__ == "__main__":
    main()
