"""Tells people what became of a run: a JSON message to a webhook, or to a command of theirs.

The address of the webhook and the command come from the environment of whoever runs the job: the
address is a secret, and a job file runs no code. Nothing here changes how a run ends.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from multistill import provenance
from multistill.config import NotifyConfig
from multistill.config.notify import NOTIFY_COMMAND, WEBHOOK, Event
from multistill.errors import known_cause
from multistill.tracking.redaction import redact
from multistill.workspace import to_json

TRY_SECONDS = 5.0
COMMAND_SECONDS = 10.0
TRIES = 2
PAUSE_SECONDS = 1.0
_MAX_REASON = 1000


@dataclass(frozen=True)
class RunFacts:
    """What a message says of a run.

    Attributes:
        name: of its MLflow run.
        key: fingerprint of the job.
        seconds: since the start.
        stage: the last one that it reached.
        figures: the metrics `test_*` of a finished job.
        tags: `best_student` and `floor` of a finished job.
        links: of the MLflow run, the report and the Ray dashboard, where there are some.
        champions: models that became champions, as of `Tracker.champions`.
    """

    job: str
    name: str
    key: str
    owner: str
    seconds: float
    stage: str | None
    figures: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    champions: Sequence[Mapping[str, Any]] = ()


class Notifier:
    """Sends the messages of one run.

    Args:
        config: which events, and which variable has the webhook's address.
        command: run with the message on its standard input; default: that of the environment.
        log: for a sentence about what could not be sent.
    """

    def __init__(
        self, config: NotifyConfig, command: str | None, log: Callable[[str], None]
    ) -> None:
        self._config = config
        self._variable = config.webhook_env or WEBHOOK
        self._address = os.environ.get(self._variable, "").strip()
        self._command = command or os.environ.get(NOTIFY_COMMAND, "")
        self._log = log

    def problems(self) -> Iterator[str]:
        """What keeps messages from being sent, each with what to do. Contacts nobody."""
        if self._config.webhook_env and not self._address:
            yield (
                f"notify.webhook_env: the environment variable {self._variable} is not set; put "
                "the webhook's address into it, or remove the key"
            )
        elif self._address and not re.match(r"https?://[^/\s]+\S*$", self._address):
            yield (
                f"the environment variable {self._variable} is no address of a webhook such as "
                "https://HOST/PATH; correct it, or unset it"
            )
        if self._command:
            yield from self._command_problems()

    def _command_problems(self) -> Iterator[str]:
        """Of the command, which may hold a secret, the name of its program alone is repeated."""
        try:
            words = shlex.split(self._command)
        except ValueError:
            yield (
                "the quotes or backslashes in the command for notifications do not match; correct "
                f"--notify-command or {NOTIFY_COMMAND}"
            )
            return
        program = words[0] if words else ""
        if shutil.which(program) is None:
            name = redact(program.partition("=")[0])  # of `TOKEN=... curl`, which only a shell runs
            yield (
                f"the command for notifications `{name}` cannot be run on this machine; correct "
                f"--notify-command or {NOTIFY_COMMAND}"
            )

    def ended(self, describe: Callable[[], RunFacts], error: BaseException | None) -> None:
        """Tell that a run ended, and which of its models became champions. Never raises.

        Args:
            error: that ended it; None of a run that finished.
        """
        if not (self._address or self._command):
            return
        try:
            facts = describe()
            if "champion" in self._config.events:
                for champion in facts.champions:
                    self._send(_message("champion", facts, error) | {"champion": dict(champion)})
            event: Event = "end" if error is None else "failure"
            if event in self._config.events:
                self._send(_message(event, facts, error))
        except Exception as problem:
            self._log(f"nobody was notified: unexpected {type(problem).__name__}")

    def _send(self, message: dict[str, Any]) -> None:
        message["text"] = _sentence(message)
        body = to_json(message).encode()
        if self._address and (reason := _within(_post, self._address, body)):
            self._log(f"the webhook of {self._variable} was not told: {reason}")
        if self._command and (reason := _run(self._command, body)):
            self._log(f"the command for notifications failed: {reason}")


def _message(event: Event, facts: RunFacts, error: BaseException | None) -> dict[str, Any]:
    stopped = isinstance(error, KeyboardInterrupt)
    return {
        "event": event,
        "job": facts.job,
        "run": facts.name,
        "key": facts.key,
        "state": "finished" if error is None else "stopped" if stopped else "failed",
        "stage": facts.stage,
        "reason": None if error is None else _reason(error),
        "seconds": round(facts.seconds, 1),
        "owner": facts.owner,
        "host": socket.gethostname(),
        "version": provenance.version(),
        "best_student": facts.tags.get("best_student"),
        "floor": facts.tags.get("floor"),
        "figures": dict(facts.figures),
        "links": dict(facts.links),
    }


def _reason(error: BaseException) -> str:
    """Why a run ended, in words, without secrets."""
    if isinstance(error, KeyboardInterrupt):
        return "it was interrupted (Ctrl-C, or SIGTERM from a scheduler)"
    cause = known_cause(error)
    text = str(cause).strip() or type(cause).__name__
    return redact(text)[:_MAX_REASON]


def _sentence(message: Mapping[str, Any]) -> str:
    """The message as one sentence: what chats show of it."""
    figures, title = message["figures"], f"{message['run']} ({message['owner']})"
    if champion := message.get("champion"):
        before = champion["previous"]
        previous = "" if before is None else f", previously {before:.4g}"
        return (
            f"{title}: {champion['model']} version {champion['version']} is the champion "
            f"({champion['metric']} {champion['value']:.4g}{previous})"
        )
    text = f"{title} {message['state']} on {message['host']} after {message['seconds']:.0f} s"
    if message["reason"]:
        return f"{text}: {message['reason']}"
    for metric, shown in (("macro_f1", "macro F1"), ("ccc", "CCC")):
        if f"test_majority_{metric}" not in figures:
            continue
        values = [
            f"{who.replace('_', ' ')} {value:.3f}"
            for who in ("best_student", "teacher", "majority")
            if (value := figures.get(f"test_{who}_{metric}")) is not None
        ]
        return f"{text}: {shown} on test {', '.join(values)}"
    return text


def _within(send: Callable[[str, bytes], str], address: str, body: bytes) -> str:
    """Call in a thread: looking up a name, or an answer byte by byte, has no time limit."""
    result: list[str] = []
    thread = threading.Thread(target=lambda: result.append(send(address, body)), daemon=True)
    thread.start()
    limit = TRIES * TRY_SECONDS + (TRIES - 1) * PAUSE_SECONDS
    thread.join(limit)
    return result[0] if result else f"there was no answer within {limit:.0f} s"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A message goes to its address or nowhere."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _post(address: str, body: bytes) -> str:
    """Send, once more after a failure that may pass; what went wrong, without the address."""
    opener = urllib.request.build_opener(_NoRedirect)
    headers = {
        "Content-Type": "application/json",
        "User-Agent": f"multistill/{provenance.version()}",
    }
    reason = ""
    for number in range(TRIES):
        if number:
            time.sleep(PAUSE_SECONDS)
        # `problems` lets http and https pass only.
        request = urllib.request.Request(address, body, headers)  # noqa: S310
        try:
            with opener.open(request, timeout=TRY_SECONDS):
                return ""
        except urllib.error.HTTPError as error:
            reason = f"it answered {error.code}"
            if error.code < 500 and error.code != 429:
                return reason
        except TimeoutError:
            reason = f"there was no answer within {TRY_SECONDS:.0f} s"
        except Exception as error:  # its text may hold the address
            cause = getattr(error, "reason", error)
            text = cause.strerror if isinstance(cause, OSError) else None
            reason = (text or type(cause).__name__).lower()
    return reason


def _run(command: str, body: bytes) -> str:
    """Run a command with the message on its standard input; what went wrong."""
    words = shlex.split(command)
    try:
        # In a session of its own: another Ctrl-C is for the run. Its output is no result of ours.
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=2, start_new_session=True)
    except OSError as error:
        return str(error.strerror)
    try:
        process.communicate(body, COMMAND_SECONDS)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"it did not end within {COMMAND_SECONDS:.0f} s"
    return f"its exit code is {process.returncode}" if process.returncode else ""
