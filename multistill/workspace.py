"""Artifacts: folders named by fingerprints that appear whole or not at all.

    <workspace>/<kind>/<fingerprint>/          a finished artifact, with done.json
    <workspace>/<kind>/.<fingerprint>.partial/ work in hand; survives a kill for resuming
    <workspace>/locks/                         one file lock per artifact being made
    <workspace>/reports/<job>/latest/          the newest report

The fingerprint of an artifact hashes its kind and format version, its own config and
the fingerprints of its inputs. A finished folder is made by renaming the partial one,
so any folder without the leading dot is complete. Nothing is ever edited in place.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from multistill.errors import MultistillError, UsageError

DONE = "done.json"


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def fingerprint(kind: str, version: int, config: Any, inputs: Mapping[str, str]) -> str:
    """Name of the artifact that this config makes of these inputs: 16 hex digits.

    Examples:
        >>> fingerprint("teacher", 1, {"epochs": 5}, {"prepare": "538844a277ec7363"})
        '056a7f3af9e0caba'
    """
    text = canonical({"kind": kind, "version": version, "config": config, "inputs": dict(inputs)})
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


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


class Workspace:
    """A folder, local or on storage shared by the whole cluster."""

    def __init__(self, root: str | Path) -> None:
        text = str(root)
        if "://" in text:
            raise UsageError(
                f"workspace `{text}`: object stores are not supported yet; "
                "use a folder that every node of the cluster can see"
            )
        self.root = Path(text).expanduser().absolute()

    def open(self) -> Workspace:
        """Make the folder and see that it can be written."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root):
                pass
        except OSError as error:
            raise UsageError(
                f"workspace `{self.root}` cannot be written ({error.strerror}); "
                "choose another with --workspace"
            ) from error
        return self

    def folder(self, kind: str, fingerprint: str) -> Path:
        return self.root / kind / fingerprint

    def partial(self, kind: str, fingerprint: str) -> Path:
        """Where the artifact is while it is being made."""
        return self.root / kind / f".{fingerprint}.partial"

    def find(self, kind: str, fingerprint: str) -> Artifact | None:
        """The finished artifact, or None."""
        path = self.folder(kind, fingerprint)
        try:
            meta = read_json(path / DONE)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError as error:
            raise MultistillError(
                f"{path / DONE} is damaged; remove the folder {path} to make it again"
            ) from error
        return Artifact(kind, fingerprint, path, meta)

    @contextmanager
    def lock(self, name: str, log: Callable[[str], None] | None = None) -> Iterator[None]:
        """Exclusive over all processes of this file system; released when the holder dies."""
        path = self.root / "locks" / f"{name}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(path)
        try:
            held.acquire(timeout=0)
        except Timeout:
            if log:
                log(f"another run is making {name}; waiting for it")
            held.acquire()
        try:
            yield
        finally:
            held.release()

    def make(
        self,
        kind: str,
        fingerprint: str,
        build: Callable[[Path], Mapping[str, Any] | None],
        *,
        config: Any = None,
        inputs: Mapping[str, str] | None = None,
        provenance: Mapping[str, Any] | None = None,
        log: Callable[[str], None] | None = None,
    ) -> Artifact:
        """The artifact, built now unless it exists.

        Args:
            build: fills the folder it is given and returns a small JSON summary. The folder
                may hold work of an earlier, killed attempt: continue it or clear it.
        Raises:
            whatever `build` raises; the partial folder is kept for the next attempt.
        """
        with self.lock(f"{kind}-{fingerprint}".replace("/", "-"), log):
            found = self.find(kind, fingerprint)
            if found is not None:
                return found
            partial = self.partial(kind, fingerprint)
            partial.mkdir(parents=True, exist_ok=True)
            started = time.monotonic()
            try:
                summary = build(partial)
            except OSError as error:
                if error.errno == 28:
                    raise MultistillError(
                        f"the disk that holds {self.root} is full; free some space and run the "
                        "same command again: finished parts are kept"
                    ) from error
                raise
            meta = {
                "kind": kind,
                "fingerprint": fingerprint,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "seconds": round(time.monotonic() - started, 3),
                "config": config,
                "inputs": dict(inputs or {}),
                "provenance": dict(provenance or {}),
                "summary": dict(summary or {}),
            }
            write_json(partial / DONE, meta)
            final = self.folder(kind, fingerprint)
            if final.exists():  # a folder without done.json: never ours, never trusted
                shutil.rmtree(final)
            partial.rename(final)
            return Artifact(kind, fingerprint, final, meta)


def clear(folder: Path) -> Path:
    """Empty a partial folder, for stages that do not resume inside."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    return folder
