"""The jobs of one name that ran in a workspace: variants, told apart by fingerprint.

    <workspace>/jobs/<name>-<fingerprint>.yaml     the resolved job file of each

A job that is run again with another setting is another variant, with its own artifacts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from multistill.config import JobConfig
from multistill.errors import UsageError
from multistill.workspace import file_name, fingerprint

MIN_KEY = 6
_MAX_DIFFERENCES = 4


@dataclass(frozen=True)
class Variant:
    """One job that ran.

    Attributes:
        key: its fingerprint, 16 hexadecimal digits.
        file: its resolved job file.
        last_run: seconds since 1970.
    """

    key: str
    file: Path
    last_run: float


def variant_key(identity: Mapping[str, Any]) -> str:
    """Fingerprint of a job by what decides its results (`JobConfig.identity`)."""
    return fingerprint("run", 1, identity, {})


def job_file(workspace: Path, name: str, key: str) -> Path:
    """Where the resolved job file of a job with this name and fingerprint is."""
    return workspace / "jobs" / file_name(name, f"-{key}.yaml")


def job_names(workspace: Path) -> list[str]:
    """Names of the jobs that ran in the workspace, in alphabetical order."""
    names = {_read(file).get("name") for file in (workspace / "jobs").glob("*.yaml")}
    return sorted(name for name in names if isinstance(name, str))


def find_variants(workspace: Path, name: str) -> list[Variant]:
    """The jobs called `name` that ran in the workspace, newest first."""
    found = []
    for file in (workspace / "jobs").glob("*.yaml"):
        match = re.search(r"-([0-9a-f]{16})\.yaml$", file.name)
        if match and file == job_file(workspace, name, match[1]):
            found.append(Variant(match[1], file, file.stat().st_mtime))
    return sorted(found, key=lambda variant: variant.last_run, reverse=True)


def choose(workspace: Path, name: str, key: str | None, how: str = "with --variant") -> Variant:
    """The variant of a name whose fingerprint starts with `key`; without it, the only one.

    Args:
        how: one of several is named, for the message.

    Raises:
        UsageError: no such job, or several: the message lists them.
    """
    variants = find_variants(workspace, name)
    if not variants:
        raise UsageError(
            f"no job called `{name}` has run in `{workspace}`; give its job file, or the right "
            "folder with --workspace"
        )
    matching = [variant for variant in variants if variant.key.startswith((key or "").lower())]
    if len(matching) == 1:
        return matching[0]
    listed = "; ".join(describe_variants(matching or variants))
    if not matching:
        raise UsageError(f"no variant of `{name}` has the fingerprint `{key}`; there is {listed}")
    raise UsageError(
        f"{len(matching)} variants of `{name}` ran in `{workspace}`; name one {how}: {listed}"
    )


def describe_variants(variants: Sequence[Variant]) -> list[str]:
    """A line per variant: the start of its fingerprint, when it ran, how it differs."""
    jobs = [settings(_read(variant.file)) for variant in variants]
    different = differing(jobs)
    length = MIN_KEY
    while len({variant.key[:length] for variant in variants}) < len(variants):
        length += 1
    lines = []
    for variant, job in zip(variants, jobs, strict=True):
        values = [f"{key} {job.get(key)}" for key in different[:_MAX_DIFFERENCES]]
        if len(different) > _MAX_DIFFERENCES:
            values.append(f"{len(different) - _MAX_DIFFERENCES} more differ")
        last_run = datetime.fromtimestamp(variant.last_run).strftime("%Y-%m-%d %H:%M")
        lines.append(f"{variant.key[:length]} of {last_run} ({', '.join(values)})")
    return lines


def differing(jobs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys of `settings` that are not the same in all jobs."""
    keys = sorted({key for job in jobs for key in job})
    return [key for key in keys if any(job.get(key) != jobs[0].get(key) for job in jobs)]


def settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a resolved job that decide its results, by dotted key."""
    with suppress(ValueError):  # of another version of this package
        values = JobConfig.model_validate(values).identity()
    return dict(_flat(values))


def _read(file: Path) -> dict[str, Any]:
    from multistill.pipeline.job_yaml import NotValidYamlError, read

    try:
        values = read(file.read_text(encoding="utf-8")).data
    except (NotValidYamlError, ValueError, OSError):  # whatever somebody put there
        values = None
    return values if isinstance(values, dict) else {}


def _flat(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    items: Any
    if isinstance(value, Mapping) and value:
        items = value.items()
    elif isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
        items = enumerate(value)
    else:
        return [(prefix, value)]
    return [
        leaf
        for key, item in items
        for leaf in _flat(item, f"{prefix}.{key}" if prefix else str(key))
    ]
