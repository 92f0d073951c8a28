"""Encode decoded shards in an encoder process: batches, states, the finished shard files.

    speech encoder   shard by shard, in the threads that bring them
    text encoder     in a thread of its own, ahead of it; on a GPU in a stream of its own
    writing          in a thread per shard, a batch behind the speech encoder

While the speech encoder works on a shard, another thread can decode the next one, whose
transcripts are then encoded.
"""

from __future__ import annotations

import resource
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from multistill.audio import SAMPLE_RATE
from multistill.config import FeaturesConfig
from multistill.encoders import side_by_side
from multistill.encoders.base import SpeechEncoder, TextEncoder
from multistill.encoders.registry import load_text
from multistill.features.attempts import encode_each, is_of_the_item, is_out_of_memory
from multistill.features.collate import cut_by_padded_size
from multistill.features.decode import Wave
from multistill.features.spans import Spans
from multistill.features.store_writer import Clip, ShardWriter, shard_writer
from multistill.features.waves import DecodedShard
from multistill.features.windows import Span, clip_spans, join_windows
from multistill.typing import AnyArray, FloatArray

TEXTS_PER_BATCH = 64
PROBE_TEXT = "a"
"""A transcript that every working text encoder encodes."""
EXAMPLES = 10
"""Silent clips that a shard's marker names."""
VERIFIED_CLIPS = 4
"""Clips of its first shard on which a worker compares bfloat16 with float32."""


@dataclass(frozen=True)
class Window:
    """The part of a clip that is encoded in one piece: all of it, or one of several windows.

    Attributes:
        row: of the clip in its shard.
        number: of the window in its clip.
    """

    row: int
    number: int
    samples: FloatArray


def batch_windows(windows: Sequence[Window], seconds: float, equal: bool) -> Iterator[list[Window]]:
    """Batches of windows of similar length, at most so many seconds each, padding included.

    Args:
        equal: put only windows of exactly the same length into a batch.
    """
    ordered = sorted(windows, key=lambda window: (len(window.samples), window.row, window.number))
    groups = [ordered]
    if equal:
        groups = [list(same) for _, same in groupby(ordered, lambda window: len(window.samples))]
    for group in groups:
        lengths = np.array([len(window.samples) for window in group], dtype=np.int64)
        for cut in cut_by_padded_size(seconds * SAMPLE_RATE, lengths):
            yield group[cut]


class Text(NamedTuple):
    """States [tokens, dim] of a transcript, or why there are none; `cut` if its end is lost."""

    states: AnyArray | str
    cut: bool = False


Texts = Future[dict[int, Text]]
"""By row of the shard."""

_T = TypeVar("_T")


class ShardEncoder:
    """Both encoders on one device; turns decoded shards into shards of the store.

    Several threads may bring shards: the speech encoder works on one at a time.

    Args:
        weights: from `identity.resolved_weights`.
    """

    def __init__(self, config: FeaturesConfig, weights: dict[str, str | None], device: str) -> None:
        self.config = config
        self.device = torch.device(device)
        self.speech: SpeechEncoder = side_by_side.load(config.speech, weights, self.device)
        self.text: TextEncoder = load_text(config.text, weights["text"], self.device)
        self._batch_seconds = config.batch_seconds
        self._verified = False
        self._turn = threading.Lock()
        # For want of memory an encoder works alone: with both locks, taken in this order.
        self._speech_works = threading.Lock()
        self._text_works = threading.Lock()
        # A single thread, since a tokenizer cannot be shared.
        self._text_thread = ThreadPoolExecutor(1, "text")
        self._stream: torch.cuda.Stream | None = None
        if self.device.type == "cuda":
            torch.cuda.synchronize()  # the weights were copied in another stream
            self._stream = torch.cuda.Stream()

    def write(
        self, decoded: DecodedShard, shard: int, out: Path, spans: Spans | None = None
    ) -> dict[str, Any]:
        """Encode a shard and write it with its done marker.

        Args:
            spans: of this shard; the work is recorded there.

        Returns:
            the fields that this adds to the marker: counts, seconds, quarantined clips with
            reasons.
        """
        spans = spans or Spans(shard)
        reasons = {**decoded.reasons, **self._too_short(decoded)}
        rows = [row for row in decoded.waves if row not in reasons]
        texts = self._text_thread.submit(self._encode_texts, decoded, rows, spans)
        summary: dict[str, Any] = {}
        dims = (self.speech.info.dim, self.text.info.dim)
        stored = {"audio": self.speech.info.stored, "text": self.text.info.stored}
        try:
            with (
                shard_writer(out, shard, self.config.dtype, *dims, summary, stored) as writer,
                ThreadPoolExecutor(1) as disk,
            ):

                def append(clips: list[Clip]) -> list[tuple[str, str]]:
                    with spans.span("write"):
                        return writer.append(clips)

                pending: list[Future[list[tuple[str, str]]]] = []
                with self._turn:
                    started = time.monotonic()
                    if not self._verified:
                        self._verify([decoded.waves[row] for row in rows])
                    for clips in self._encoded_batches(decoded, texts, reasons, spans):
                        pending.append(disk.submit(append, clips))
                        # One batch is written while the next is computed; no more are held in
                        # memory.
                        if len(pending) > 1:
                            _add_refused(pending.pop(0).result(), decoded, reasons)
                    # The next shard has its turn while the last batch is written.
                    encode_seconds = time.monotonic() - started
                for future in pending:
                    _add_refused(future.result(), decoded, reasons)
                summary.update(self._summary(decoded, texts.result(), reasons, writer))
                summary["encode_seconds"] = round(encode_seconds, 4)
        finally:
            texts.cancel()
        return summary

    def _verify(self, waves: list[Wave]) -> None:
        shortest = sorted((wave.samples for wave in waves), key=len)[:VERIFIED_CLIPS]
        try:
            self._run_speech(lambda: self.speech.verify(shortest))
        except Exception as error:
            if not is_of_the_item(error):
                raise
            # The clip at fault gets its reason when it is encoded; the next shard is compared.
            return
        self._verified = bool(shortest)

    def _too_short(self, decoded: DecodedShard) -> dict[int, str]:
        minimum = self.speech.minimum_samples
        return {
            row: f"too short: {len(wave.samples)} samples at 16 kHz, the minimum is {minimum}"
            for row, wave in decoded.waves.items()
            if len(wave.samples) < minimum
        }

    def _summary(
        self,
        decoded: DecodedShard,
        texts: dict[int, Text],
        reasons: dict[int, str],
        writer: ShardWriter,
    ) -> dict[str, Any]:
        rows = [row for row in decoded.waves if row not in reasons]
        encoded = [decoded.waves[row] for row in rows]
        silent = [decoded.ids[row] for row in sorted(rows) if decoded.waves[row].silent]
        cut_texts = Counter(decoded.ids[row].partition("/")[0] for row in rows if texts[row].cut)
        return {
            "clips": len(decoded.ids),
            "encoded": writer.rows,
            "audio_seconds": sum(len(wave.samples) for wave in encoded) / SAMPLE_RATE,
            "cut": sum(wave.cut for wave in encoded),
            "silent": len(silent),
            "silent_examples": silent[:EXAMPLES],
            "cut_texts": dict(sorted(cut_texts.items())),
            # Linux reports KiB.
            "worker_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "quarantined": [
                [
                    decoded.ids[row],
                    decoded.paths[row],
                    f"{reason} ({Path(decoded.paths[row]).name})",
                ]
                for row, reason in sorted(reasons.items())
            ],
            "speech": self.speech.info.to_dict(),
            "text": self.text.info.to_dict(),
        }

    def _encoded_batches(
        self, decoded: DecodedShard, texts: Texts, reasons: dict[int, str], spans: Spans
    ) -> Iterator[list[Clip]]:
        """Encode batch by batch; yields the clips that each batch completes.

        A clip is complete when all of its windows are encoded. Clips that fail are added to
        `reasons`.
        """
        waves = {row: wave for row, wave in decoded.waves.items() if row not in reasons}
        speech = self.config.speech
        cuts = {
            row: clip_spans(len(wave.samples), self.speech, speech) for row, wave in waves.items()
        }
        windows = [
            Window(row, number, waves[row].samples[start:stop])
            for row, ranges in cuts.items()
            for number, (start, stop) in enumerate(ranges)
        ]
        states: dict[int, dict[int, AnyArray]] = {row: {} for row in cuts}
        equal = self.speech.info.padding == "equal-length"
        for batch in batch_windows(windows, self._batch_seconds, equal):
            with spans.span("speech"):
                results = self._encode(batch)
            for window, result in zip(batch, results, strict=True):
                if isinstance(result, str):
                    reasons[window.row] = result
                elif not np.isfinite(result).all():
                    reasons[window.row] = "the speech encoder made values that are not finite"
                else:
                    states[window.row][window.number] = result
            complete = [
                row
                for row in dict.fromkeys(window.row for window in batch)
                if len(states[row]) == len(cuts[row])
            ]
            if complete:
                with spans.span("text awaited"):
                    encoded = texts.result()
                yield self._clips(decoded, complete, cuts, states, encoded, reasons)

    def _clips(
        self,
        decoded: DecodedShard,
        rows: list[int],
        cuts: dict[int, list[Span]],
        states: dict[int, dict[int, AnyArray]],
        texts: dict[int, Text],
        reasons: dict[int, str],
    ) -> list[Clip]:
        """Join the windows of complete clips, and put the states of their transcripts beside."""
        clips = []
        for row in rows:
            windows = states.pop(row)
            text = texts[row].states
            if isinstance(text, str):
                reasons[row] = text
                continue
            if not np.isfinite(text).all():
                reasons[row] = "the text encoder made values that are not finite"
                continue
            in_order = [windows[number] for number in range(len(cuts[row]))]
            audio = join_windows(in_order, cuts[row], self.speech.hop)
            expected = self.speech.frames(len(decoded.waves[row].samples))
            if len(audio) != expected:
                reasons[row] = f"wrong number of states: {len(audio)} instead of {expected}"
                continue
            clips.append(Clip(decoded.ids[row], audio, text))
        return clips

    def _encode_texts(
        self, decoded: DecodedShard, rows: list[int], spans: Spans
    ) -> dict[int, Text]:
        """Encode transcripts, those of similar length together."""
        encoded = {}
        in_order = sorted(rows, key=lambda row: (len(decoded.texts[row]), row))
        for start in range(0, len(in_order), TEXTS_PER_BATCH):
            batch = in_order[start : start + TEXTS_PER_BATCH]
            texts = [decoded.texts[row] for row in batch]
            with spans.span("text"):
                for row, states in zip(batch, self._encode_text_batch(texts), strict=True):
                    cut = not isinstance(states, str) and self.text.is_cut(decoded.texts[row])
                    encoded[row] = Text(states, cut)
        return encoded

    def _encode_text_batch(self, texts: list[str]) -> list[AnyArray | str]:
        def encode() -> list[AnyArray | str]:
            with self._text_works, _in_stream(self._stream):
                return encode_each(self.text.encode, texts, PROBE_TEXT, "the text encoder failed")

        try:
            return encode()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        # Alone on the device there may be enough.
        with self._speech_works:
            self._release_memory()
            return encode()

    def _encode(self, batch: list[Window]) -> list[AnyArray | str]:
        """States of each window, or the reason why it could not be encoded.

        A batch that exceeds the memory even without the text encoder is halved. Batches of later
        shards are limited to half of what failed.
        """
        waves = [window.samples for window in batch]

        def encode() -> list[AnyArray | str]:
            return encode_each(self.speech.encode, waves, probe_wave(), "the speech encoder failed")

        try:
            return self._run_speech(encode)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        # Outside the handler, where the tensors of the failed batch are released.
        self._release_memory()
        if len(batch) == 1:
            seconds = len(batch[0].samples) / SAMPLE_RATE
            return [
                f"out of memory: {seconds:.1f} s do not fit; set features.speech.long_clips: "
                "window, with max_seconds and window_seconds below that"
            ]
        failed_seconds = len(batch) * max(len(window.samples) for window in batch) / SAMPLE_RATE
        self._batch_seconds = min(self._batch_seconds, max(failed_seconds / 2, 1.0))
        middle = len(batch) // 2
        return [*self._encode(batch[:middle]), *self._encode(batch[middle:])]

    def _run_speech(self, work: Callable[[], _T]) -> _T:
        """Result of work of the speech encoder, which waits for the text encoder's memory.

        Raises:
            whatever `work` raises; for want of memory, what it raises without the text encoder.
        """
        try:
            with self._speech_works:
                return work()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        with self._speech_works, self._text_works:
            self._release_memory()
            return work()

    def _release_memory(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _in_stream(stream: torch.cuda.Stream | None) -> AbstractContextManager[Any]:
    return nullcontext() if stream is None else torch.cuda.stream(stream)


def probe_wave() -> FloatArray:
    """A second of noise that every working speech encoder encodes."""
    return np.random.default_rng(0).standard_normal(SAMPLE_RATE).astype(np.float32)


def _add_refused(
    refused: list[tuple[str, str]], decoded: DecodedShard, reasons: dict[int, str]
) -> None:
    for utterance_id, reason in refused:
        reasons[decoded.ids.index(utterance_id)] = reason
