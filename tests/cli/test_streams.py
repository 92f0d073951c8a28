"""Output to a console of any encoding: nothing raises, names stay recognisable."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multistill.cli import main
from multistill.cli.streams import print_any_text

if TYPE_CHECKING:
    from helpers.evaluation_case import EvaluationCase

ENCODINGS = ["ascii", "latin-1", "cp949", "cp437", "koi8-r", "shift_jis", "utf-8", "utf-16"]
# A name of Korean and accented letters, one outside the basic plane, and one byte of no encoding.
NAME = "감정-é-😀"


class Console:
    """Standard output and error of a strict encoding."""

    def __init__(self, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.encoding = encoding
        self.streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
        monkeypatch.setattr(sys, "stdout", self.streams[0])
        monkeypatch.setattr(sys, "stderr", self.streams[1])

    def text(self) -> list[str]:
        texts = []
        for stream in self.streams:
            stream.flush()
            texts.append(stream.buffer.getvalue().decode(self.encoding))  # type: ignore[attr-defined]
        return texts


def run(arguments: list[str], encoding: str, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """Exit code and what was printed to both streams."""
    with monkeypatch.context() as patch:
        console = Console(encoding, patch)
        with pytest.raises(SystemExit) as end:
            main(arguments)
        out, err = console.text()
    assert "unexpected" not in err, err
    return int(end.value.code or 0), out + err


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / f"{NAME}.yaml"
    text = f"name: {NAME}\nworkspace: {tmp_path / NAME}\ncorpora: [{{kind: demo}}]\n"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_command_prints_to_a_console_of_any_encoding(
    encoding: str, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = NAME if encoding.startswith("utf") else "-"
    for arguments in (
        ["validate", str(job)],
        ["validate", str(job), "--json"],
        ["plan", str(job)],
        ["plan", str(job), "--json"],
        ["models"],
        ["models", "--json"],
        ["recipes"],
        ["jobs"],
        ["jobs", "--copy", str(tmp_path / f"{NAME}-copies")],
        ["--help"],
        ["run", "--help"],
    ):
        code, printed = run(arguments, encoding, monkeypatch)
        assert code == 0, (arguments, printed)
        assert printed.strip()
        if str(job) in arguments and "--json" not in arguments:
            assert shown in printed


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(
    "wrong",
    [
        ["validate", f"{NAME}.yaml"],
        ["jobs", NAME],
        [NAME],
        ["search", "resume", NAME],
        ["validate", "JOB", "--set", f"{NAME}=1"],
        ["run", "JOB", "--until", NAME],
        ["validate", "\udcb0\udcfe.yaml"],  # bytes that are not UTF-8, as Python passes them
    ],
)
def test_every_mistake_is_told_on_a_console_of_any_encoding(
    wrong: list[str], encoding: str, job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [str(job) if word == "JOB" else word for word in wrong]
    code, printed = run(arguments, encoding, monkeypatch)
    assert code == 2
    assert printed.strip()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_json_stays_json(encoding: str, job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, printed = run(["plan", str(job), "--json"], encoding, monkeypatch)
    assert json.loads(printed)["job"] == NAME


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_closing_table_of_a_job_prints_on_a_console_of_any_encoding(
    encoding: str,
    evaluation_case: EvaluationCase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from multistill.cli.run import _show
    from multistill.pipeline import Outcome

    report, _ = evaluation_case.default_report
    folder = tmp_path / NAME
    folder.mkdir()
    text = json.dumps({**report, "job": NAME})
    (folder / "report.json").write_text(text, encoding="utf-8")
    with monkeypatch.context() as patch:
        console = Console(encoding, patch)
        print_any_text()
        database = f"sqlite:////{NAME}/mlflow.db"
        links = {"mlflow": NAME, "mlflow_ui": f"mlflow ui {database}", "ray_dashboard": None}
        _show(Outcome(NAME, {}, True, 1.0, folder, database, links))
        printed = console.text()[0]
    assert "teacher" in printed
    assert ("감정" in printed) == (encoding in {"cp949", "utf-8", "utf-16"})


@given(text=st.text(), encoding=st.sampled_from(ENCODINGS))
def test_any_text_is_printed_by_print_rich_and_log_handlers(text: str, encoding: str) -> None:
    from rich.text import Text

    from multistill.tracking.console import stderr

    with pytest.MonkeyPatch.context() as patch:
        console = Console(encoding, patch)
        print_any_text()
        print(text)
        print(text, file=sys.stderr)
        stderr().print(Text(text))
        handler = logging.StreamHandler()
        handler.handleError = _raise  # type: ignore[method-assign]
        handler.emit(logging.LogRecord("test", logging.INFO, "", 0, "%s", (text,), None))
        console.text()


def _raise(record: logging.LogRecord) -> None:
    raise


def test_names_with_markup_are_printed_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("name: 'a[bold]b[-red]'\ncorpora: [{kind: demo}]\n")
    _, printed = run(["plan", str(job)], "utf-8", monkeypatch)
    assert "a[bold]b[-red]" in printed


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp949"])
def test_a_pipe_of_any_encoding_gets_the_output(encoding: str, job: Path) -> None:
    import os

    done = subprocess.run(
        [sys.executable, "-m", "multistill", "validate", str(job)],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding},
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert b"valid (job `" in done.stdout
    assert "감정".encode(encoding, "backslashreplace") in done.stdout
