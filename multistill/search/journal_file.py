"""Optuna's journal with one wait for the disk a trial, in place of one a line.

Optuna waits for the disk after every line. A trial is handed out with a line for its number, its
driver and each parameter, so on a busy disk that alone takes longer than all else of a hand-out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from multistill.search.locks import StudyLock

REPEATABLE = frozenset({4, 5, 7, 8, 9})
"""Optuna's `JournalOperation`s of a running trial: its creation, parameters, values of epochs and
attributes. A crash of the machine that loses the last of them ends the trial's driver too."""


class JournalFile(JournalFileBackend):
    """A journal that is on the disk when a trial has ended or the study has changed.

    Lines are appended in order, so the wait for the last one is one for all before it. A killed
    process loses nothing: what it has written is the operating system's.

    Args:
        lock: held while lines are appended.

    Attributes:
        may_wait: an entry has been read that adds a trial which waits to be handed out.
    """

    def __init__(self, path: Path, lock: StudyLock) -> None:
        super().__init__(str(path), lock_obj=lock)
        self._journal, self._appending = path, lock
        self._read = (0, 0)
        self.may_wait = False

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Yield the entries from that one on.

        Optuna's own keeps the position of every line, which only ever grows; asked for is what
        follows the last one that was read. A last line without an end is still being written.
        """
        number, position = self._read if self._read[0] <= log_number_from else (0, 0)
        with self._journal.open("rb") as stream:
            stream.seek(position)
            for line in stream:
                if not line.endswith(b"\n"):
                    return
                number, position = number + 1, position + len(line)
                self._read = number, position
                if number > log_number_from:
                    entry = json.loads(line)
                    self.may_wait |= entry.get("state") == TrialState.WAITING
                    yield entry

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append a line per entry: all of them, or none.

        Raises:
            OSError: the disk is full, or another reason. Lines that were written and may not be on
                the disk stay: other drivers may have read them.
        """
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        with self._appending, self._journal.open("a+b", buffering=0) as stream:
            end, written = _cut_torn_line(stream), 0
            try:
                while written < len(lines):  # a disk that gets full takes a part
                    written += stream.write(lines[written:])
            except OSError:
                stream.truncate(end)  # or the next line would be appended to a part of one
                raise
            if any(log["op_code"] not in REPEATABLE for log in logs):
                os.fsync(stream.fileno())


def _cut_torn_line(stream: BinaryIO) -> int:
    """Cut off a last line without a line end, to which the next one would be appended.

    Its writer died, so it was never acknowledged.

    Returns:
        the position after the last line.
    """
    size = position = stream.seek(0, os.SEEK_END)
    block = 1
    while position:
        start = max(0, position - block)
        stream.seek(start)
        end = stream.read(position - start).rfind(b"\n")
        position = start
        if end >= 0:
            position += end + 1
            break
        block = 65536
    if position < size:
        stream.truncate(position)
    return position
