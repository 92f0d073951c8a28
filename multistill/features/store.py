"""The feature store: Arrow shards, memory-mapped, read by utterance id.

    features.json               encoders, dimensions, dtype; file and checksum of each shard
    index.arrow                 utterance_id, shard, batch, row, audio_frames, text_tokens
    quarantine.parquet          utterance_id, audio_path, reason
    shards/00000-1f0c….arrow    Arrow IPC file, one row per clip; the name holds its checksum
    shards/00000.json           its done marker: file, rows, bytes, checksum

This module reads a store, `store_writer` writes one, and `docs/features.md` shows how to read
one with plain pyarrow. States are stored without padding, so a clip of 3 s takes the space of
3 s. For an encoder that is trained, `stored` in features.json says what is kept in their place.
All processes of a node that read a store share one copy of it in the page cache.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from multistill.damaged import damaged, reading
from multistill.errors import MultistillError
from multistill.features.dtypes import Dtype, StoredDtype, dtype_of, unpack
from multistill.features.ids import Ids
from multistill.features.index import INDEX, POSITION, Index
from multistill.features.pages import read_at_random, will_need
from multistill.typing import AnyArray, BoolArray, FloatArray, IntArray
from multistill.workspace import read_json

FORMAT = 2
INFO = "features.json"
QUARANTINE = "quarantine.parquet"
SHARDS = "shards"
_AHEAD = 64
"""Clips that `each` asks the disk for before it reads them: some 20 MB."""


class _Batch:
    """One record batch as NumPy views of the memory-mapped file."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        batch.validate(full=True)  # offsets beyond the values would be read from other memory
        self.columns = {}
        for name in ("audio", "text"):
            column = batch.column(name)
            scales = None
            if f"{name}_scale" in batch.schema.names:
                scale = batch.column(f"{name}_scale")
                scales = scale.values.to_numpy().reshape(len(scale), -1)
            self.columns[name] = (
                column.values.to_numpy(zero_copy_only=True),
                column.offsets.to_numpy(),
                scales,
            )

    def raw(self, name: str, row: int, dim: int) -> tuple[AnyArray, FloatArray | None]:
        values, offsets, scales = self.columns[name]
        states = values[offsets[row] : offsets[row + 1]].reshape(-1, dim)
        return states, None if scales is None else scales[row]


class FeatureStore:
    """Random access to a finished store.

    Args:
        folder: holds features.json, index.arrow and shards/. `cache.open_store` also accepts
            the URI of an object store and copies it to the node first.

    Raises:
        MultistillError: the folder is not a finished store, or has another format version.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            with reading(self.folder / INFO):
                self.info: dict[str, Any] = dict(read_json(self.folder / INFO))
        except FileNotFoundError as error:
            raise self._incomplete(INFO) from error
        if self.info.get("format") != FORMAT:
            raise MultistillError(
                f"{self.folder} has store format {self.info.get('format')}, this version reads "
                f"{FORMAT}; remove the folder and run the job again"
            )
        with reading(self.folder / INFO):
            self._read_info()
        try:
            self._index = Index(self.folder)
        except FileNotFoundError as error:
            raise self._incomplete(INDEX) from error
        self._shards: dict[int, list[_Batch]] = {}

    def _read_info(self) -> None:
        self.dtype: Dtype = self.info["dtype"]
        self.audio_dim: int = int(self.info["audio_dim"])
        self.text_dim: int = int(self.info["text_dim"])
        # A store that tests or benchmarks write has no encoder, and holds states.
        self.types: dict[str, StoredDtype] = {
            name: dtype_of(self.info.get(encoder, {}).get("stored", "states"), self.dtype)
            for name, encoder in (("audio", "speech"), ("text", "text"))
        }
        self._files = {int(entry["shard"]): dict(entry) for entry in self.info["shards"]}
        for entry in self._files.values():
            name = str(entry["file"])
            if Path(name).name != name:
                raise ValueError(f"a shard is no file of the store: {name}")

    def _incomplete(self, name: str) -> MultistillError:
        return MultistillError(
            f"{self.folder} is not a complete feature store ({self.folder / name} is missing); "
            "give the folder of one, or, if it is of this job, remove it and run the job again"
        )

    @property
    def ids(self) -> Ids:
        """All utterance ids, sorted."""
        return self._index.ids

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, utterance_id: object) -> bool:
        return isinstance(utterance_id, str) and bool(self.has([utterance_id])[0])

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"])  # type: ignore[misc]

    def has(self, ids: Sequence[str]) -> BoolArray:
        """Whether the store has each utterance [N]."""
        return self.find(ids) >= 0

    def find(self, ids: Sequence[str]) -> IntArray:
        """Position of each utterance in `.ids` [N], -1 where the store does not have it."""
        return self._index.find(ids)

    def rows(self, ids: Sequence[str]) -> IntArray:
        """Position of each utterance in `.ids` [N].

        Raises:
            MultistillError: the store does not have one of them.
        """
        rows = self.find(ids)
        if absent := np.flatnonzero(rows < 0).tolist():
            raise MultistillError(
                f"utterance {ids[absent[0]]} is not in the store {self.folder}; "
                f"see its {QUARANTINE}"
            )
        return rows

    def in_file_order(self, ids: Sequence[str]) -> list[str]:
        """The utterances in the order in which the files hold them.

        Raises:
            MultistillError: the store does not have one of them.
        """
        rows = self.rows(ids)
        shard, batch, row = (self._index.columns[name][rows] for name in POSITION)
        return [ids[place] for place in np.lexsort((row, batch, shard)).tolist()]

    def audio_frames(self, ids: Sequence[str]) -> IntArray:
        """Frames of each utterance, from the index: no states are read."""
        return self.lengths("audio", self.rows(ids))

    def text_tokens(self, ids: Sequence[str]) -> IntArray:
        """Tokens of each utterance; 0 for an empty transcript."""
        return self.lengths("text", self.rows(ids))

    def lengths(self, modality: str, rows: IntArray) -> IntArray:
        """Frames or tokens at positions in `.ids`."""
        name = "audio_frames" if modality == "audio" else "text_tokens"
        return self._index.columns[name][rows].astype(np.int64)

    def audio(self, utterance_id: str) -> AnyArray:
        """Speech states [frames, audio_dim]; read-only views in float16 and float32 stores.

        Of an encoder that is trained from waves, its rows of int16 (`encoders.stored_inputs`).
        """
        return self._read("audio", utterance_id)

    def text(self, utterance_id: str) -> AnyArray:
        """Text states [tokens, text_dim], like `audio`."""
        return self._read("text", utterance_id)

    def _read(self, modality: str, utterance_id: str) -> AnyArray:
        values, scales = self.raw(modality, utterance_id)
        will_need(values)
        return unpack(values, scales, self.types[modality])

    def each(self, modality: str, ids: Iterable[str]) -> Iterator[AnyArray]:
        """`audio` or `text` of one utterance after the other; the disk reads the next meanwhile."""
        asked: deque[tuple[AnyArray, FloatArray | None]] = deque()
        for utterance_id in ids:
            asked.append(self.raw(modality, utterance_id))
            will_need(asked[-1][0])
            if len(asked) > _AHEAD:
                yield unpack(*asked.popleft(), self.types[modality])
        while asked:
            yield unpack(*asked.popleft(), self.types[modality])

    def raw(self, modality: str, utterance_id: str) -> tuple[AnyArray, FloatArray | None]:
        """Stored values [length, dim] and int8 scales [dim].

        The values are a view of the mapped file. Call `pages.will_need` before they are read:
        the kernel reads single pages of it by itself.
        """
        [place] = self.rows([utterance_id])
        shard, batch, row = (int(self._index.columns[name][place]) for name in POSITION)
        dim = self.audio_dim if modality == "audio" else self.text_dim
        try:
            return self._batches(shard)[batch].raw(modality, row, dim)
        except (LookupError, TypeError, ValueError) as error:
            raise damaged(self.folder / INDEX, error) from error

    def _batches(self, shard: int) -> list[_Batch]:
        batches = self._shards.get(shard)
        if batches is None:
            path = self.folder / SHARDS / self._files[shard]["file"]
            try:
                # Of a buffer: Arrow asks for all of a record batch of a file when it is opened.
                file = pa.memory_map(str(path)).read_buffer()
                read_at_random(file)
                reader = pa.ipc.open_file(file)
                batches = [_Batch(reader.get_batch(i)) for i in range(reader.num_record_batches)]
            except (OSError, LookupError, AttributeError, pa.ArrowException) as error:
                raise MultistillError(
                    f"the shard {path} cannot be read ({error}); remove the folder "
                    f"{self.folder} and run the job again"
                ) from error
            self._shards[shard] = batches
        return batches

    def encoders(self) -> dict[str, dict[str, Any]]:
        """Name, revision, dimension and settings of the encoders that made the states."""
        with reading(self.folder / INFO):
            settings = self.info.get("settings", {})
            return {
                kind: {**self.info[kind], "settings": settings.get(kind, {})}
                for kind in ("speech", "text")
                if kind in self.info
            }

    def verify(self) -> None:
        """Compare every shard with its checksum.

        Raises:
            MultistillError: a shard is missing or differs; the message names the first one.
        """
        for entry in self.info["shards"]:
            path = self.folder / SHARDS / entry["file"]
            if not path.exists() or file_digest(path) != entry["blake2b"]:
                raise MultistillError(
                    f"the shard {path} does not match its checksum; remove the folder "
                    f"{self.folder} and run the job again"
                )


def file_digest(path: Path) -> str:
    """BLAKE2b-128 of a file, as in the shard markers."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
