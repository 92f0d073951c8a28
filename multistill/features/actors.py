"""The two steps of the Ray Data pipeline, as Ray calls them: one row, one shard."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from multistill.config import FeaturesConfig
from multistill.errors import MultistillError
from multistill.features.store import SHARDS

ATTEMPTS = 5
"""Workers that may die over one shard; Ray itself would try for ever."""


class DecodeShard:
    """Task: a shard's number -> its waves, for encoders that should not wait for disks."""

    def __init__(self, plan: Path, config: dict[str, Any]) -> None:
        self._plan = plan
        self._config = config

    def __call__(self, batch: pa.Table) -> pa.Table:
        from multistill.features.waves import decode_shard, to_table

        [shard] = batch.column("shard").to_pylist()
        config = FeaturesConfig.model_validate(self._config)
        return to_table(decode_shard(self._plan, shard, config), shard)


class EncodeShard:
    """Actor: holds both encoders; a shard's waves or its number -> the finished shard.

    What a user can mend comes back as a sentence beside the shard: Ray keeps of an exception
    only its text, among its own.
    """

    def __init__(
        self,
        config: dict[str, Any],
        weights: dict[str, str | None],
        plan: str,
        out: str,
        cuda: bool,
        threads: int,
    ) -> None:
        import torch

        from multistill.features.worker import Encoder

        torch.set_num_threads(threads)
        self._config = FeaturesConfig.model_validate(config)
        self._plan = Path(plan)
        self._out = Path(out)
        self._encoder: Encoder | MultistillError
        try:
            self._encoder = Encoder(self._config, weights, "cuda" if cuda else "cpu")
        except MultistillError as error:
            self._encoder = error

    def __call__(self, batch: pa.Table) -> pa.Table:
        [shard] = batch.column("shard").to_pylist()
        error = None
        try:
            self._work(batch, shard)
        except MultistillError as told:
            error = str(told)
        except OSError as failure:
            if failure.errno != errno.ENOSPC:
                raise
            error = (
                f"the disk that holds {self._out} is full; free some space and run the same "
                "command again: finished shards are kept"
            )
        return pa.table({"shard": [shard], "error": pa.array([error], pa.string())})

    def _work(self, batch: pa.Table, shard: int) -> None:
        from multistill.features.waves import decode_shard, from_table

        if isinstance(self._encoder, MultistillError):
            raise self._encoder
        with counted(self._out, shard):
            if "samples" in batch.column_names:
                decoded = from_table(batch)
            else:
                decoded = decode_shard(self._plan, shard, self._config)
            self._encoder.write(decoded, shard, self._out)


@contextmanager
def counted(out: Path, shard: int) -> Iterator[None]:
    """Count the attempts at a shard in a file, which survives a worker's death.

    Raises:
        MultistillError: too many workers died over this shard.
    """
    attempts = out / SHARDS / f".{shard:05d}.attempts"
    with attempts.open("ab") as stream:
        stream.write(b".")
        count = stream.tell()
    if count > ATTEMPTS:
        raise MultistillError(
            f"shard {shard} ended its worker {ATTEMPTS} times, most likely for want of memory; "
            "lower `features.batch_seconds` and `features.shard_seconds`"
        )
    yield
    attempts.unlink(missing_ok=True)
