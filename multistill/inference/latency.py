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
import torch

from multistill.audio import SAMPLE_RATE
from multistill.config import FeaturesConfig, SpeechEncoderConfig, TextEncoderConfig
from multistill.corpora.manifest import MANIFEST
from multistill.damaged import read_table
from multistill.encoders import side_by_side
from multistill.encoders.registry import load_text
from multistill.errors import MultistillError
from multistill.features.decode import Wave, decode
from multistill.features.identity import resolved_weights
from multistill.features.in_memory import encode_clip
from multistill.models.spec import Encoder, Modality
from multistill.typing import AnyArray, FloatArray

WARM_UP = 3
COMPONENTS: Mapping[Modality, tuple[str, ...]] = {
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

    Clips are read and encoded as by the features stage: the same seconds, in the same windows.
    A head that reads one of several speech encoders is timed with that one alone, and one that
    reads one of several stored layers with the encoder cut there. Of an encoder that is trained,
    what is timed here makes what the store keeps; the rest is part of the model.

    Attributes:
        ids: the timed clips, evenly spaced over the `ids` passed in.
        audio_seconds: of each timed clip, what was read; empty if the encoders cannot be run.
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
        self.audio_seconds: list[float] = []
        self.component_ms: dict[str, list[float]] | None = None
        self.reason: str | None = None
        self._config = FeaturesConfig.model_validate(info["settings"])
        self._device = device
        self._read_ms: dict[tuple[Encoder, str | None, int | None], list[float]] = {}
        table = read_table(
            manifest / MANIFEST,
            columns=["utterance_id", "audio_path", "text"],
            filters=[("utterance_id", "in", self.ids)],
        ).to_pydict()
        row_of = {utterance: row for row, utterance in enumerate(table["utterance_id"])}
        rows = [row_of[utterance] for utterance in self.ids]
        self._paths = [str(table["audio_path"][row]) for row in rows]
        self._texts = [str(table["text"][row]) for row in rows]
        try:
            self._weights = resolved_weights(self._config)
            decode_ms, waves = time_each(self._decode, self._paths, torch.device("cpu"))
            self._waves = [wave.samples for wave in waves]
            self.audio_seconds = [len(samples) / SAMPLE_RATE for samples in self._waves]
            self.component_ms = {
                "decode": decode_ms,
                "speech": self._time_speech(self._config.speech, self._weights),
                "text": self._time_text(self._config.text),
            }
        except (MultistillError, OSError) as error:
            self.reason = str(error)

    def end_to_end_ms(
        self,
        modality: Modality,
        head_ms: Sequence[float],
        layers: Mapping[Encoder, int] | None = None,
        speech_encoder: str | None = None,
    ) -> list[float] | None:
        """Milliseconds of each clip with every component that a model of this modality needs.

        Args:
            layers: the only layer that the head reads, per encoder; absent: all that are stored.
            speech_encoder: title of the only speech encoder that the head reads; None: all.
        """
        if self.component_ms is None:
            return None
        milliseconds = dict(self.component_ms)
        trained = self._config.trained
        layers = {name: layer for name, layer in (layers or {}).items() if name not in trained}
        if speech_encoder is not None or "speech" in layers:
            milliseconds["speech"] = self._reading("speech", speech_encoder, layers.get("speech"))
        if "text" in layers:
            milliseconds["text"] = self._reading("text", None, layers["text"])
        needed = [milliseconds[name] for name in COMPONENTS[modality]]
        return [sum(times) for times in zip(head_ms, *needed, strict=True)]

    def real_time_factor(self, end_to_end_ms: Sequence[float]) -> float:
        """Median of processing time over the audio that was read; below 1: faster than speech."""
        seconds = np.asarray(end_to_end_ms) / 1000
        return float(np.median(seconds / np.asarray(self.audio_seconds)))

    def describe(self) -> dict[str, Any]:
        """The `latency` entry of metrics.json."""
        components = self.component_ms or {}
        return {
            "clips": len(self.ids),
            "median_seconds": float(np.median(self.audio_seconds)) if self.audio_seconds else None,
            "parts": {name: percentiles(times) for name, times in components.items()},
            "reason": self.reason,
        }

    def _reading(self, encoder: Encoder, title: str | None, layer: int | None) -> list[float]:
        """Milliseconds of each clip with one speech encoder, or one that ends at a stored layer."""
        key = (encoder, title, layer)
        if key not in self._read_ms:
            change = {} if layer is None else {"layers": [layer]}
            if encoder == "text":
                milliseconds = self._time_text(self._config.text.model_copy(update=change))
            else:
                speech, weights = self._config.speech, self._weights
                if title is not None:
                    speech, weights = side_by_side.alone(speech, weights, title)
                milliseconds = self._time_speech(speech.model_copy(update=change), weights)
            self._read_ms[key] = milliseconds
        return self._read_ms[key]

    def _decode(self, path: str) -> Wave:
        speech = self._config.speech
        return decode(path, max_seconds=speech.max_seconds, long_clips=speech.long_clips)

    def _time_speech(
        self, config: SpeechEncoderConfig, weights: Mapping[str, str | None]
    ) -> list[float]:
        encoder = side_by_side.load(config, weights, self._device)

        def encode(samples: FloatArray) -> AnyArray:
            return encode_clip(samples, encoder, config, self._config.batch_seconds)

        return time_each(encode, self._waves, self._device)[0]

    def _time_text(self, config: TextEncoderConfig) -> list[float]:
        encoder = load_text(config, self._weights["text"], self._device)
        return time_each(lambda text: encoder.encode([text]), self._texts, self._device)[0]
