"""Latency of one prediction at batch size 1, in milliseconds: the head alone and end to end.

End to end covers everything between an audio file and a prediction: decoding, the encoders that
the model's modality needs, and the head. The components are timed separately on the same clips
and summed per clip.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow.parquet as pq
import torch

from multistill.config import FeaturesConfig
from multistill.corpora.manifest import MANIFEST
from multistill.encoders.registry import load_speech, load_text
from multistill.errors import MultistillError
from multistill.features.decode import Wave, decode
from multistill.features.identity import resolved_weights

WARM_UP = 3
COMPONENTS = {
    "audio": ("decode", "speech"),
    "text": ("text",),
    "multimodal": ("decode", "speech", "text"),
}
"""What runs before the head, by the model's modality."""

T = TypeVar("T")
R = TypeVar("R")


def percentiles(milliseconds: Sequence[float]) -> dict[str, float]:
    """p50 and p95."""
    p50, p95 = np.percentile(milliseconds, [50, 95])
    return {"p50": float(p50), "p95": float(p95)}


def time_each(
    function: Callable[[T], R], inputs: Sequence[T], device: torch.device
) -> tuple[list[float], list[R]]:
    """Milliseconds and result of `function(input)` for each input, after `WARM_UP` untimed calls.

    CUDA kernels run asynchronously, so the device is synchronized before and after each call.
    """

    def synchronized_time() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    milliseconds, results = [], []
    with torch.inference_mode():
        for item in inputs[:WARM_UP]:
            function(item)
        for item in inputs:
            start = synchronized_time()
            results.append(function(item))
            milliseconds.append(1000 * (synchronized_time() - start))
    return milliseconds, results


class EncoderLatency:
    """Latency of decoding and encoding, measured on a few test clips.

    Attributes:
        ids: the timed clips, evenly spaced over the `ids` passed in.
        audio_seconds: duration of each timed clip.
        component_ms: milliseconds of `decode`, `speech` and `text` for each clip, or None where
            the encoders cannot be run here; `reason` then holds the error message.
    """

    def __init__(
        self,
        manifest: Path,
        info: Mapping[str, Any],
        ids: Sequence[str],
        clips: int,
        device: torch.device,
    ) -> None:
        step = max(1, len(ids) // clips)
        self.ids = list(ids[::step][:clips])
        self.component_ms: dict[str, list[float]] | None = None
        self.reason: str | None = None
        table = pq.read_table(
            manifest / MANIFEST,
            columns=["utterance_id", "audio_path", "text", "duration_s"],
            filters=[("utterance_id", "in", self.ids)],
        ).to_pydict()
        row_of = {utterance: row for row, utterance in enumerate(table["utterance_id"])}
        rows = [row_of[utterance] for utterance in self.ids]
        self.audio_seconds = [float(table["duration_s"][row]) for row in rows]
        paths = [str(table["audio_path"][row]) for row in rows]
        texts = [str(table["text"][row]) for row in rows]
        try:
            self.component_ms = _time_components(info, paths, texts, device)
        except (MultistillError, OSError) as error:
            self.reason = str(error)

    def end_to_end_ms(self, modality: str, head_ms: Sequence[float]) -> list[float] | None:
        """Milliseconds of each clip with every component that a model of this modality needs."""
        if self.component_ms is None:
            return None
        needed = [self.component_ms[name] for name in COMPONENTS[modality]]
        return [sum(times) for times in zip(head_ms, *needed, strict=True)]

    def real_time_factor(self, end_to_end_ms: Sequence[float]) -> float:
        """Median of processing time over audio duration: below 1 is faster than real time."""
        seconds = np.asarray(end_to_end_ms) / 1000
        return float(np.median(seconds / np.asarray(self.audio_seconds)))

    def describe(self) -> dict[str, Any]:
        """The `latency` entry of metrics.json."""
        components = self.component_ms or {}
        return {
            "clips": len(self.ids),
            "median_seconds": float(np.median(self.audio_seconds)),
            "parts": {name: percentiles(times) for name, times in components.items()},
            "reason": self.reason,
        }


def _time_components(
    info: Mapping[str, Any], paths: Sequence[str], texts: Sequence[str], device: torch.device
) -> dict[str, list[float]]:
    config = FeaturesConfig.model_validate(info["settings"])
    weights = resolved_weights(config)
    speech = load_speech(config.speech, weights["speech"], device)
    text = load_text(config.text, weights["text"], device)

    def decode_path(path: str) -> Wave:
        return decode(path, max_seconds=config.speech.max_seconds, long_clips="cut")

    decode_ms, waves = time_each(decode_path, paths, torch.device("cpu"))
    speech_ms, _ = time_each(lambda wave: speech.encode([wave.samples]), waves, device)
    text_ms, _ = time_each(lambda transcript: text.encode([transcript]), texts, device)
    return {"decode": decode_ms, "speech": speech_ms, "text": text_ms}
