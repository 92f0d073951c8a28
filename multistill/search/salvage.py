"""What can be saved of a study's journal that is damaged in the middle.

Optuna refuses such a file. Its lines are events, and a trial is known by how many were created
before it, so nothing after a lost line can be trusted: the events before it are kept.
"""

from __future__ import annotations

import json
import uuid
from pathlib import Path

from multistill.errors import MultistillError
from multistill.search.locks import living_drivers
from multistill.search.storage import JOURNAL
from multistill.wording import counted
from multistill.workspace import atomic_path


def salvage(folder: Path) -> str | None:
    """Cut the journal of a study before its first damaged line. Call it under the study's locks.

    The damaged file is kept beside it. A last line without an end is no damage: its writer died.

    Returns:
        one sentence of what was lost; None: nothing is damaged.

    Raises:
        MultistillError: another driver runs, which would go on with events that are cut off.
    """
    journal = folder / JOURNAL
    if not journal.exists():
        return None
    content = journal.read_bytes()
    lines = content.splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    intact = next((n for n, line in enumerate(lines) if not _is_event(line)), len(lines))
    if intact == len(lines):
        return None
    if living_drivers(folder):
        raise MultistillError(
            f"the study's journal {journal} is damaged in line {intact + 1}, and another driver of "
            "the search runs; stop it first, then the same command keeps what stands before"
        )
    aside = folder / f"{JOURNAL}.damaged-{uuid.uuid4().hex[:8]}"
    aside.write_bytes(content)
    with atomic_path(journal) as temporary:
        temporary.write_bytes(b"".join(lines[:intact]))
    lost = counted(len(lines) - intact, "event")
    return (
        f"the study's journal {journal} is damaged in line {intact + 1}: what stands before is "
        f"kept, {lost} from there on cannot be trusted, and trials that lost their end run "
        f"again; the damaged file is {aside.name}"
    )


def _is_event(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:  # also of bytes that are no text
        return False
