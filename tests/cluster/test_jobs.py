"""Jobs on a real Ray head node with token authentication, in its own process group."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from helpers.interrupts import heed_interrupts
from helpers.ray_head import Head, running_head
from helpers.servers import foreign_service, free_ports

from multistill import cluster, provenance
from multistill.cli.app import main
from multistill.cluster import jobs
from multistill.cluster.address import job_server, refuse_unsafe
from multistill.errors import JobFileError, MultistillError, UsageError
from multistill.pipeline import jobfile
from multistill.tracking.owner import account_at_host

JOB = """\
name: tiny
workspace: {workspace}
corpora:
  - kind: demo
"""


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with running_head() as head:
        yield head


@pytest.fixture
def authorised(head: Head, monkeypatch: pytest.MonkeyPatch) -> Head:
    assert head.process.poll() is None, head.log.read_text()
    monkeypatch.setenv("RAY_AUTH_TOKEN", head.token)
    return head


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(JOB.format(workspace=tmp_path / "ws"))
    return path


SHOW_JOB = (
    "import multistill, pathlib; print('from', multistill.__file__); "
    "print('version', multistill.__version__); "
    "print(pathlib.Path('job.yaml').read_text()); print('한글 fin')"
)


@pytest.mark.ray
def test_a_job_runs_with_the_uploaded_package_its_version_and_the_resolved_file(
    authorised: Head,
    job: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(jobs, "ENTRYPOINT", ["python", "-c", SHOW_JOB])
    monkeypatch.setattr(provenance, "version", lambda: "9.8.7")
    submission = cluster.submit(jobfile.load(job, ["seed=7"]), authorised.address)
    text = capsys.readouterr().out
    assert (submission.status, submission.exit_code) == ("SUCCEEDED", 0)
    assert "py_modules" in text.split("from ")[1].splitlines()[0]
    assert "version 9.8.7\n" in text
    assert "seed: 7" in text
    assert text.count("\n한글 fin\n") == 1
    assert submission.submission_id.startswith("multistill-tiny-")
    assert cluster.logs(submission.submission_id, authorised.address) == text
    state = cluster.status(submission.submission_id, authorised.address)
    assert state["status"] == "SUCCEEDED"
    assert state["end_time"] >= state["start_time"] > 1.7e9
    assert cluster.stop(submission.submission_id, authorised.address) is False
    [row] = [
        row
        for row in cluster.submitted(authorised.address)
        if row["submission_id"] == submission.submission_id
    ]
    assert f"{row['owner']}@{row['host']}" == account_at_host()
    assert (row["job"], row["status"]) == ("tiny", "SUCCEEDED")
    assert row["ray_dashboard"] == submission.page


@pytest.mark.ray
def test_the_exit_code_of_the_command_on_the_cluster_is_returned(
    authorised: Head, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(
        f"name: nothing\nworkspace: {tmp_path / 'ws'}\n"
        f"corpora: [{{kind: emodb, path: {tmp_path / 'missing'}}}]\n"
    )
    submission = cluster.submit(jobfile.load(path), authorised.address)
    text = capsys.readouterr().out
    assert (submission.status, submission.exit_code) == ("FAILED", 2)
    assert f"{tmp_path / 'missing'}" in text
    assert "Traceback" not in text


@pytest.mark.ray
def test_submitting_a_running_job_again_follows_it_and_stop_ends_it(
    authorised: Head, job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "ENTRYPOINT", ["python", "-c", "import time; time.sleep(300)"])
    config = jobfile.load(job)
    first = cluster.submit(config, authorised.address, wait=False)
    again = cluster.submit(config, authorised.address, wait=False)
    assert again.submission_id == first.submission_id
    assert first.exit_code == 0
    assert cluster.stop(first.submission_id, authorised.address) is True
    parts: list[str] = []
    cluster.follow(first.submission_id, authorised.address, parts.append)
    rest = "".join(parts)
    assert "Traceback" not in rest
    assert cluster.status(first.submission_id, authorised.address)["status"] == "STOPPED"
    monkeypatch.setattr(jobs, "ENTRYPOINT", ["true"])
    after = cluster.submit(config, authorised.address, wait=False)
    assert after.submission_id != first.submission_id


@pytest.mark.ray
@pytest.mark.parametrize("command", ["submit", "logs"])
def test_the_first_ctrl_c_ends_the_following_and_not_the_job(
    authorised: Head,
    job: Path,
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(
        jobs, "ENTRYPOINT", ["python", "-uc", "import time; print('started'); time.sleep(300)"]
    )
    submission = cluster.submit(jobfile.load(job), authorised.address, wait=False)
    where = ["--address", authorised.address]
    arguments = {
        "submit": ["submit", str(job), *where],  # joins the running job
        "logs": ["logs", submission.submission_id, "-f", *where],
    }
    following = subprocess.Popen(
        [sys.executable, "-m", "multistill", *arguments[command]],
        env=authorised.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
    )
    try:
        assert following.stdout is not None
        while "started" not in following.stdout.readline():
            assert following.poll() is None
        time.sleep(1.0)  # it now waits for the next line
        following.send_signal(signal.SIGINT)
        _, errors = following.communicate(timeout=20)
    finally:
        following.kill()
    assert following.returncode == 130
    sentence = errors.strip().splitlines()[-1]
    assert "which goes on" in sentence
    assert "Traceback" not in errors
    # The commands of the sentence do what it says.
    follow, stop = re.findall(r"`multistill ([^`]*)`", sentence)
    state = cluster.status(submission.submission_id, authorised.address)
    assert state["status"] == "RUNNING"
    for given, printed in ((stop, "stopping"), (follow, "started")):
        capsys.readouterr()
        with suppress(SystemExit):
            main(shlex.split(given))
        assert printed in capsys.readouterr().out


@pytest.mark.ray
def test_requests_without_the_token_are_refused(
    head: Head, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    with pytest.raises(MultistillError, match="requires a token"):
        cluster.status("x", head.address)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    with pytest.raises(MultistillError, match="rejects the token"):
        cluster.submit(jobfile.load(job), head.address)
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    path = tmp_path / "token"
    path.write_text(head.token + "\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    with pytest.raises(UsageError, match="has no job `never-sent`"):
        cluster.status("never-sent", head.address)


def test_an_address_without_a_job_server_is_an_error(job: Path) -> None:
    [port] = free_ports(1)
    with pytest.raises(MultistillError, match="no Ray job server answers at http://127"):
        cluster.submit(jobfile.load(job), f"127.0.0.1:{port}")


@pytest.mark.parametrize("kind", ["web server", "silent"])
def test_a_foreign_service_is_told_in_time(job: Path, kind: str) -> None:
    start = time.monotonic()
    with (
        foreign_service(kind) as port,
        pytest.raises(MultistillError, match="no Ray job server answers at http://127"),
    ):
        cluster.submit(jobfile.load(job), f"127.0.0.1:{port}")
    assert time.monotonic() - start < 20


def test_a_job_that_cannot_work_on_a_cluster_is_refused_before_submission(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("name: x\ncorpora: [{kind: demo}]\n")
    with pytest.raises(JobFileError, match="`workspace` is a relative path"):
        jobfile.load(path, for_cluster=True)
    with pytest.raises(JobFileError, match="`here` is a relative path"):
        jobfile.load(path, ["workspace=here"], for_cluster=True)
    jobfile.load(path, ["workspace=/shared/here"], for_cluster=True)
    with pytest.raises(JobFileError, match="holds a password") as refused:
        jobfile.load(path, ["tracking.uri=https://user:secret@mlflow.lab"])
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("address", ["ray://h:10001", "http://u:pw@h", "http://:80", "h:x"])
def test_an_address_that_is_not_a_job_servers_is_refused(address: str) -> None:
    with pytest.raises(UsageError):
        job_server(address)


def test_missing_parts_of_an_address_are_completed() -> None:
    assert job_server("head") == "http://head:8265"
    assert job_server("10.0.0.1:9000/") == "http://10.0.0.1:9000"
    assert job_server("https://ray.lab/") == "https://ray.lab"
    assert job_server("http://[::1]") == "http://[::1]:8265"


@pytest.mark.parametrize("has_token", [True, False])
def test_a_public_plain_http_address_is_refused(has_token: bool) -> None:
    for public in ["http://8.8.8.8:8265", "http://[2001:4860:4860::8888]:8265"]:
        with pytest.raises(UsageError, match="tunnel"):
            refuse_unsafe(public, has_token)
    for fine in ["http://127.0.0.1:8265", "http://10.1.2.3:8265", "https://8.8.8.8"]:
        refuse_unsafe(fine, has_token)
