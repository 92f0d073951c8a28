"""The record on disk: what is still to be sent to the tracking server.

Every record is appended here before it is sent, so the journal is the queue, the spool
of an outage and what is left of a killed process, all in one. Memory does not grow with
the length of an outage.

A journal is a folder: `records.jsonl` (first line: the header), `sent` (byte offset up to
which the server has everything), `files/` (copies of artifacts), `lock` (held by the
process that writes it; free as soon as that process is dead).
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

Record = dict[str, Any]


class Journal:
    """One process' journal. `append` may be called from any thread.

    Args:
        folder: holds the journal; made by `create`, found by `abandoned`.
        lock: held for as long as this object is in use.
    """

    def __init__(self, folder: Path, lock: FileLock, header: Record) -> None:
        self.folder = folder
        self.header = header
        self._file_lock = lock
        self._guard = threading.Lock()
        self._path = folder / "records.jsonl"
        self._stream: Any = None
        self._copies = 0

    @classmethod
    def create(cls, parent: Path, header: Record) -> Journal:
        """A new journal under `parent`. Raises OSError when it cannot be written."""
        folder = parent / f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}"
        folder.mkdir(parents=True)
        lock = FileLock(folder / "lock")
        lock.acquire(timeout=0)
        journal = cls(folder, lock, header)
        journal._stream = journal._path.open("ab")
        journal.append({"header": header})
        return journal

    @classmethod
    def abandoned(cls, parent: Path) -> list[Journal]:
        """Journals whose process is dead, oldest first; each is locked for the caller."""
        found = []
        for folder in sorted(parent.iterdir()) if parent.is_dir() else []:
            path = folder / "records.jsonl"
            if not path.is_file():
                continue
            lock = FileLock(folder / "lock")
            try:
                lock.acquire(timeout=0)
            except (Timeout, OSError):
                continue
            with path.open("rb") as stream:
                first = _parse(stream.readline())
            if first is None or "header" not in first:
                lock.release()
                continue
            found.append(cls(folder, lock, first["header"]))
        return found

    def append(self, record: Record) -> None:
        """Write one record. Raises OSError (a full disk)."""
        line = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        with self._guard:
            self._stream.write(line)
            self._stream.flush()

    def keep(self, source: Path) -> str:
        """Copy a file or folder into the journal, since the original may move on.

        Returns the copy's path relative to the journal. Raises OSError.
        """
        with self._guard:
            self._copies += 1
            name = f"files/{self._copies}/{source.name}"
        target = self.folder / name
        target.parent.mkdir(parents=True)
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copyfile(source, target)
        return name

    def drop_copy(self, name: str) -> None:
        shutil.rmtree((self.folder / name).parent, ignore_errors=True)

    def read(self, offset: int, limit: int) -> tuple[list[Record], int]:
        """Up to `limit` records from a byte offset, and the offset after them.

        A last line without its end (still being written, or cut by a kill) is not read.
        """
        records: list[Record] = []
        with self._path.open("rb") as stream:
            stream.seek(offset)
            while len(records) < limit:
                line = stream.readline()
                if not line.endswith(b"\n"):
                    break
                offset += len(line)
                record = _parse(line)
                if record is not None:
                    records.append(record)
        return records, offset

    def all_records(self) -> Iterator[Record]:
        offset = 0
        while True:
            records, offset = self.read(offset, 1000)
            if not records:
                return
            yield from records

    @property
    def sent(self) -> int:
        try:
            return int((self.folder / "sent").read_text())
        except (FileNotFoundError, ValueError):
            return 0

    def mark_sent(self, offset: int) -> None:
        """Everything before this byte is on the server."""
        temporary = self.folder / "sent.new"
        temporary.write_text(str(offset))
        temporary.replace(self.folder / "sent")

    @property
    def size(self) -> int:
        """Bytes of all records so far."""
        return self._path.stat().st_size

    def waiting(self, offset: int) -> int:
        """Records from this byte on."""
        with self._path.open("rb") as stream:
            stream.seek(offset)
            return sum(1 for line in stream if line.endswith(b"\n"))

    def release(self) -> None:
        """Leave the journal for a later replay."""
        with self._guard:
            if self._stream is not None:
                self._stream.close()
        self._file_lock.release()

    def remove(self) -> None:
        """Everything is on the server: the journal is no longer needed."""
        self.release()
        shutil.rmtree(self.folder, ignore_errors=True)


def _parse(line: bytes) -> Record | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def size_of(path: Path) -> int:
    """Bytes of a file or of all files of a folder. Raises OSError."""
    if not path.is_dir():
        return path.stat().st_size
    return sum(
        (Path(root) / name).stat().st_size for root, _, names in os.walk(path) for name in names
    )
