"""The callables that the Ray Data pipeline maps over shards: a decode task, an encoder actor."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from multistill.config import FeaturesConfig
from multistill.errors import MultistillError
from multistill.features.spans import Spans
from multistill.features.store import SHARDS
from multistill.features.waves import RECORDINGS, DecodedShard, ShardSource
from multistill.full_disk import writing

SHARDS_AT_A_TIME = 2
"""In one actor: while the speech encoder works on one, the next is decoded and its transcripts are
encoded, or the last is finished."""

MAX_ATTEMPTS = 5
"""Workers that may die while they work on one shard; Ray itself would retry forever.

A worker that dies counts for every shard that it decodes or encodes, and it is not known which of
them it died of; one that waits to be decoded is not among them.
"""


class DecodeShard:
    """Ray task: a shard number -> its decoded waves, so that a GPU does not wait for disks."""

    def __init__(
        self, plan: Path, config: dict[str, Any], source: ShardSource = RECORDINGS
    ) -> None:
        self._plan = plan
        self._source = source
        self._config = config

    def __call__(self, batch: pa.Table) -> pa.Table:
        from multistill.features.waves import to_table

        [shard] = batch.column("shard").to_pylist()
        config = FeaturesConfig.model_validate(self._config)
        spans = Spans(shard)
        with spans.span("decode"):
            table = to_table(self._source.decode(self._plan, shard, config), shard)
        if config.trace:
            spans.save(self._plan.parent)
        return table


class EncodeShard:
    """Ray actor that holds both encoders: a shard number or its decoded waves -> a finished shard.

    Ray calls it from `SHARDS_AT_A_TIME` threads.

    Errors that the user can fix are returned in the `error` column instead of raised, since Ray
    turns an exception into text and embeds it in another message.
    """

    def __init__(
        self,
        config: dict[str, Any],
        weights: dict[str, str | None],
        plan: str,
        out: str,
        cuda: bool,
        threads: int,
        source: ShardSource = RECORDINGS,
    ) -> None:
        import torch

        from multistill.features.worker import ShardEncoder

        torch.set_num_threads(threads)
        self._config = FeaturesConfig.model_validate(config)
        self._plan = Path(plan)
        self._out = Path(out)
        self._source = source
        self._decoding = threading.Lock()
        self._encoder: ShardEncoder | MultistillError
        try:
            self._encoder = ShardEncoder(self._config, weights, "cuda" if cuda else "cpu")
        except MultistillError as error:
            self._encoder = error

    def __call__(self, batch: pa.Table) -> pa.Table:
        [shard] = batch.column("shard").to_pylist()
        error = None
        try:
            with writing(self._out, "finished shards"):
                self._encode(batch, shard)
        except MultistillError as raised:
            error = str(raised)
        return pa.table({"shard": [shard], "error": pa.array([error], pa.string())})

    def _encode(self, batch: pa.Table, shard: int) -> None:
        if isinstance(self._encoder, MultistillError):
            raise self._encoder
        spans = Spans(shard)
        with ExitStack() as attempt:
            with self._decoding:
                # Not before: a shard that waits has no part in the death of the worker.
                attempt.enter_context(count_attempts(self._out, shard))
                decoded = self._decoded(batch, shard, spans)
            with spans.span("shard"):
                self._encoder.write(decoded, shard, self._out, spans)
        if self._config.trace:
            spans.save(self._out)

    def _decoded(self, batch: pa.Table, shard: int, spans: Spans) -> DecodedShard:
        from multistill.features.waves import from_table

        if "samples" in batch.column_names:
            return from_table(batch)
        with spans.span("decode"):
            return self._source.decode(self._plan, shard, self._config)


@contextmanager
def count_attempts(out: Path, shard: int) -> Iterator[None]:
    """Count the attempts at a shard in a file, which survives the death of a worker.

    Raises:
        MultistillError: too many workers died while they worked on this shard.
    """
    attempts = out / SHARDS / f".{shard:05d}.attempts"
    with attempts.open("ab") as stream:
        stream.write(b".")
        count = stream.tell()
    if count > MAX_ATTEMPTS:
        raise MultistillError(
            f"{MAX_ATTEMPTS} workers died while they worked on shard {shard}, most likely out of "
            "memory for it or for the shard beside it; lower `features.batch_seconds` or "
            "`features.encoders`"
        )
    yield
    attempts.unlink(missing_ok=True)
