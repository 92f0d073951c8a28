"""Provenance of a result: versions and git commit, stored with every artifact and run."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

LIBRARIES = ("torch", "torchaudio", "ray", "transformers", "optuna", "mlflow", "pyarrow", "numpy")
VERSION_VARIABLE = "MULTISTILL_VERSION"
"""Environment variable with the version of the package that is uploaded to a cluster: the
version installed on its nodes, if any, can be another one."""
UNKNOWN_VERSION = "0+unknown"


@cache
def version() -> str:
    """Return the version of multistill; `0+unknown` for a source tree that is not installed.

    The version is stated only in `pyproject.toml`.
    """
    try:
        return os.environ.get(VERSION_VARIABLE) or metadata.version("multistill")
    except metadata.PackageNotFoundError:
        return UNKNOWN_VERSION


@cache
def versions() -> dict[str, str]:
    """Return the versions of Python, multistill and the libraries that can change a result."""
    installed = {"python": platform.python_version(), "multistill": version()}
    for name in LIBRARIES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            installed[name] = "not installed"
    return installed


@cache
def git_commit() -> str | None:
    """Return the commit of the running code, `+dirty` if files differ from it; None without git."""
    package = Path(__file__).parent
    try:
        commit = _git(package, "rev-parse", "HEAD")
        dirty = _git(package, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}+dirty" if dirty else commit


def _git(folder: Path, *arguments: str) -> str:
    process = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    )
    return process.stdout.strip()
