"""Whether an attempt at a job got anywhere, for who decides whether to try again."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from multistill.config import JobConfig
from multistill.pipeline.recipes import steps_of
from multistill.pipeline.stage_status import step_statuses
from multistill.search.storage import JOURNAL
from multistill.workspace import Workspace

_SMALL = 2**16
"""Bytes of a file that is compared by its content; larger ones have names that count, such as
epochs and shards."""
_OF_ANY_ATTEMPT = {"tune", "drivers"}
"""Folders that every attempt writes, the futile too; hidden ones, locks and logs are others."""
_ENDED_TRIAL = re.compile(r'"state": ?[12]\b')
"""In the journal of a study: a trial was finished or pruned."""


def reached(job: JobConfig) -> frozenset[str]:
    """What exists of the job: equal before and after an attempt that got nowhere.

    It names the finished stages, and of those in progress the shards, checkpoints and trials.
    Reads the workspace, changes nothing.
    """
    workspace = Workspace(job.workspace)
    found: set[str] = set()
    for step, status, _ in step_statuses(steps_of(job, workspace), workspace):
        if status.state == "done":
            found.add(f"{status.stage} {status.fingerprint}")
        elif status.fingerprint is not None:
            partial = workspace.partial(step.kind, status.fingerprint)
            found.update(f"{status.stage} {part}" for part in _parts(partial))
    return frozenset(found)


def _parts(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        names = path.relative_to(folder).parts
        if any(name[0] == "." or name in _OF_ANY_ATTEMPT for name in names):
            continue
        try:
            if path.name == JOURNAL:
                text = path.read_text(encoding="utf-8", errors="replace")
                yield f"{len(_ENDED_TRIAL.findall(text))} trials"
            elif path.is_file() and path.suffix not in {".log", ".lock"}:
                size = path.stat().st_size
                small = path.read_bytes() if size < _SMALL else b""
                yield f"{'/'.join(names)} {size} {hashlib.sha256(small).hexdigest()[:16]}"
        except FileNotFoundError:  # a worker of another driver has just replaced it
            continue
