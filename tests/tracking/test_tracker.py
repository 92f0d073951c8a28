"""Tracking without a server: redaction, limits and the journal."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.protos.databricks_pb2 import BAD_REQUEST

from multistill.config import TrackingConfig
from multistill.errors import UsageError
from multistill.tracking import redact, tracking_uri
from multistill.tracking.addresses import run_page
from multistill.tracking.journal import Journal
from multistill.tracking.server import (
    RecordRejectedError,
    ServerUnavailableError,
    as_number,
    batches,
    call_mlflow,
    clean_key,
    clean_params,
)
from multistill.tracking.tracker import _target


@pytest.mark.parametrize(
    ("uri", "secret"),
    [
        ("http://ann:hunter22@mlflow.lab:5000", "hunter22"),
        ("postgresql+psycopg2://ann:p@ss/w0rd@db/mlflow", "p@ss/w0rd"),
        ("failed: https://u:s3cret@a/b and http://v:0ther@c/d", "s3cret"),
    ],
)
def test_a_password_in_a_uri_is_redacted(uri: str, secret: str) -> None:
    assert secret not in redact(uri)
    assert "***" in redact(uri)


def test_a_secret_from_the_environment_is_redacted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "tok-12345678")
    assert redact("Bearer tok-12345678 was refused") == "Bearer *** was refused"
    assert clean_params({"note": "tok-12345678"}) == {"note": "***"}


@pytest.mark.parametrize("password", ["secret", "p@ss", "p@ss/w0rd", "p?a#s@s"])
def test_pages_and_hashes_of_a_server_know_no_password(password: str) -> None:
    uri, plain = f"https://kim:{password}@mlflow.lab:5000", "https://mlflow.lab:5000"
    assert run_page(uri, "3", "ab") == f"{plain}/#/experiments/3/runs/ab"
    assert run_page(uri, None, None) == plain
    assert _target(uri) == _target(plain)


def test_a_command_for_notifications_is_redacted_unless_it_is_a_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MULTISTILL_NOTIFY_COMMAND", "curl -H token:abc")
    assert redact("`curl -H token:abc` failed") == "`***` failed"
    monkeypatch.setenv("MULTISTILL_NOTIFY_COMMAND", "true")
    assert redact("freeze: true") == "freeze: true"


def test_text_without_secrets_is_unchanged() -> None:
    for text in ["http://mlflow.lab:5000", "sqlite:////tmp/a@b.db", "a: b@c"]:
        assert redact(text) == text


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2500), st.integers(0, 250), st.integers(0, 250), st.integers(0, 6000))
def test_batches_lose_nothing_and_respect_every_limit(
    metrics: int, params: int, tags: int, width: int
) -> None:
    points = [(f"m{i}", 0.5, 1_700_000_000_000, i) for i in range(metrics)]
    param_values = {f"p{i}": "값" * width for i in range(params)}
    tag_values = {f"t{i}": "x" * width for i in range(tags)}
    seen: tuple[list[object], dict[str, str], dict[str, str]] = ([], {}, {})
    for part in batches(points, param_values, tag_values):
        assert len(part[0]) <= 1000
        assert len(part[1]) <= 100
        assert len(part[2]) <= 100
        assert 0 < len(part[0]) + len(part[1]) + len(part[2]) <= 1000
        assert len(json.dumps(part)) < 1_000_000
        seen[0].extend(part[0])
        seen[1].update(part[1])
        seen[2].update(part[2])
    assert seen == (points, param_values, tag_values)


def test_keys_are_cleaned_for_mlflow() -> None:
    assert clean_key("f1[macro]/valid") == "f1_macro_/valid"
    assert clean_key("../x") == "_../x"
    assert clean_key("") == "_"
    assert len(clean_key("x" * 300)) == 250


def test_values_that_are_not_numbers_are_not_metrics() -> None:
    import numpy as np

    assert as_number(np.float32(0.5)) == 0.5
    assert as_number(True) == 1.0
    nan = as_number(float("nan"))
    assert nan is not None and math.isnan(nan)
    assert as_number("0.5") is None
    assert as_number(None) is None
    assert as_number([1, 2]) is None


def test_a_file_store_is_refused(tmp_path: Path) -> None:
    for uri in ["file:///tmp/mlruns", "./mlruns"]:
        with pytest.raises(UsageError, match="sqlite"):
            tracking_uri(TrackingConfig(uri=uri), tmp_path)


def test_the_default_store_is_a_file_in_the_workspace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(TrackingConfig(), tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert tracking_uri(TrackingConfig(), tmp_path) == "http://server:5000"


def test_the_journal_of_a_running_process_is_not_abandoned(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, {"target": "a"})
    journal.append({"op": "tags", "node": "n", "values": {}})
    assert _count_abandoned(tmp_path) == 0
    journal.release()
    assert _count_abandoned(tmp_path) == 1


def _count_abandoned(folder: Path) -> int:
    """Count the abandoned journals that another process sees."""
    code = (
        "import sys; from pathlib import Path; from multistill.tracking.journal import Journal;"
        "print(len(Journal.abandoned(Path(sys.argv[1]))))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True
    )
    return int(process.stdout)


def test_an_incomplete_last_line_is_skipped(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, {"target": "a"})
    journal.append({"op": "tags", "node": "n", "values": {"a": "가"}})
    journal.release()
    with (journal.folder / "records.jsonl").open("ab") as stream:
        stream.write(b'{"op": "tags", "nod')
    abandoned = Journal.abandoned(tmp_path)[0]
    records, offset = abandoned.read(0, 100)
    assert [record.get("op") for record in records] == [None, "tags"]
    assert abandoned.read(offset, 100) == ([], offset)
    abandoned.release()


class FullDisk:
    """A file of which nothing can be written any more, and so not closed in peace either."""

    def write(self, line: bytes) -> int:
        return len(line)

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    close = flush


@pytest.mark.parametrize("end", ["release", "remove", "write_nothing_to_send"])
def test_a_journal_on_a_full_disk_is_given_up_without_an_error(tmp_path: Path, end: str) -> None:
    journal = Journal.create(tmp_path, {"target": "a"})
    journal._stream.close()
    journal._stream = FullDisk()
    with pytest.raises(OSError, match="No space"):
        journal.append({"op": "tags", "node": "n", "values": {}})
    getattr(journal, end)()
    journal.release()
    assert journal.folder.exists() == (end != "remove")
    assert _count_abandoned(tmp_path) == (end != "remove")


def test_reading_in_chunks_returns_every_record_once(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, {"target": "a"})
    for number in range(57):
        journal.append({"op": "metrics", "number": number})
    offset, seen = 0, []
    while True:
        records, offset = journal.read(offset, 10)
        if not records:
            break
        seen += [record["number"] for record in records if "number" in record]
    assert seen == list(range(57))
    journal.remove()
    assert not journal.folder.exists()


@pytest.mark.parametrize(
    ("kind", "lost"),
    [
        ("InternalError", False),  # read-only
        ("InterfaceError", False),
        ("DatabaseError", False),
        ("DataError", True),
        ("IntegrityError", True),
    ],
)
def test_a_database_that_fails_is_told_from_a_value_that_it_does_not_take(
    kind: str, lost: bool
) -> None:
    import sqlalchemy
    from mlflow.exceptions import MlflowException

    original = getattr(sqlalchemy.exc, kind)("INSERT", {}, Exception("what it says"))

    def fails() -> None:  # as MLflow's own store words it
        raise MlflowException(str(original), error_code=BAD_REQUEST)

    with pytest.raises(RecordRejectedError if lost else ServerUnavailableError):
        call_mlflow(fails)


def test_records_that_others_wrote_reach_no_file_outside_the_journal(tmp_path: Path) -> None:
    outside = tmp_path / "outside" / "data.txt"
    outside.parent.mkdir()
    outside.write_text("kept")
    journal = Journal.create(tmp_path / "spool", {"target": "a"})
    copied = journal.copy_in(outside.parent)
    assert (journal.copy_of(copied) / "data.txt").read_text() == "kept"
    (journal.folder / "files" / "2").mkdir()
    (journal.folder / "files" / "2" / "link").symlink_to(outside)
    (journal.folder / "files" / "3").symlink_to(outside.parent)
    planted = ["files/2/link", "files/3/data.txt", "../../outside/data.txt", str(outside), "lock"]
    for name in [*planted, "files/../../outside", ""]:
        with pytest.raises(ValueError, match="journal"):
            journal.delete_copy(name)
    (journal.copy_of(copied) / "link").symlink_to(outside)
    with pytest.raises(ValueError, match="link"):
        journal.copy_of(copied)
    assert outside.read_text() == "kept"
