"""Journal on disk: the queue of records that are still to be sent to the tracking server.

Every record is appended here before it is sent. The same journal therefore serves as the
queue, as the buffer during a server outage, and as the recovery log of a killed process,
and memory use does not grow with the length of an outage.

A journal is a folder: `records.jsonl` (first line: the header), `sent` (byte offset up to
which everything is on the server), `run` (id of the run on the server), `doubts.json`
(requests that the server may still carry out), `deferred.json` (uploads that the server had no
room for), `files/` (copies of artifacts), `lock` (held by the process that writes the journal;
released by the kernel when that process dies).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from multistill.workspace import is_held, to_json

Record = dict[str, Any]
DOUBTS = "doubts.json"
DEFERRED = "deferred.json"
_COPY_PARTS = 3  # files/<number>/<name>


class Journal:
    """The journal of one process. `append` is thread-safe.

    Args:
        folder: the journal's folder; created by `create`, found by `abandoned`.
        lock: held for as long as this object is in use.
    """

    def __init__(self, folder: Path, lock: FileLock, header: Record) -> None:
        self.folder = folder
        self.header = header
        self._file_lock = lock
        self._write_lock = threading.Lock()
        self._path = folder / "records.jsonl"
        self._stream: Any = None
        self._num_copies = 0

    @classmethod
    def create(cls, parent: Path, header: Record) -> Journal:
        """Create a journal under `parent`. Raises OSError if it cannot be written."""
        folder = parent / f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}"
        folder.mkdir(parents=True)
        lock = FileLock(folder / "lock")
        lock.acquire(timeout=0)
        journal = cls(folder, lock, header)
        journal._stream = journal._path.open("ab")
        journal.append({"header": header})
        return journal

    @classmethod
    def abandoned(
        cls, parent: Path, wanted: Callable[[Record], bool] | None = None
    ) -> list[Journal]:
        """Return the journals of dead processes, oldest first; the caller holds their locks.

        Args:
            wanted: called with a journal's header; the locks of other journals are not touched.
        """
        journals = []
        for journal in cls.read_all(parent):
            if wanted is not None and not wanted(journal.header):
                continue
            try:
                journal._file_lock.acquire(timeout=0)
            except (Timeout, OSError):
                continue
            journals.append(journal)
        return journals

    @classmethod
    def read_all(cls, parent: Path) -> list[Journal]:
        """Return every journal that can be read, oldest first, without its lock."""
        journals = []
        try:
            folders = sorted(parent.iterdir())
        except OSError:
            return []
        for folder in folders:
            try:
                with (folder / "records.jsonl").open("rb") as stream:
                    first_line = _parse(stream.readline())
            except OSError:  # no journal, or one that only its owner can read
                continue
            header = (first_line or {}).get("header")
            if isinstance(header, dict):
                journals.append(cls(folder, FileLock(folder / "lock"), header))
        return journals

    @property
    def name(self) -> str:
        return self.folder.name

    def append(self, record: Record) -> None:
        """Append one record. Raises OSError, e.g. if the disk is full, or ValueError if closed."""
        line = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        with self._write_lock:
            if self._stream is None:
                raise ValueError("the journal is closed")
            self._stream.write(line)
            self._stream.flush()

    def copy_in(self, source: Path) -> str:
        """Copy a file or folder into the journal, since the original may change or go.

        Returns:
            path of the copy relative to the journal's folder.

        Raises:
            OSError: the source cannot be read or the copy cannot be written.
        """
        with self._write_lock:
            self._num_copies += 1
            name = f"files/{self._num_copies}/{source.name}"
        target = self.folder / name
        target.parent.mkdir(parents=True)
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copyfile(source, target)
        return name

    def copy_of(self, name: str) -> Path:
        """Path of a copy that `copy_in` made, which may be gone.

        Raises:
            ValueError: the name, or a link in the copy, leads elsewhere. Whoever may write to the
                workspace may write records: a file of theirs would be sent, or deleted.
        """
        path = self.folder / name
        parts = Path(name).parts
        if parts[:1] != ("files",) or len(parts) != _COPY_PARTS or ".." in parts:
            raise ValueError(f"{name!r} is no file of the journal")
        entries = [self.folder / "files", path.parent, path]
        for root, folders, files in os.walk(path):
            entries += [Path(root, each) for each in (*folders, *files)]
        if any(entry.is_symlink() for entry in entries):
            raise ValueError(f"{name!r} holds a link, which no file of the journal does")
        return path

    def delete_copy(self, name: str) -> None:
        shutil.rmtree(self.copy_of(name).parent, ignore_errors=True)

    def read(self, offset: int, limit: int) -> tuple[list[Record], int]:
        """Read up to `limit` records from a byte offset; also return the offset after them.

        A last line without a newline (still being written, or cut off by a kill) is not read.
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
    def sent_offset(self) -> int:
        """Byte offset up to which everything is on the server."""
        try:
            return int((self.folder / "sent").read_text())
        except (FileNotFoundError, ValueError):
            return 0

    def mark_sent(self, offset: int) -> None:
        """Store that everything before this byte offset is on the server."""
        temporary = self.folder / "sent.new"
        temporary.write_text(str(offset))
        temporary.replace(self.folder / "sent")

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the top-level run that the journal was recorded to, once it is known."""
        try:
            return (self.folder / "run").read_text() or None
        except OSError:
            return None

    @run_id.setter
    def run_id(self, run_id: str) -> None:
        (self.folder / "run").write_text(run_id)

    @property
    def doubts(self) -> Record:
        """Content of `doubts.json`; empty where every request was answered."""
        try:
            return _parse((self.folder / DOUBTS).read_bytes()) or {}
        except OSError:
            return {}

    def write_doubts(self, doubts: Record) -> None:
        """Replace `doubts.json`; an empty value removes it. Raises OSError."""
        self._replace(DOUBTS, doubts)

    @property
    def deferred(self) -> list[Record]:
        """Records of uploads that failed on a server that took everything else."""
        try:
            stored = _parse((self.folder / DEFERRED).read_bytes()) or {}
        except OSError:
            return []
        return list(stored.get("records", []))

    def defer(self, record: Record) -> None:
        """Add the record of an upload to the deferred ones, once. Raises OSError."""
        waiting = self.deferred
        if all(record["file"] != other["file"] for other in waiting):
            self.write_deferred([*waiting, record])

    def write_deferred(self, records: list[Record]) -> None:
        """Replace `deferred.json`; an empty list removes it. Raises OSError."""
        self._replace(DEFERRED, {"records": records} if records else {})

    def _replace(self, name: str, content: Record) -> None:
        path = self.folder / name
        if not content:
            path.unlink(missing_ok=True)
            return
        temporary = path.with_suffix(".new")
        temporary.write_text(to_json(content))
        temporary.replace(path)

    def write_nothing_to_send(self) -> None:
        """Discard all records but the header; the doubts stay."""
        with self._write_lock:
            self._close_stream()
            self._path.write_text(to_json({"header": self.header}) + "\n")
            for name in ("sent", DEFERRED):
                (self.folder / name).unlink(missing_ok=True)
        shutil.rmtree(self.folder / "files", ignore_errors=True)

    @property
    def size(self) -> int:
        """Size of all records so far in bytes."""
        return self._path.stat().st_size

    @property
    def unsent(self) -> int:
        """How many records are still to be sent, deferred uploads included."""
        return self.count_from(self.sent_offset) + len(self.deferred)

    def count_from(self, offset: int) -> int:
        """Count the records from a byte offset to the end; the header is none."""
        with self._path.open("rb") as stream:
            stream.seek(offset)
            lines = sum(1 for line in stream if line.endswith(b"\n"))
        return lines - 1 if offset == 0 and lines else lines

    def release(self) -> None:
        """Close the journal and release its lock, so that a later run can replay it."""
        try:
            with self._write_lock:
                self._close_stream()
        finally:
            self._file_lock.release()

    def _close_stream(self) -> None:
        """Close the file; on a full disk it still buffers a record, for which `append` raised."""
        if self._stream is not None:
            with contextlib.suppress(OSError):
                self._stream.close()
            self._stream = None

    def remove(self) -> None:
        """Delete the journal, once everything is on the server."""
        self.release()
        shutil.rmtree(self.folder, ignore_errors=True)


def held(folder: Path) -> bool:
    """Whether a live process writes the journal in this folder."""
    return is_held(folder / "lock")


def _parse(line: bytes) -> Record | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def size_of(path: Path) -> int:
    """Return the size in bytes of a file, or of all files in a folder. Raises OSError."""
    if not path.is_dir():
        return path.stat().st_size
    return sum(
        (Path(root) / name).stat().st_size for root, _, names in os.walk(path) for name in names
    )
