"""Messages to a webhook and to a command when a run ends; the hooks are real, the steps are not."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from helpers.small_runs import Scores, install, runs_of, workspace

from multistill.cli import main
from multistill.config import NotifyConfig
from multistill.config.notify import NOTIFY_COMMAND
from multistill.databases import sqlite_url
from multistill.errors import MultistillError
from multistill.pipeline import notify
from multistill.pipeline.notify import Notifier, RunFacts
from multistill.pipeline.step import StepRun

SECRET = "s3cret-path-of-the-hook"


class Hook:
    """A webhook on this machine; answers with the next code, then with 200."""

    def __init__(self) -> None:
        self.codes: list[int] = []
        self.seconds = 0.0
        self.messages: list[dict[str, Any]] = []
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                time.sleep(hook.seconds)
                code = hook.codes.pop(0) if hook.codes else 200
                if code == 200:
                    hook.messages.append(json.loads(body))
                self.send_response(code)
                self.send_header("Location", f"http://127.0.0.1:{hook.port}/elsewhere")
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.address = f"http://127.0.0.1:{self.port}/{SECRET}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hook]:
    found = Hook()
    monkeypatch.setenv("MULTISTILL_WEBHOOK", found.address)
    monkeypatch.setattr(notify, "TRY_SECONDS", 1.0)
    monkeypatch.setattr(notify, "PAUSE_SECONDS", 0.05)
    yield found
    found.server.shutdown()


def code_of(arguments: list[str]) -> int:
    try:
        main(arguments)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture
def run(tmp_path: Path, mlflow_database: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the job of two small steps in a workspace; returns the exit code."""
    install(monkeypatch)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    own = workspace(tmp_path / "own", mlflow_database)
    job = tmp_path / "small.yaml"
    job.write_text("name: small\ncorpora: [{kind: demo}]\n")
    return lambda *more: code_of(["run", str(job), "--workspace", str(own), *more])


def fails(run: StepRun) -> None:
    raise MultistillError("the disk is full; free some space")


def is_terminated(run: StepRun) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(30)


def registers(run: StepRun) -> None:
    folder = run.out / "model"
    folder.mkdir()
    (folder / "weights").write_text("1")
    run.logger.register("emotion", folder, "valid_macro_f1", 0.5, data="a")


def test_the_end_of_a_run_and_its_champion(
    run: Any, hook: Hook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Scores, "work", staticmethod(registers))
    assert run() == 0
    champion, end = hook.messages
    assert champion["event"] == "champion" and champion["champion"]["model"] == "emotion"
    assert champion["champion"]["version"] == "1" and "is the champion" in champion["text"]
    assert (end["event"], end["state"], end["reason"]) == ("end", "finished", None)
    assert end["job"] == "small" and end["owner"] and end["host"]
    assert end["figures"] == {
        "test_teacher_macro_f1": 0.7,
        "test_best_student_macro_f1": 0.65,
        "test_best_student_macro_f1_low": 0.6,
        "test_majority_macro_f1": 0.1,
    }
    shown = "macro F1 on test best student 0.650, teacher 0.700, majority 0.100"
    assert end["text"].endswith(shown)
    assert sqlite_url(tmp_path / "own" / "mlflow.db") in end["links"]["mlflow_ui"]
    assert run() == 0
    assert len(hook.messages) == 2, "a run that had nothing to do is no news"


@pytest.mark.parametrize(
    ("work", "code", "state", "reason"),
    [
        (fails, 1, "failed", "the disk is full"),
        (is_terminated, 130, "stopped", "SIGTERM from a scheduler"),
    ],
)
def test_a_run_that_fails_or_is_stopped(
    run: Any,
    hook: Hook,
    monkeypatch: pytest.MonkeyPatch,
    work: Any,
    code: int,
    state: str,
    reason: str,
) -> None:
    monkeypatch.setattr(Scores, "work", staticmethod(work))
    assert run() == code
    [message] = hook.messages
    assert (message["event"], message["state"]) == ("failure", state)
    assert reason in message["reason"] and message["reason"] in message["text"]
    assert message["stage"] == "evaluate"
    assert run("--set", "notify.events=[end]") == code
    assert len(hook.messages) == 1


def test_a_failing_hook_changes_nothing_and_its_address_is_nowhere(
    run: Any, hook: Hook, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    hook.codes = [404]
    command = f"{shlex.quote(sys.executable)} -c 'raise SystemExit(3)'"
    assert run("--notify-command", command) == 0
    printed = capfd.readouterr()
    assert "the webhook of MULTISTILL_WEBHOOK was not told: it answered 404" in printed.err
    assert "the command for notifications failed: its exit code is 3" in printed.err
    assert hook.messages == []
    top = runs_of(sqlite_url(tmp_path / "own" / "mlflow.db"))[0]
    assert top.info.status == "FINISHED"
    written = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert SECRET.encode() not in written
    assert SECRET not in printed.out + printed.err


FACTS = RunFacts("small", "small seed 1 (aaaaaa)", "a" * 16, "ann", 1.0, "evaluate")


def sent(config: NotifyConfig | None = None, command: str | None = None) -> list[str]:
    """What a notifier says of a run that failed."""
    said: list[str] = []
    notifier = Notifier(config or NotifyConfig(), command, said.append)
    assert list(notifier.problems()) == []
    notifier.ended(lambda: FACTS, ValueError("no"))
    return said


@pytest.mark.parametrize("code", [500, 503, 429])
def test_what_may_pass_is_tried_once_more(hook: Hook, code: int) -> None:
    hook.codes = [code]
    assert sent() == [] and len(hook.messages) == 1
    hook.codes = [code, code]
    assert sent() == [f"the webhook of MULTISTILL_WEBHOOK was not told: it answered {code}"]


@pytest.mark.parametrize("code", [302, 307, 401, 410])
def test_what_will_not_pass_is_not_tried_again(hook: Hook, code: int) -> None:
    hook.codes = [code]
    assert sent() == [f"the webhook of MULTISTILL_WEBHOOK was not told: it answered {code}"]
    assert hook.messages == [], "a message follows no redirect"


def test_hooks_that_hang_or_are_gone(hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "COMMAND_SECONDS", 0.3)
    hook.seconds = 5.0
    started = time.monotonic()
    said = sent(command="sleep 60")
    assert time.monotonic() - started < 20
    assert "was not told: there was no answer within" in said[0]
    assert said[1] == "the command for notifications failed: it did not end within 0 s"
    hook.server.server_close()
    hook.server.shutdown()
    assert re.search("was not told: connection refused", sent()[0])


def test_a_command_gets_the_message_on_its_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MULTISTILL_WEBHOOK", raising=False)
    file = tmp_path / "message.json"
    monkeypatch.setenv(NOTIFY_COMMAND, f"tee {shlex.quote(str(file))}")
    assert sent() == []
    message = json.loads(file.read_text())
    assert (message["event"], message["reason"]) == ("failure", "no")


def test_secrets_are_masked_in_reasons(hook: Hook) -> None:
    said: list[str] = []
    error = ValueError(f"cannot reach http://ann:pa55word@lab nor {hook.address}")
    Notifier(NotifyConfig(), None, said.append).ended(lambda: FACTS, error)
    text = json.dumps(hook.messages)
    assert "pa55word" not in text and SECRET not in text


def test_nothing_that_goes_wrong_is_raised(hook: Hook) -> None:
    said: list[str] = []

    def describe() -> RunFacts:
        raise RuntimeError("no facts")

    Notifier(NotifyConfig(), None, said.append).ended(describe, None)
    assert said == ["nobody was notified: unexpected RuntimeError"]


@pytest.mark.parametrize("variable", ["AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_URI", "WEBHOOK"])
def test_a_job_file_names_no_other_variable(
    variable: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(f"name: x\ncorpora: [{{kind: demo}}]\nnotify: {{webhook_env: {variable}}}\n")
    assert code_of(["validate", str(job)]) == 2
    assert "notify.webhook_env" in capsys.readouterr().err
