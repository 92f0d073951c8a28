"""Background thread that sends a run's journal to the tracking server.

Callers append to the journal and return immediately; the thread reads the journal and
delivers its records. While the server is unavailable, the thread waits and the journal grows.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from multistill.tracking.addresses import run_page
from multistill.tracking.delivery import Delivery
from multistill.tracking.journal import Journal, Record
from multistill.tracking.owner import Owner
from multistill.tracking.redaction import redact
from multistill.tracking.replay import Replay
from multistill.tracking.runs import HEARTBEAT_SECONDS, Runs
from multistill.tracking.server import (
    ForbiddenError,
    RecordRejectedError,
    Server,
    ServerUnavailableError,
)

CHUNK = 1000
BATCH_SECONDS = 0.3
"""Pause after a delivery, so that records written at about the same time share one call."""
RETRY_SECONDS = (2.0, 5.0, 10.0, 30.0)

DEFERRED_SECONDS = 60.0
"""Pause between two attempts at uploads that the server had no room for."""

MAX_BATCH_FAILURES = 3
"""Failures in a row before records are sent one by one, to isolate the one that fails."""


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Recorder:
    """Delivers a live journal, after replaying the journals that dead processes left.

    Args:
        journal: already contains the `open` record of the top-level run.
        spool: folder that may contain journals of earlier processes.
        target: identifies the server in journal headers; only its journals are replayed.
        owner: of this run; only the owner's journals are replayed.
        log: called from the thread with human-readable messages.
    """

    def __init__(
        self,
        server: Server,
        journal: Journal,
        spool: Path,
        target: str,
        owner: Owner,
        log: Callable[[str], None],
    ) -> None:
        self.journal = journal
        self._runs = Runs(server, owner, journal)
        self._delivery = Delivery(server, self._runs)
        self._replay = Replay(server, self._runs, spool, target, owner, log)
        self._server = server
        self._owner = owner
        self._log = log
        self._next_heartbeat = time.monotonic() + HEARTBEAT_SECONDS
        self._next_deferred = 0.0
        self._changed = threading.Condition()
        self._sent_offset = 0
        self._attempts = 0
        self._failures = 0
        self._opened = False
        self._stopping = False
        self._flush_now = threading.Event()
        self._new_records = threading.Event()
        self._num_dropped = 0
        self.problem: ServerUnavailableError | RecordRejectedError | None = None
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)

    @property
    def uri(self) -> str:
        return self._server.uri

    @property
    def champions(self) -> list[dict[str, Any]]:
        """What of this run became a champion so far, as of `Registered`."""
        return list(self._delivery.champions)

    def start(self) -> None:
        self._thread.start()

    def wait_open(self, seconds: float) -> bool:
        """Wait for the top-level run; return False if the first attempt to open it failed."""
        with self._changed:
            self._changed.wait_for(lambda: self._opened or self._attempts > 0, seconds)
            return self._opened

    def run_id(self, node: str) -> str | None:
        return self._delivery.run_id(self._server.experiment, node)

    def page(self, node: str) -> str:
        """Address of the run's page; of the server's, as long as it has not answered."""
        return run_page(self._server.uri, self._server.known_experiment, self.run_id(node))

    def wait_run_id(self, node: str, seconds: float) -> str | None:
        """Return the run's id, waiting up to `seconds` for it while the server answers."""
        with self._changed:
            self._new_records.set()
            self._flush_now.set()
            self._changed.wait_for(lambda: self.run_id(node) or self._failures > 0, seconds)
            self._flush_now.clear()
        return self.run_id(node)

    def append(self, record: Record) -> None:
        """Append a record to the journal. Never raises; a full disk is logged once."""
        try:
            self.journal.append(record)
        except (OSError, ValueError) as error:
            self._num_dropped += 1
            if self._num_dropped == 1:
                self._log(
                    f"tracking records cannot be written to {self.journal.folder} ({error}); "
                    "free some disk space: the run itself continues"
                )
        self._new_records.set()

    def flush(self, seconds: float) -> bool:
        """Wait up to `seconds` until everything so far is on the server; return whether it is.

        Returns after one failed attempt, since an outage usually lasts longer.
        """
        end = self.journal.size
        with self._changed:
            attempts = self._attempts
            self._flush_now.set()
            self._new_records.set()
            self._changed.wait_for(
                lambda: (
                    self._sent_offset >= end
                    or self._attempts > attempts
                    or not self._thread.is_alive()
                ),
                seconds,
            )
            self._flush_now.clear()
            return self._sent_offset >= end

    def stop(self, seconds: float) -> None:
        """Flush for up to `seconds`, then end the thread; the rest is left for a later replay."""
        self._next_deferred = 0.0
        self.flush(seconds)
        with self._changed:
            self._stopping = True
        self._new_records.set()
        self._flush_now.set()
        self._thread.join(timeout=2.0)
        unsent = self.journal.count_from(self._sent_offset) or self.journal.deferred
        if unsent or self._thread.is_alive() or self._runs.in_doubt:
            self.journal.release()
        else:
            self.journal.remove()

    def abandon(self) -> None:
        """End the thread and delete the journal without sending it.

        A request that the server has not answered stays in the journal, so that the next run
        removes what the server makes of it.
        """
        with self._changed:
            self._stopping = True
        self._flush_now.set()
        if self._runs.give_up():
            self.journal.write_nothing_to_send()
            self.journal.release()
        else:
            self.journal.remove()

    def _run(self) -> None:
        steps = [self._open, self._replay_abandoned, self._mark_orphans]
        while steps:
            done = self._try(steps[0])
            if self._runs.given_up or (self._stopping and not done):
                return
            if done:
                steps.pop(0)
        while True:
            delivered = self._try(self._deliver_chunk)
            if self._stopping:
                return
            if delivered and self._sent_offset >= self.journal.size:
                self._new_records.wait(5.0)
                self._new_records.clear()
            if not self._flush_now.is_set():
                self._flush_now.wait(BATCH_SECONDS)

    def _try(self, step: Callable[[], None]) -> bool:
        """Run a step; on failure store the error, log it once and wait before the next attempt."""
        try:
            step()
        except (ServerUnavailableError, RecordRejectedError) as error:
            problem: ServerUnavailableError | RecordRejectedError = error
        except Exception as error:
            # No tracking error may end a training run that takes days.
            problem = ServerUnavailableError(redact(f"{type(error).__name__}: {error}"))
        else:
            if self._failures and self._opened:
                self._log("the tracking server answers again; sending the stored records")
                self._failures = 0
            self._log_messages()
            return True
        with self._changed:
            self.problem = problem
            self._attempts += 1
            first = self._failures == 0
            self._failures += 1
            self._changed.notify_all()
        if first and self._opened:
            self._log(self._interruption(problem))
        if not self._stopping:
            self._flush_now.wait(RETRY_SECONDS[min(self._failures, len(RETRY_SECONDS)) - 1])
        return False

    def _interruption(self, problem: Exception) -> str:
        where = f"the run continues, and its records are stored in {self.journal.folder}"
        if isinstance(problem, ForbiddenError):
            return (
                f"the tracking server does not let {self._owner.name} write ({problem}); {where} "
                "until that is permitted: ask the owner of the experiment for EDIT permission"
            )
        return f"the tracking server does not answer ({problem}); {where} until the server is back"

    def _log_messages(self) -> None:
        for message in self._delivery.messages:
            self._log(message)
        self._delivery.messages.clear()
        rejected = self._delivery.rejected
        if rejected:
            self._log(f"the tracking server rejected {len(rejected)} entries: {rejected[0]}")
            rejected.clear()

    def _open(self) -> None:
        experiment = self._server.experiment
        self._server.connect()
        records, _ = self.journal.read(0, 2)
        open_record = next(record for record in records if record.get("op") == "open")
        run = self._delivery.open(experiment, open_record, self.journal, live=True)
        if run is None:
            raise RecordRejectedError(self._delivery.rejected.pop())
        self._delivery.protected.add(run.id)
        self._top = run
        with self._changed:
            self._opened = True
            self._changed.notify_all()

    def _replay_abandoned(self) -> None:
        if self._replay.send_abandoned(protected=self._top.id):
            # Records of an earlier attempt may have gone to this run.
            self._top.continued, self._top.children = True, None

    def _mark_orphans(self) -> None:
        if self._top.continued:
            self._delivery.mark_orphans(self._server.experiment, self._top.id, now_ms())

    def _deliver_chunk(self) -> None:
        records, offset = self.journal.read(self._sent_offset, CHUNK)
        if records:
            one_by_one = self._failures >= MAX_BATCH_FAILURES
            apply = self._delivery.apply_each if one_by_one else self._delivery.apply
            apply(self._server.experiment, records, self.journal, live=True)
            self.journal.mark_sent(offset)
        self._send_deferred()
        self._runs.settle(now=self._flush_now.is_set())
        if time.monotonic() >= self._next_heartbeat and self._top.running:
            self._runs.renew_lease(self._top.id)
            self._next_heartbeat = time.monotonic() + HEARTBEAT_SECONDS
        with self._changed:
            self._sent_offset = offset
            self._changed.notify_all()

    def _send_deferred(self) -> None:
        if time.monotonic() < self._next_deferred or not self.journal.deferred:
            return
        self._next_deferred = time.monotonic() + DEFERRED_SECONDS
        try:
            self._delivery.send_deferred(self._server.experiment, self.journal)
        except ServerUnavailableError:
            return  # has been reported when it was deferred
        self._log("the tracking server has room again; all files are sent")
