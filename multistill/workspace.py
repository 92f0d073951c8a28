"""Workspace and artifacts: folders named by fingerprints that appear atomically.

    <workspace>/<kind>/<fingerprint>/          a finished artifact, with done.json
    <workspace>/<kind>/.<fingerprint>.partial/ an artifact in progress; kept after a kill to resume
    <workspace>/locks/                         one file lock per artifact being built
    <workspace>/reports/<job>/latest/          the newest report

The fingerprint of an artifact hashes its kind and format version, its own config and
the fingerprints of its inputs. A finished folder is created by renaming the partial one,
so any folder without the leading dot is complete. Artifacts are never modified in place.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from multistill.damaged import reading
from multistill.errors import UsageError
from multistill.full_disk import writing

DONE = "done.json"
DELETED = ".deleted"
"""Ends the names of folders that are being deleted."""
MAX_NAME_BYTES = 200
"""Of a file name. File systems allow 255; temporary siblings and locks need a part of them."""


def canonical(value: Any) -> str:
    """Serialise to JSON with sorted keys and no spaces, so that equal values give equal text."""
    return to_json(value, sort_keys=True, separators=(",", ":"))


def to_json(value: Any, **options: Any) -> str:
    """Serialise to JSON as the standard has it: NaN and infinite numbers become null.

    Args:
        options: of `json.dumps`.
    """
    options = {"ensure_ascii": False, **options}
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False, **options)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value


def fingerprint(kind: str, version: int, config: Any, inputs: Mapping[str, str]) -> str:
    """Return the name of the artifact of this config and these inputs: 16 hex digits.

    Examples:
        >>> fingerprint("teacher", 1, {"epochs": 5}, {"prepare": "538844a277ec7363"})
        '056a7f3af9e0caba'
    """
    text = canonical({"kind": kind, "version": version, "config": config, "inputs": dict(inputs)})
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_name(name: str, suffix: str = "") -> str:
    """Return `name` + `suffix` as a file name that every file system takes.

    A name of too many bytes (a Korean letter has three) is cut, and gets a hash of the whole, so
    that different names stay different.

    Examples:
        >>> file_name("감정", ".yaml")
        '감정.yaml'
        >>> len(file_name("감" * 100, ".yaml").encode()) <= MAX_NAME_BYTES
        True
    """
    most = MAX_NAME_BYTES - len(suffix.encode())
    encoded = name.encode()
    if len(encoded) <= most:
        return name + suffix
    digest = hashlib.sha256(encoded).hexdigest()[:12]
    return f"{encoded[: most - 13].decode(errors='ignore')}-{digest}{suffix}"


def fold_folder(folder: Path, number: int) -> Path:
    """Where an artifact keeps what belongs to one fold of a cross-validation, from 0."""
    return folder / "folds" / f"{number + 1:03d}"


@contextmanager
def atomic_path(path: Path, *, concurrent: bool = False) -> Iterator[Path]:
    """A temporary sibling to write a file or a folder to, renamed to `path` on success.

    On an error the sibling is removed and `path` stays as it was.

    Args:
        concurrent: several processes may write `path` at the same time, so each gets its own
            sibling. Without it there is one fixed name, and what a killed process left there
            is removed first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = uuid.uuid4().hex if concurrent else "partial"
    temporary = path.with_name(f".{path.name}.{suffix}")
    try:
        _remove(temporary)
        yield temporary
        temporary.replace(path)
    except BaseException:
        _remove(temporary)
        raise


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    data = content.encode() if isinstance(content, str) else content
    with atomic_path(path, concurrent=True) as temporary, temporary.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
        temporary.chmod(0o644)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically, as `to_json` does."""
    write_atomic(path, to_json(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply") from error


@dataclass(frozen=True)
class Artifact:
    """A finished artifact. `meta` is its done.json."""

    kind: str
    fingerprint: str
    path: Path
    meta: dict[str, Any] = field(repr=False)

    @property
    def seconds(self) -> float:
        return float(self.meta.get("seconds", 0.0))

    @property
    def summary(self) -> dict[str, Any]:
        return dict(self.meta.get("summary", {}))


def is_held(lock: Path) -> bool:
    """Whether a live process holds a file lock.

    Opens the lock for reading only: it may belong to another user.
    """
    try:
        with lock.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


class Workspace:
    """A folder of artifacts, local or on storage shared by the whole cluster.

    Attributes:
        digests: file that remembers the digests of recordings (`audio.digests.Digests`).
    """

    def __init__(self, root: str | Path) -> None:
        text = str(root)
        if "://" in text:
            raise UsageError(
                f"workspace `{text}`: a workspace is a folder, since it needs locks and renames "
                "that an object store lacks; use a folder that every node of the cluster can "
                "access (NFS, EFS, Lustre, or the bucket through JuiceFS), and copy it to the "
                "bucket afterwards, e.g. with `aws s3 sync`"
            )
        self.root = Path(text).expanduser().absolute()
        self.digests = self.root / "digests.npy"

    def open(self) -> Workspace:
        """Create the folder and check that it is writable."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.root, prefix=".locks-") as file:
                reason = _lock_problem(Path(file.name))
        except OSError as error:
            raise UsageError(
                f"workspace `{self.root}` cannot be written ({error.strerror}); "
                "choose another with --workspace"
            ) from error
        if reason:
            raise UsageError(
                f"workspace `{self.root}` is on a file system without file locks ({reason}), so "
                "two runs could write the same artifact; choose another with --workspace, or "
                "mount it with locks (NFS 4, or Lustre with `-o flock`)"
            )
        return self

    def folder(self, kind: str, fingerprint: str) -> Path:
        return self.root / kind / fingerprint

    def partial(self, kind: str, fingerprint: str) -> Path:
        """Return the folder in which the artifact is built."""
        return self.root / kind / f".{fingerprint}.partial"

    def find(self, kind: str, fingerprint: str) -> Artifact | None:
        """Return the finished artifact, or None."""
        path = self.folder(kind, fingerprint)
        try:
            with reading(path / DONE):
                artifact = Artifact(kind, fingerprint, path, dict(read_json(path / DONE)))
                if not math.isfinite(artifact.seconds):
                    raise ValueError("no seconds")
                if not isinstance(artifact.meta.get("summary", {}), dict):
                    raise TypeError("no summary")
        except (FileNotFoundError, NotADirectoryError):
            return None
        return artifact

    @contextmanager
    def lock(self, name: str, log: Callable[[str], None] | None = None) -> Iterator[None]:
        """Hold an inter-process lock; the system releases it if its holder dies."""
        path = self._lock_file(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        file_lock = FileLock(path)
        try:
            file_lock.acquire(timeout=0)
        except Timeout:
            if log:
                log(f"another run is building {name}; waiting for it")
            file_lock.acquire()
        try:
            yield
        finally:
            file_lock.release()

    def is_building(self, kind: str, fingerprint: str) -> bool:
        """Whether a process is building the artifact: it holds the lock."""
        return is_held(self._lock_file(_lock_name(kind, fingerprint)))

    def discard(self, kind: str, fingerprint: str, path: Path) -> Path | None:
        """Rename a folder of an artifact, finished or partial, out of the way to delete it.

        Returns:
            its name now; None if a process builds the artifact, or somebody else removed it.

        Raises:
            OSError: this account may not.
        """
        lock_path = self._lock_file(_lock_name(kind, fingerprint))
        lock_path.parent.mkdir(parents=True, exist_ok=True)
        file_lock = FileLock(lock_path)
        try:
            file_lock.acquire(timeout=0)
        except Timeout:
            return None
        try:
            return _set_aside(path)
        except FileNotFoundError:
            return None
        finally:
            file_lock.release()

    def _lock_file(self, name: str) -> Path:
        return self.root / "locks" / f"{name}.lock"

    def make(
        self,
        kind: str,
        fingerprint: str,
        build: Callable[[Path], Mapping[str, Any] | None],
        *,
        config: Any = None,
        inputs: Mapping[str, str] | None = None,
        provenance: Mapping[str, Any] | None = None,
        is_intact: Callable[[Artifact], bool] = lambda artifact: True,
        log: Callable[[str], None] | None = None,
    ) -> Artifact:
        """Return the artifact; build it if it does not exist.

        Args:
            build: writes the artifact into the given folder and returns a small JSON summary.
                The folder can contain files of an attempt that was killed: resume or clear it.
            is_intact: whether what a finished artifact refers to is as it was; one that is not is
                deleted and built again. Asked under the artifact's lock, so that nobody deletes
                what another process has just built.

        Raises:
            whatever `build` raises; the partial folder is kept for the next attempt.
        """
        name = _lock_name(kind, fingerprint)
        with self.lock(name, log):
            artifact = self.find(kind, fingerprint)
            if artifact is not None and is_intact(artifact):
                return artifact
            if artifact is not None:
                if log:
                    log(f"{name} refers to files that are gone or changed; it is made again")
                shutil.rmtree(_set_aside(artifact.path))
            partial = self.partial(kind, fingerprint)
            partial.mkdir(parents=True, exist_ok=True)
            start = time.monotonic()
            with writing(self.root, "finished parts"):
                summary = build(partial)
                meta = {
                    "kind": kind,
                    "fingerprint": fingerprint,
                    "created": datetime.now(UTC).isoformat(timespec="seconds"),
                    "seconds": round(time.monotonic() - start, 3),
                    "config": config,
                    "inputs": dict(inputs or {}),
                    "provenance": dict(provenance or {}),
                    "summary": dict(summary or {}),
                }
                write_json(partial / DONE, meta)
            final = self.folder(kind, fingerprint)
            if final.exists():  # without done.json it is not a complete artifact
                shutil.rmtree(final)
            partial.rename(final)
            return Artifact(kind, fingerprint, final, meta)


def _lock_problem(path: Path) -> str | None:
    """Why files like this one cannot be locked; None: they can be."""
    with path.open("wb") as first, path.open("wb") as second:
        try:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return str(error.strerror)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return None
    return "a lock that is held is given a second time"


def _set_aside(path: Path) -> Path:
    """Rename a folder that is to be deleted, so that a part of it is never taken for the whole."""
    target = path.with_name(f".{path.name.strip('.')}.{uuid.uuid4().hex}{DELETED}")
    path.rename(target)
    return target


def _lock_name(kind: str, fingerprint: str) -> str:
    return f"{kind}-{fingerprint}".replace("/", "-")


def clear(folder: Path) -> Path:
    """Delete the contents of a partial folder, for stages that cannot resume."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    return folder
