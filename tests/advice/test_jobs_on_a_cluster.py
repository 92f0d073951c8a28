"""Advice about Ray, its cluster and its job server: provoked and followed, without starting Ray."""

from __future__ import annotations

import asyncio
import collections
import json
import os
import re
import shlex
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.advice import says, told

from multistill.cli.app import main
from multistill.cluster import address, autoscale, jobs, reachable, scratch, session
from multistill.config import ResourcesConfig
from multistill.errors import MultistillError, UsageError
from multistill.pipeline import jobfile

VERSION = {"version": "4", "ray_version": "2.60.0", "ray_commit": "x", "session_name": "x"}


def job_of(submission_id: str, status: str = "RUNNING") -> dict[str, Any]:
    return {
        "type": "SUBMISSION",
        "submission_id": submission_id,
        "job_id": None,
        "status": status,
        "entrypoint": "true",
        "message": "",
    }


class JobServer(ThreadingHTTPServer):
    """What our code asks of Ray's job server; `token` is the cluster's."""

    token = ""

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.jobs = {"multistill-x-1": job_of("multistill-x-1")}
        self.address = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    server: JobServer

    def do_GET(self) -> None:
        sent = self.headers.get("Authorization")
        if self.server.token and sent != f"Bearer {self.server.token}":
            return self._answer("Authentication", 401 if sent is None else 403)
        *_, name = self.path.strip("/").split("/")
        if self.path == "/api/version":
            return self._answer(VERSION)
        if self.path.endswith("/logs"):
            return self._answer({"logs": "epoch 1\n"})
        return self._answer(self.server.jobs.get(name) or list(self.server.jobs.values()))

    def do_POST(self) -> None:
        name = self.path.strip("/").split("/")[-2]
        self.server.jobs[name]["status"] = "STOPPED"
        self._answer({"stopped": True})

    def do_DELETE(self) -> None:
        self.server.jobs.pop(self.path.strip("/").split("/")[-1])
        self._answer({"deleted": True})

    def _answer(self, content: Any, code: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[JobServer]:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    server = JobServer()
    yield server
    server.shutdown()
    server.server_close()


def test_tokens(server: JobServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.token = "geheim"
    (tmp_path / "token").write_text("geheim\n")
    with told("set RAY_AUTH_TOKEN to it, or RAY_AUTH_TOKEN_PATH to the path of its file"):
        jobs.status("multistill-x-1", server.address)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another")
    with told("check that RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH has the token of this cluster"):
        jobs.status("multistill-x-1", server.address)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "geheim")
    assert jobs.status("multistill-x-1", server.address)["status"] == "RUNNING"
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert jobs.status("multistill-x-1", server.address)["status"] == "RUNNING"


def test_a_server_that_does_not_answer(server: JobServer) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        with told("that the address is the dashboard's, and that the tunnel to it is open"):
            jobs.status("multistill-x-1", f"http://127.0.0.1:{port}")
    assert jobs.status("multistill-x-1", server.address)["status"] == "RUNNING"


def test_a_host_that_cannot_be_resolved(server: JobServer) -> None:
    with told("the host `{}` cannot be resolved; check --address"):
        address.refuse_unsafe("http://no-such-host.invalid:8265", has_token=True)
    address.refuse_unsafe(server.address, has_token=True)


def test_a_job_that_the_cluster_does_not_have(server: JobServer) -> None:
    with told("the cluster has no job `{}`; `multistill submit` prints the id", UsageError):
        jobs.status("multistill-y-1", server.address)
    submission = jobs._result(jobs._client(server.address), server.address, "multistill-x-1",
                              waited=False)  # fmt: skip
    assert jobs.status(submission.submission_id, server.address)["status"] == "RUNNING"


def commands(sentence: object) -> list[list[str]]:
    return [shlex.split(text) for text in re.findall(r"`multistill ([^`]*)`", str(sentence))]


def test_commands_about_a_running_job(
    server: JobServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "multistill-x-1"

    async def ctrl_c(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(60)

    async def broken(*_: object) -> None:
        raise OSError("lost")

    async def one_line(_client: object, _name: str, write: Callable[[str], object]) -> None:
        write("epoch 1\n")

    monkeypatch.setattr(jobs, "_tail", ctrl_c)
    with told(
        "follow it again with `multistill logs -f {}`, or end it with `multistill stop {}`"
    ) as interrupted:
        jobs.follow(name, server.address, print)
    monkeypatch.setattr(jobs, "LOST_CONNECTION_SECONDS", -1)
    monkeypatch.setattr(jobs, "_tail", broken)
    with told("may still be running: check it with `multistill status {}`") as lost:
        jobs.follow(name, server.address, print)
    monkeypatch.setattr(jobs, "_tail", one_line)
    follow, stop = commands(interrupted.value)
    [status] = commands(lost.value)
    for command, said in ((status, "running"), (stop, "stopping"), (follow, "epoch 1")):
        with pytest.raises(SystemExit) as end:
            main(command)
        assert end.value.code == 0
        assert said in capsys.readouterr().out
    assert server.jobs[name]["status"] == "STOPPED"


def test_too_many_jobs_of_one_name(server: JobServer) -> None:
    old = ["multistill-a", *(f"multistill-a-{number}" for number in range(2, 1000))]
    server.jobs = {name: job_of(name, "SUCCEEDED") for name in old}
    client = jobs._client(server.address)
    states = dict.fromkeys(old, "SUCCEEDED")
    client = SimpleNamespace(
        list_jobs=lambda: [
            SimpleNamespace(submission_id=name, status=SimpleNamespace(value=value))
            for name, value in states.items()
        ],
        submit_job=lambda submission_id, **_: submission_id,
        delete_job=client.delete_job,
    )
    with told("delete old ones with `ray job delete ID`"):
        jobs._start(client, "multistill-a")
    from ray.dashboard.modules.job.cli import job_cli_group

    assert "delete" in job_cli_group.commands
    client.delete_job("multistill-a-7")
    states = dict.fromkeys(server.jobs, "SUCCEEDED")
    assert jobs._start(client, "multistill-a") == "multistill-a-7"


def test_a_package_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "MAX_UPLOAD", 1000)
    (tmp_path / "code.py").write_bytes(b"x" * 10)
    (tmp_path / "weights.bin").write_bytes(b"x" * 2000)
    with told("move its largest files out of it: {}") as refused:
        jobs._check_size(tmp_path)
    first = str(refused.value).split("out of it: ")[1].split(" (")[0]
    Path(first).rename(tmp_path.parent / "weights.bin")
    jobs._check_size(tmp_path)


class Ray(SimpleNamespace):
    """Ray's view of a cluster that gets nodes after some requests."""

    def __init__(self, *resources: dict[str, float]) -> None:
        super().__init__(left=list(resources))

    def cluster_resources(self) -> dict[str, float]:
        return self.left.pop(0) if len(self.left) > 1 else self.left[0]


def test_a_cluster_without_resources(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(autoscale, "requested", lambda required: nullcontext())
    monkeypatch.setattr(autoscale, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(autoscale, "LOG_SECONDS", 0.0)
    large = {"CPU": 8.0, "GPU": 2.0}

    def wait(resources: ResourcesConfig, *states: dict[str, float]) -> dict[str, float]:
        monkeypatch.setattr(ray, "cluster_resources", Ray(*states).cluster_resources)
        waiting = autoscale.wait_for_resources(
            resources.wait_for, resources.wait_minutes, lambda text: None
        )
        with waiting as available:
            return dict(available)

    with told("set the resources to wait for, e.g. --set resources.wait_for.GPU=2") as refused:
        wait(ResourcesConfig(), {})
    override = str(refused.value).split("--set ")[1].split()[0]
    base = "name: x\ncorpora: [{kind: demo}]\n"
    resources = jobfile.parse(base, "x.yaml", [override]).resources
    assert wait(resources, {}, {}, large) == large
    short = resources.model_copy(update={"wait_minutes": 0.0005})
    with told("lower resources.wait_for, or raise resources.wait_minutes"):
        wait(short, *[{"CPU": 4.0}] * 99, large)
    lower = ResourcesConfig(wait_for={"CPU": 4.0}, wait_minutes=0.0005)
    assert wait(lower, {"CPU": 4.0}) == {"CPU": 4.0}
    assert wait(resources, *[{"CPU": 4.0}] * 99, large) == large


def test_addresses_of_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    dashboard = ResourcesConfig(address="http://127.0.0.1:8265")
    with told("use `multistill submit JOB --address {}`, or `auto` on a node of the") as refused:
        session._address(dashboard)
    named = str(refused.value).split("--address ")[1].split("`")[0]
    assert address.job_server(named) == named
    assert session._address(ResourcesConfig(address="auto")) == "auto"
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        with told("check that it runs, that resources.address or RAY_ADDRESS is right"):
            reachable.check_reachable(f"127.0.0.1:{port}")


def test_scratch_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path / ("a" * 110)))
    for folder, advice in (
        (str(tmp_path / ("a" * 110)), "with a path of at most {} bytes, e.g. RAY_TMPDIR=/tmp"),
        ("/proc/version", "{} that can, e.g. RAY_TMPDIR=/tmp"),
    ):
        monkeypatch.setenv("TMPDIR", folder)
        problem = scratch.scratch_problem()
        assert problem is not None
        says(advice, problem[1])
        says("set RAY_TMPDIR to a folder", problem[1])
        with monkeypatch.context() as patch:
            patch.setenv("RAY_TMPDIR", problem[1].split("RAY_TMPDIR=")[1])
            assert scratch.scratch_problem() is None
    monkeypatch.setenv("TMPDIR", "/tmp")
    full = {Path("/tmp")}
    free = {True: usage(9, 9, 2**20), False: usage(2**40, 0, 2**40)}
    monkeypatch.setattr(scratch.shutil, "disk_usage", lambda path: free[Path(path) in full])
    problem = scratch.scratch_problem()
    assert problem is not None
    says("free some space there, or {} on another disk", problem[1])
    failure = session._failure(None, OSError("No space left on device"))
    says("free some space there, or set RAY_TMPDIR to a folder on another disk", failure)
    with monkeypatch.context() as patch:
        patch.setenv("RAY_TMPDIR", "/var")
        assert scratch.scratch_problem() is None
    full.clear()
    assert scratch.scratch_problem() is None


def test_a_ray_that_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the sentence points to is what Ray writes: its log folder, and a command of Ray."""
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/tmp")
    failure = session._failure(None, RuntimeError("timed out"))
    says("end leftover Ray processes with `ray stop`, and try again", failure)
    from ray._common.utils import get_default_ray_temp_dir
    from ray.scripts.scripts import cli

    assert "stop" in cli.commands
    assert f"{get_default_ray_temp_dir()}/session_latest/logs/*.err" in str(failure)
    assert isinstance(failure, MultistillError)
