"""What an encoder process does with a decoded shard: batches, states, a finished shard."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from multistill.config import FeaturesConfig
from multistill.encoders.audio import Wave
from multistill.encoders.base import SAMPLE_RATE, SpeechEncoder, TextEncoder
from multistill.encoders.speech import load_speech
from multistill.encoders.text import load_text
from multistill.features.collate import cut_by_padded_size
from multistill.features.store import Clip, ShardWriter, shard_writer
from multistill.features.waves import Decoded
from multistill.features.windows import Span, join, spans
from multistill.typing import FloatArray

TEXTS_PER_BATCH = 64
VERIFIED_CLIPS = 4
"""Clips of its first shard on which a worker compares bfloat16 with float32."""


@dataclass(frozen=True)
class Window:
    """A window of a clip, or all of it."""

    row: int
    number: int
    samples: FloatArray


def batches(windows: Sequence[Window], seconds: float, equal: bool) -> Iterator[list[Window]]:
    """Windows of similar length in batches of at most so many seconds, padding included.

    Args:
        equal: batch only windows of exactly the same length.
    """
    ordered = sorted(windows, key=lambda window: (len(window.samples), window.row, window.number))
    groups = [ordered]
    if equal:
        groups = [list(same) for _, same in groupby(ordered, lambda window: len(window.samples))]
    for group in groups:
        lengths = np.array([len(window.samples) for window in group], dtype=np.int64)
        for cut in cut_by_padded_size(seconds * SAMPLE_RATE, lengths):
            yield group[cut]


class Encoder:
    """Both encoders on one device; makes shards out of decoded clips.

    Args:
        weights: from `identity.resolved_weights`.
    """

    def __init__(self, config: FeaturesConfig, weights: dict[str, str | None], device: str) -> None:
        self.config = config
        self.device = torch.device(device)
        self.speech: SpeechEncoder = load_speech(config.speech, weights["speech"], self.device)
        self.text: TextEncoder = load_text(config.text, weights["text"], self.device)
        self._batch_seconds = config.batch_seconds
        self._verified = False

    def write(self, decoded: Decoded, shard: int, out: Path) -> dict[str, Any]:
        """Encode a shard and write it with its done marker.

        Returns:
            the marker's facts: counts, seconds, quarantined clips with reasons.
        """
        started = time.monotonic()
        reasons = {**decoded.reasons, **self._too_short(decoded)}
        if not self._verified:
            self._verify([wave for row, wave in decoded.waves.items() if row not in reasons])
        facts: dict[str, Any] = {}
        dims = (self.speech.facts.dim, self.text.facts.dim)
        with (
            shard_writer(out, shard, self.config.dtype, *dims, facts) as writer,
            ThreadPoolExecutor(1) as disk,
        ):
            pending: list[Future[list[tuple[str, str]]]] = []
            for group in self._groups(decoded, reasons):
                pending.append(disk.submit(writer.append, group))
                # One group is written while the next is computed; no more are held.
                if len(pending) > 1:
                    _note_refused(pending.pop(0).result(), decoded, reasons)
            for future in pending:
                _note_refused(future.result(), decoded, reasons)
            facts.update(self._facts(decoded, reasons, writer, started))
        return facts

    def _verify(self, waves: list[Wave]) -> None:
        shortest = sorted((wave.samples for wave in waves), key=len)[:VERIFIED_CLIPS]
        self.speech.verify(shortest)
        self._verified = bool(shortest)

    def _too_short(self, decoded: Decoded) -> dict[int, str]:
        minimum = self.speech.minimum_samples
        return {
            row: f"too short: {len(wave.samples)} samples at 16 kHz, needed are {minimum}"
            for row, wave in decoded.waves.items()
            if len(wave.samples) < minimum
        }

    def _facts(
        self, decoded: Decoded, reasons: dict[int, str], writer: ShardWriter, started: float
    ) -> dict[str, Any]:
        kept = [wave for row, wave in decoded.waves.items() if row not in reasons]
        return {
            "clips": len(decoded.ids),
            "encoded": writer.rows,
            "audio_seconds": sum(len(wave.samples) for wave in kept) / SAMPLE_RATE,
            "cut": sum(wave.cut for wave in kept),
            "encode_seconds": round(time.monotonic() - started, 4),
            # Linux counts in KiB.
            "worker_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "quarantined": [
                [decoded.ids[row], decoded.paths[row], reason]
                for row, reason in sorted(reasons.items())
            ],
            "speech": self.speech.facts.to_dict(),
            "text": self.text.facts.to_dict(),
        }

    def _groups(self, decoded: Decoded, reasons: dict[int, str]) -> Iterator[list[Clip]]:
        """Finished clips, a batch at a time; adds the reasons of those that failed."""
        usable = {row: wave for row, wave in decoded.waves.items() if row not in reasons}
        parts = {row: self._spans(wave) for row, wave in usable.items()}
        pieces = [
            Window(row, number, usable[row].samples[start:stop])
            for row, ranges in parts.items()
            for number, (start, stop) in enumerate(ranges)
        ]
        states: dict[int, dict[int, FloatArray]] = {row: {} for row in parts}
        equal = self.speech.facts.padding == "equal-length"
        for group in batches(pieces, self._batch_seconds, equal):
            for piece, found in zip(group, self._encode(group), strict=True):
                if isinstance(found, str):
                    reasons[piece.row] = found
                elif not np.isfinite(found).all():
                    reasons[piece.row] = "the speech encoder made values that are not finite"
                else:
                    states[piece.row][piece.number] = found
            done = [
                row
                for row in dict.fromkeys(piece.row for piece in group)
                if len(states[row]) == len(parts[row])
            ]
            if done:
                yield self._clips(decoded, done, parts, states, reasons)

    def _spans(self, wave: Wave) -> list[Span]:
        length = len(wave.samples)
        speech = self.config.speech
        long = speech.long_clips == "window" and length > speech.max_seconds * SAMPLE_RATE
        if not long or not self.speech.windowed:
            return [(0, length)]
        return spans(
            length,
            self.speech.hop,
            self.speech.minimum_samples,
            speech.window_seconds,
            speech.overlap_seconds,
        )

    def _clips(
        self,
        decoded: Decoded,
        rows: list[int],
        parts: dict[int, list[Span]],
        states: dict[int, dict[int, FloatArray]],
        reasons: dict[int, str],
    ) -> list[Clip]:
        texts: list[FloatArray] = []
        for start in range(0, len(rows), TEXTS_PER_BATCH):
            chosen = rows[start : start + TEXTS_PER_BATCH]
            texts += self.text.encode([decoded.texts[row] for row in chosen])
        clips = []
        for row, text in zip(rows, texts, strict=True):
            found = states.pop(row)
            if not np.isfinite(text).all():
                reasons[row] = "the text encoder made values that are not finite"
                continue
            pieces = [found[number] for number in range(len(parts[row]))]
            audio = join(pieces, parts[row], self.speech.hop)
            expected = self.speech.frames(len(decoded.waves[row].samples))
            assert len(audio) == expected, f"{len(audio)} states where {expected} are due"
            clips.append(Clip(decoded.ids[row], audio, text))
        return clips

    def _encode(self, group: list[Window]) -> list[FloatArray | str]:
        """States of each piece, or why there are none."""
        try:
            return list(self.speech.encode([piece.samples for piece in group]))
        except torch.OutOfMemoryError:
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            if len(group) == 1:
                seconds = len(group[0].samples) / SAMPLE_RATE
                return [
                    f"out of memory: {seconds:.1f} s do not fit the GPU; use `long_clips: window`"
                ]
        # Outside the handler, so that the failed batch's tensors are free.
        self._batch_seconds = max(self._batch_seconds / 2, 1.0)
        middle = len(group) // 2
        return [*self._encode(group[:middle]), *self._encode(group[middle:])]


def _note_refused(
    refused: list[tuple[str, str]], decoded: Decoded, reasons: dict[int, str]
) -> None:
    for utterance_id, reason in refused:
        reasons[decoded.ids.index(utterance_id)] = reason
