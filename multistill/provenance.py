"""What made a result: versions, commit, machine. Kept with every artifact and run."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

import multistill

LIBRARIES = ("torch", "torchaudio", "ray", "transformers", "optuna", "mlflow", "pyarrow", "numpy")


@cache
def versions() -> dict[str, str]:
    """Versions of Python, multistill and the libraries that can change a figure."""
    found = {"python": platform.python_version(), "multistill": multistill.__version__}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


@cache
def git_commit(folder: Path | None = None) -> str | None:
    """Commit of the code that runs, with `+dirty` where files differ from it; None outside git."""
    where = folder or Path(__file__).parent
    try:
        commit = _git(where, "rev-parse", "HEAD")
        dirty = _git(where, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}+dirty" if dirty else commit


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    )
    return done.stdout.strip()
