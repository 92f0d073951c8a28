"""Sends the journals that dead processes left, each by its owner and to its server only.

Nothing here keeps a run from starting: what cannot be sent is reported and stays on disk.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from multistill.tracking.delivery import Delivery, unclosed
from multistill.tracking.journal import Journal, Record, held
from multistill.tracking.owner import Owner
from multistill.tracking.redaction import redact
from multistill.tracking.runs import HeldError, Runs
from multistill.tracking.server import (
    ForbiddenError,
    RecordRejectedError,
    Server,
    ServerUnavailableError,
)

CHUNK = 1000


class Replay:
    """Delivers what an owner's earlier runs left in a spool.

    Args:
        runs: of the live run, which takes over the requests in doubt.
        spool: folder of the journals.
        target: identifies the server in journal headers.
        log: called with human-readable messages.
    """

    def __init__(
        self,
        server: Server,
        runs: Runs,
        spool: Path,
        target: str,
        owner: Owner,
        log: Callable[[str], None],
    ) -> None:
        self._server, self._runs, self._spool = server, runs, spool
        self._target, self._owner, self._log = target, owner, log
        self._finished: set[str] = set()

    def send_abandoned(self, *, protected: str) -> int:
        """Send the owner's journals for this server; return the number of journals sent.

        Can be called again after an error: a journal that was tried is not tried again.

        Args:
            protected: id of the live run, which must not be ended.

        Raises:
            ServerUnavailableError: the server does not answer; all unsent journals are kept.
        """
        for text in foreign_journals(self._spool, self._owner):
            self._log_once(text)
        sent = 0
        journals = Journal.abandoned(self._spool, self._is_own)
        try:
            while journals:
                journal = journals.pop(0)
                try:
                    sent += self._send(journal, protected)
                    self._finished.add(journal.name)
                finally:
                    journal.release()
        finally:
            for journal in journals:
                journal.release()
        return sent

    def _log_once(self, text: str) -> None:
        if text not in self._finished:
            self._finished.add(text)
            self._log(text)

    def _is_own(self, header: Record) -> bool:
        return header.get("target") == self._target and self._owner.may_send(Owner.of(header))

    def _send(self, journal: Journal, protected: str) -> bool:
        """Send one journal and delete it; keep it and say why where that fails."""
        if journal.name in self._finished:
            return False
        count = journal.unsent
        failure = ""
        for one_by_one in (False, True):
            delivery = Delivery(self._server, self._runs)
            delivery.protected.add(protected)
            try:
                replay(delivery, journal, one_by_one=one_by_one)
            except HeldError:
                return False  # the driver that continues the run sends it
            except (ForbiddenError, RecordRejectedError) as error:
                failure = f"the tracking server refuses them to {self._owner.name}: {error}"
                break
            except ServerUnavailableError as error:
                if error.denied:
                    raise
                self._runs.check_server()  # raises if it is the server, not the journal
                failure = str(error)
            except Exception as error:  # a damaged journal must not end a run
                failure = redact(f"{type(error).__name__}: {error}")
            else:
                if count:
                    self._log(f"sent {count} records left by an earlier run")
                if delivery.rejected:
                    first = delivery.rejected[0]
                    self._log(
                        f"the tracking server rejected {len(delivery.rejected)} entries: {first}"
                    )
                return True
        self._log(
            f"{count} records of an earlier run of {self._owner.name} are not sent ({failure}); "
            f"they stay in {journal.folder}, and the next run tries again"
        )
        return False


def foreign_journals(spool: Path, owner: Owner) -> list[str]:
    """A sentence for each other person whose records wait in the spool."""
    waiting: Counter[Owner] = Counter()
    for journal in Journal.read_all(spool):
        other = Owner.of(journal.header)
        if owner.may_send(other) or held(journal.folder):
            continue
        try:
            waiting[other] += journal.unsent
        except OSError:
            continue
    return [
        f"{count} records of {other.name or 'an unknown user'} wait in {spool}: "
        f"they are sent when {_who(other, owner)} runs a job with this workspace"
        for other, count in waiting.items()
        if count
    ]


def _who(other: Owner, owner: Owner) -> str:
    if other.user == owner.user:
        return f"{other.user}, with MLFLOW_TRACKING_USERNAME={other.login},"
    return other.user or "that user"


def replay(delivery: Delivery, journal: Journal, *, one_by_one: bool = False) -> None:
    """Deliver the journal of a dead process, end its open runs, and delete it.

    Args:
        one_by_one: send one record at a time, dropping those that a healthy server rejects.

    Raises:
        ServerUnavailableError, RecordRejectedError, HeldError: the journal is kept.
    """
    apply = delivery.apply_each if one_by_one else delivery.apply
    experiment = journal.header["experiment"]
    sent = journal.sent_offset
    delivery.runs.adopt(journal.doubts)  # first: the records decide which run is in use
    if journal.unsent or unclosed(journal):
        offset = 0
        while True:
            records, next_offset = journal.read(offset, CHUNK)
            if not records:
                break
            # Records before `sent` are on the server; only the state of their runs is restored.
            if next_offset <= sent:
                records = [record for record in records if record.get("op") in {"open", "close"}]
            apply(experiment, records, journal, live=False)
            offset = next_offset
            if offset > sent:
                journal.mark_sent(offset)
        delivery.mark_unclosed(experiment, journal)
        delivery.send_deferred(experiment, journal)
    journal.remove()
