"""Time of one answer, a clip at a time, in milliseconds: the head alone and end to end.

End to end is what runs between a file and an answer: decoding, the encoders that the
model's modality needs, the head. The parts are timed one after another on the same clips
and summed clip by clip.
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
from multistill.encoders.audio import Wave, decode
from multistill.encoders.registry import load_speech, load_text
from multistill.errors import MultistillError
from multistill.features.identity import resolved_weights

WARM_UP = 3
NEEDED = {
    "audio": ("decode", "speech"),
    "text": ("text",),
    "multimodal": ("decode", "speech", "text"),
}

T = TypeVar("T")
R = TypeVar("R")


def percentiles(milliseconds: Sequence[float]) -> dict[str, float]:
    """p50 and p95."""
    p50, p95 = np.percentile(milliseconds, [50, 95])
    return {"p50": float(p50), "p95": float(p95)}


def time_each(
    answer: Callable[[T], R], items: Sequence[T], device: torch.device
) -> tuple[list[float], list[R]]:
    """Milliseconds and result of `answer(item)` for each item, after `WARM_UP` untimed calls.

    A GPU works behind the caller's back, so it is waited for before and after each call.
    """

    def settled() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    taken, results = [], []
    with torch.inference_mode():
        for item in items[:WARM_UP]:
            answer(item)
        for item in items:
            start = settled()
            results.append(answer(item))
            taken.append(1000 * (settled() - start))
    return taken, results


class EncoderLatency:
    """How long the way to the encoders' states takes, for a few test clips.

    Attributes:
        ids: the clips, evenly spaced over the given ones.
        parts: milliseconds of `decode`, `speech` and `text` for each clip, or None where the
            encoders cannot be run here; `reason` then says why.
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
        self.parts: dict[str, list[float]] | None = None
        self.reason: str | None = None
        table = pq.read_table(
            manifest / MANIFEST,
            columns=["utterance_id", "audio_path", "text", "duration_s"],
            filters=[("utterance_id", "in", self.ids)],
        ).to_pydict()
        place = {name: row for row, name in enumerate(table["utterance_id"])}
        rows = [place[name] for name in self.ids]
        self.seconds = [float(table["duration_s"][row]) for row in rows]
        paths = [str(table["audio_path"][row]) for row in rows]
        texts = [str(table["text"][row]) for row in rows]
        try:
            self.parts = _encoder_times(info, paths, texts, device)
        except (MultistillError, OSError) as error:
            self.reason = str(error)

    def end_to_end(self, modality: str, head: Sequence[float]) -> list[float] | None:
        """Milliseconds of each clip with everything that a model of this modality needs."""
        if self.parts is None:
            return None
        needed = [self.parts[part] for part in NEEDED[modality]]
        return [sum(times) for times in zip(head, *needed, strict=True)]

    def real_time_factor(self, whole: Sequence[float]) -> float:
        """Median of answering time over audio time: below 1 keeps up with the speaker."""
        return float(np.median(np.asarray(whole) / 1000 / np.asarray(self.seconds)))

    def facts(self) -> dict[str, Any]:
        return {
            "clips": len(self.ids),
            "median_seconds": float(np.median(self.seconds)),
            "parts": {name: percentiles(times) for name, times in (self.parts or {}).items()},
            "reason": self.reason,
        }


def _encoder_times(
    info: Mapping[str, Any], paths: Sequence[str], texts: Sequence[str], device: torch.device
) -> dict[str, list[float]]:
    config = FeaturesConfig.model_validate(info["settings"])
    weights = resolved_weights(config)
    speech = load_speech(config.speech, weights["speech"], device)
    text = load_text(config.text, weights["text"], device)

    def opened(path: str) -> Wave:
        return decode(path, max_seconds=config.speech.max_seconds, long_clips="cut")

    decoding, waves = time_each(opened, paths, torch.device("cpu"))
    hearing, _ = time_each(lambda wave: speech.encode([wave.samples]), waves, device)
    reading, _ = time_each(lambda words: text.encode([words]), texts, device)
    return {"decode": decoding, "speech": hearing, "text": reading}
