"""The background thread between a run and the tracking server.

Callers append to the journal and go on; the thread reads the journal and delivers. When
the server is away, the thread waits and the journal grows; nothing else changes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from multistill.tracking.delivery import Delivery
from multistill.tracking.journal import Journal, Record
from multistill.tracking.redaction import redact
from multistill.tracking.server import RecordRefusedError, Server, ServerAwayError

CHUNK = 1000
GATHER_SECONDS = 0.3
"""Wait after a delivery, so that records of one moment travel in one call."""
RETRY_SECONDS = (2.0, 5.0, 10.0, 30.0)

PATIENCE = 3
"""Failures in a row before records are sent one by one, to find the one at fault."""


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Recorder:
    """Delivers one live journal, after the journals that dead processes left.

    Args:
        journal: already holds the opening record of the top run.
        spool: folder in which journals of earlier processes may lie.
        target: name of the server in journal headers; only journals for it are replayed.
        tell: called with sentences for a person, from the thread.
    """

    def __init__(
        self,
        server: Server,
        journal: Journal,
        spool: Path,
        target: str,
        tell: Callable[[str], None],
    ) -> None:
        self.journal = journal
        self._delivery = Delivery(server)
        self._server = server
        self._spool = spool
        self._target = target
        self._tell = tell
        self._state = threading.Condition()
        self._sent = 0
        self._attempts = 0
        self._failures = 0
        self._opened = False
        self._stopping = False
        self._hurry = threading.Event()
        self._wake = threading.Event()
        self._dropped = 0
        self.problem: ServerAwayError | RecordRefusedError | None = None
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)

    @property
    def uri(self) -> str:
        return self._server.uri

    def start(self) -> None:
        self._thread.start()

    def wait_open(self, seconds: float) -> bool:
        """True once the top run stands on the server; False when the first try failed."""
        with self._state:
            self._state.wait_for(lambda: self._opened or self._attempts > 0, seconds)
            return self._opened

    def run_id(self, node: str) -> str | None:
        return self._delivery.run_id(self._server.experiment, node)

    def wait_run_id(self, node: str, seconds: float) -> str | None:
        """The run's id; waits for it while the server answers, at most so long."""
        with self._state:
            self._wake.set()
            self._hurry.set()
            self._state.wait_for(lambda: self.run_id(node) or self._failures > 0, seconds)
            self._hurry.clear()
        return self.run_id(node)

    def append(self, record: Record) -> None:
        """Never raises. A record that cannot be written (full disk) is counted and told once."""
        try:
            self.journal.append(record)
        except (OSError, ValueError) as error:
            self._dropped += 1
            if self._dropped == 1:
                self._tell(
                    f"the record of this run cannot be kept in {self.journal.folder} ({error}); "
                    "free some disk space: the run itself goes on"
                )
        self._wake.set()

    def flush(self, seconds: float) -> bool:
        """Wait until everything so far is on the server, at most so long.

        Gives up after one failed try, since a server that is away stays away for longer.
        """
        end = self.journal.size
        with self._state:
            attempts = self._attempts
            self._hurry.set()
            self._wake.set()
            self._state.wait_for(
                lambda: (
                    self._sent >= end or self._attempts > attempts or not self._thread.is_alive()
                ),
                seconds,
            )
            self._hurry.clear()
            return self._sent >= end

    def stop(self, seconds: float) -> int:
        """Flush, end the thread. Returns how many records wait for a later replay."""
        self.flush(seconds)
        with self._state:
            self._stopping = True
        self._wake.set()
        self._hurry.set()
        self._thread.join(timeout=2.0)
        waiting = self.journal.waiting(self._sent)
        if waiting or self._thread.is_alive():
            self.journal.release()
        else:
            self.journal.remove()
        return waiting

    def abandon(self) -> None:
        """Nothing was recorded yet and nothing shall be: end the thread, drop the journal."""
        with self._state:
            self._stopping = True
        self._hurry.set()
        self.journal.remove()

    def _work(self) -> None:
        steps = [self._open, self._replay_abandoned, self._mark_orphans]
        while steps:
            if self._try(steps[0]):
                steps.pop(0)
            elif self._stopping:
                return
        while True:
            delivered = self._try(self._deliver_some)
            if self._stopping:
                return
            if delivered and self._sent >= self.journal.size:
                self._wake.wait(5.0)
                self._wake.clear()
            if not self._hurry.is_set():
                self._hurry.wait(GATHER_SECONDS)

    def _try(self, step: Callable[[], None]) -> bool:
        """Run a step; on failure remember it, say so once and wait a while."""
        try:
            step()
        except (ServerAwayError, RecordRefusedError) as error:
            problem: ServerAwayError | RecordRefusedError = error
        except Exception as error:
            # Whatever happens in here must not end a run that trains for days.
            problem = ServerAwayError(redact(f"{type(error).__name__}: {error}"))
        else:
            if self._failures and self._opened:
                self._tell("the tracking server answers again; the record is being completed")
                self._failures = 0
            self._tell_news()
            return True
        with self._state:
            self.problem = problem
            self._attempts += 1
            first = self._failures == 0
            self._failures += 1
            self._state.notify_all()
        if first and self._opened:
            self._tell(
                f"the tracking server does not answer ({problem}); the run goes on and its record "
                f"is kept in {self.journal.folder} until the server is back"
            )
        if not self._stopping:
            self._hurry.wait(RETRY_SECONDS[min(self._failures, len(RETRY_SECONDS)) - 1])
        return False

    def _tell_news(self) -> None:
        for sentence in self._delivery.news:
            self._tell(sentence)
        self._delivery.news.clear()
        if self._delivery.refused:
            count = len(self._delivery.refused)
            self._tell(f"the tracking server refused {count} entries: {self._delivery.refused[0]}")
            self._delivery.refused.clear()

    def _open(self) -> None:
        experiment = self._server.experiment
        self._server.connect()
        records, _ = self.journal.read(0, 2)
        top = next(record for record in records if record.get("op") == "open")
        run = self._delivery.open(experiment, top, live=True)
        if run is None:
            raise RecordRefusedError(self._delivery.refused.pop())
        self._delivery.protected.add(run.id)
        self._top = run
        with self._state:
            self._opened = True
            self._state.notify_all()

    def _replay_abandoned(self) -> None:
        for journal in Journal.abandoned(self._spool):
            try:
                if journal.header.get("target") != self._target:
                    continue
                count = replay(self._delivery, journal, patient=self._failures >= PATIENCE)
            except BaseException:
                journal.release()
                raise
            if count:
                self._tell(f"sent {count} records that an earlier run had to keep")
        # Journals for another server stay where they are, for a run with that address.

    def _mark_orphans(self) -> None:
        if self._top.continued:
            self._delivery.mark_orphans(self._server.experiment, self._top.id, now_ms())

    def _deliver_some(self) -> None:
        records, offset = self.journal.read(self._sent, CHUNK)
        if records:
            patient = self._failures >= PATIENCE
            apply = self._delivery.apply_each if patient else self._delivery.apply
            apply(self._server.experiment, records, self.journal, live=True)
            self.journal.mark_sent(offset)
        with self._state:
            self._sent = offset
            self._state.notify_all()


def replay(delivery: Delivery, journal: Journal, *, patient: bool = False) -> int:
    """Deliver what an earlier process left, end its open runs, remove the journal.

    Args:
        patient: one record at a time, giving up those that a healthy server cannot take.

    Returns the number of records that were still missing. Raises ServerAwayError.
    """
    apply = delivery.apply_each if patient else delivery.apply
    experiment = journal.header["experiment"]
    sent = journal.sent
    offset = 0
    missing = journal.waiting(sent)
    while True:
        records, after = journal.read(offset, CHUNK)
        if not records:
            break
        # Records before `sent` are there; only the state of their runs must be known again.
        if after <= sent:
            records = [record for record in records if record.get("op") in {"open", "close"}]
        apply(experiment, records, journal, live=False)
        offset = after
        if offset > sent:
            journal.mark_sent(offset)
    delivery.mark_unclosed(experiment, journal)
    journal.remove()
    return missing
