"""The folder in which a local Ray keeps its sockets, logs and spilled objects."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

GIB = 2**30
MIN_FREE = 2 * GIB
_FULL = 200 * 2**20
"""With less than this a local Ray does not even start."""
_SOCKET = "ray/session_2026-01-01_00-00-00_000000_{pid}/sockets/plasma_store"
"""The longest path below the folder that Ray binds as a socket."""
_MAX_SOCKET_BYTES = 103 if sys.platform == "darwin" else 107


def scratch_folder() -> Path:
    """The folder, as Ray chooses it: RAY_TMPDIR, else TMPDIR, else /tmp."""
    chosen = os.environ.get("RAY_TMPDIR")
    if chosen is None and sys.platform.startswith("linux"):
        chosen = os.environ.get("TMPDIR")
    if chosen is not None:
        return Path(chosen)
    is_posix = sys.platform.startswith(("linux", "darwin"))
    return Path("/tmp" if is_posix else tempfile.gettempdir())  # noqa: S108 - Ray's own default


def max_scratch_bytes() -> int:
    """The longest path of the folder, in bytes, with which Ray's sockets can be bound."""
    return _MAX_SOCKET_BYTES - len("/" + _SOCKET.format(pid=os.getpid()))


def scratch_problem(folder: Path | None = None) -> tuple[str, str] | None:
    """What keeps a local Ray from starting in its folder, and what to do; None if nothing does.

    Args:
        folder: default: the one that Ray chooses.
    """
    folder = folder or scratch_folder()
    name = f"Ray's scratch folder {folder}"
    choose = "set RAY_TMPDIR to a folder"
    length, most = len(os.fsencode(folder.absolute())), max_scratch_bytes()
    if length > most:
        return (
            f"{name} has a path of {length} bytes, too long for Ray's sockets",
            f"{choose} with a path of at most {most} bytes, e.g. RAY_TMPDIR=/tmp",
        )
    existing = next((p for p in [folder, *folder.absolute().parents] if p.exists()), Path("/"))
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return f"{name} cannot be written", f"{choose} that can, e.g. RAY_TMPDIR=/tmp"
    free = shutil.disk_usage(existing).free
    if free < _FULL:
        return (
            f"{name} is full ({free / 2**20:.0f} MiB are free)",
            f"free some space there, or {choose} on another disk",
        )
    return None
