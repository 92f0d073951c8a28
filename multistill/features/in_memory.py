"""States of a few clips in memory, equal to those that a feature store would hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from multistill.audio.errors import UnusableClipError
from multistill.config import SpeechEncoderConfig
from multistill.encoders.base import SpeechEncoder, Stored
from multistill.features.dtypes import Dtype, dtype_of, pack, unpack
from multistill.features.store_writer import STATES
from multistill.features.windows import clip_spans, join_windows
from multistill.features.worker import Window, batch_windows
from multistill.typing import AnyArray, FloatArray, IntArray


def encode_clip(
    samples: FloatArray, encoder: SpeechEncoder, config: SpeechEncoderConfig, batch_seconds: float
) -> AnyArray:
    """States [frames, dim] of one clip, in the windows and batches of the features stage.

    Of an encoder that is trained, what the store keeps in their place.

    Args:
        samples: [n] at 16 kHz, normalised (`decode.Wave`).
        batch_seconds: audio seconds in one batch of windows.

    Raises:
        UnusableClipError: the clip is shorter than the shortest that makes a state.
    """
    if len(samples) < encoder.minimum_samples:
        raise UnusableClipError(
            "too short",
            f"{len(samples)} samples at 16 kHz, the minimum is {encoder.minimum_samples}",
        )
    spans = clip_spans(len(samples), encoder, config)
    windows = [Window(0, number, samples[start:stop]) for number, (start, stop) in enumerate(spans)]
    states: dict[int, AnyArray] = {}
    equal = encoder.info.padding == "equal-length"
    for batch in batch_windows(windows, batch_seconds, equal):
        encoded = encoder.encode([window.samples for window in batch])
        states.update(zip((window.number for window in batch), encoded, strict=True))
    return join_windows([states[number] for number in range(len(spans))], spans, encoder.hop)


class StatesInMemory:
    """Clips by id with the part of `FeatureStore` that collating and predicting use.

    Args:
        dtype: in which states are kept, and by which they are rounded.
        stored: what is kept as `audio` and as `text`.
    """

    def __init__(
        self,
        dtype: Dtype,
        audio_dim: int,
        text_dim: int,
        stored: Mapping[str, Stored] = STATES,
    ) -> None:
        self.audio_dim = audio_dim
        self.text_dim = text_dim
        self._types = {name: dtype_of(each, dtype) for name, each in stored.items()}
        self._clips: dict[str, dict[str, tuple[AnyArray, FloatArray | None]]] = {}

    def add(self, utterance_id: str, audio: AnyArray, text: AnyArray) -> None:
        """Keep the states [frames, audio_dim] and [tokens, text_dim] of a clip.

        Raises:
            UnusableClipError: values are not finite, or do not fit the type.
        """
        clip = {}
        for name, states in (("audio", audio), ("text", text)):
            if not np.isfinite(states).all():
                encoder = "speech" if name == "audio" else "text"
                raise UnusableClipError(
                    "not finite", f"the {encoder} encoder made values that are not finite"
                )
            try:
                clip[name] = pack(states, self._types[name])
            except OverflowError as error:
                raise UnusableClipError("cannot be stored", str(error)) from error
        self._clips[utterance_id] = clip

    def __contains__(self, utterance_id: object) -> bool:
        return utterance_id in self._clips

    def raw(self, modality: str, utterance_id: str) -> tuple[AnyArray, FloatArray | None]:
        """Values [length, dim] and int8 scales [dim], as of `FeatureStore.raw`."""
        return self._clips[utterance_id][modality]

    def each(self, modality: str, ids: Iterable[str]) -> Iterator[AnyArray]:
        """Speech states [frames, audio_dim], or text states [tokens, text_dim], of each clip."""
        return (unpack(*self.raw(modality, name), self._types[modality]) for name in ids)

    def audio_frames(self, ids: Iterable[str]) -> IntArray:
        """Frames of each clip."""
        return self._lengths("audio", ids)

    def text_tokens(self, ids: Iterable[str]) -> IntArray:
        """Tokens of each clip; 0 without a transcript."""
        return self._lengths("text", ids)

    def _lengths(self, modality: str, ids: Iterable[str]) -> IntArray:
        return np.fromiter((len(self.raw(modality, name)[0]) for name in ids), dtype=np.int64)
