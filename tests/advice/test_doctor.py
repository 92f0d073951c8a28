"""What the doctor says to do: each fix is provoked, and the same check passes once it is done."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.advice import says
from helpers.features_case import save_electra

from multistill import doctor
from multistill.config import FeaturesConfig, JobConfig
from multistill.doctor import Finding
from multistill.pipeline import jobfile

Usage = namedtuple("Usage", "total used free")
PLENTY = Usage(2**40, 0, 2**40)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("MLFLOW_TRACKING_URI", "RAY_AUTH_TOKEN_PATH", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def job(
    tmp_path: Path, more: str = "", corpora: str = "[{kind: demo}]", ws: str = "ws"
) -> JobConfig:
    text = f"name: x\nworkspace: {tmp_path / ws}\ncorpora: {corpora}\n{more}"
    return jobfile.parse(text, "x.yaml")


def fixes(findings: Iterator[Finding]) -> list[str]:
    """What to do about what is wrong."""
    found = list(findings)
    assert all(finding.ok == (not finding.fix) for finding in found)
    return [finding.fix for finding in found if not finding.ok]


def test_memory(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.sysconf
    pages = {"SC_PHYS_PAGES": 2**17}
    monkeypatch.setattr(os, "sysconf", lambda name: pages.get(name) or real(name))
    [fix] = fixes(doctor._machine(None))
    says("use a larger machine, or a cluster with `multistill submit`", fix)
    pages["SC_PHYS_PAGES"] = 2**24
    assert fixes(doctor._machine(None)) == []


def test_disks(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = {Path("/"): PLENTY}
    monkeypatch.setattr(
        doctor.shutil, "disk_usage", lambda path: free.get(Path(path), free[Path("/")])
    )
    assert fixes(doctor._disk(job(home))) == []
    free[Path("/dev/shm")] = Usage(2**26, 0, 2**26)
    if Path("/dev/shm").is_dir():
        [fix] = fixes(doctor._disk(job(home)))
        says("start the container with --shm-size=2g or more", fix)
        free[Path("/dev/shm")] = Usage(2 * 2**30, 0, 2**30)
        assert fixes(doctor._disk(job(home))) == []
    free[home] = Usage(2**40, 2**40, 2**29)
    [fix] = fixes(doctor._disk(job(home)))
    says("free some space: at least {} GiB are recommended", fix)
    needed = int(fix.split("at least ")[1].split()[0])
    free[home] = Usage(2**40, 0, needed * 2**30)
    assert fixes(doctor._disk(job(home))) == []
    with monkeypatch.context() as patch:  # root may write everywhere
        (home / "denied").mkdir()
        patch.setattr(os, "access", lambda path, mode: Path(path) != home / "denied")
        [fix] = fixes(doctor._disk(job(home, ws="denied/ws")))
        says("choose another with --workspace", fix)
        assert fixes(doctor._disk(job(home))) == []


def test_audio_and_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    import soundfile
    import torch

    with monkeypatch.context() as patch:
        patch.setattr(soundfile, "available_formats", lambda: {"WAV": ""})
        [fix] = fixes(doctor._audio(None))
        says("reinstall soundfile: its wheels contain a complete libsndfile", fix)
    assert fixes(doctor._audio(None)) == [], "the tests run with a wheel"
    monkeypatch.setattr("multistill.hardware.local_gpus", lambda: 1)
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        [fix] = fixes(doctor._gpu(None))
        says("install the driver that this torch version needs, or a torch build with CUDA", fix)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "a GPU")
    assert fixes(doctor._gpu(None)) == []


def test_corpora_and_encoders(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = f"[{{kind: emodb, path: {home / 'data'}}}]"
    [fix] = fixes(doctor._corpora(job(home, corpora=where)))
    says("correct its `path`, or mount its storage", fix)
    (home / "data").mkdir()
    assert fixes(doctor._corpora(job(home, corpora=where))) == []
    model = home / "electra"
    model.mkdir()
    [fix] = fixes(doctor._encoders(job_with(home, str(model))))
    says("give a folder written by save_pretrained", fix)
    save_electra(model)
    assert fixes(doctor._encoders(job_with(home, str(model)))) == []
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    [fix] = fixes(doctor._encoders(job_with(home, "org/some-model")))
    says("run `hf download {}` on a machine with network access, or give a folder", fix)
    command = shlex.split(fix.split("`")[1])
    program = Path(sys.executable).parent / command[0]
    done = subprocess.run([program, *command[1:]], capture_output=True, text=True)
    assert "offline mode is enabled" in done.stderr, "all that it lacks is the network access"
    monkeypatch.delenv("HF_HUB_OFFLINE")
    reached = False

    def model_info(*_: object, **__: object) -> SimpleNamespace:
        if not reached:
            raise ConnectionError
        return SimpleNamespace(sha="c0ffee")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    [fix] = fixes(doctor._encoders(job_with(home, "org/some-model")))
    says(
        "correct the name, connect this machine to the model hub, or run `hf download {}` where it "
        "is connected and copy the folder",
        fix,
    )
    reached = True
    assert fixes(doctor._encoders(job_with(home, "org/some-model"))) == []
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    cached = home / "snapshot" / "config.json"
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: str(cached))
    assert fixes(doctor._encoders(job_with(home, "org/some-model"))) == [], "what it does"


def job_with(home: Path, text_model: str) -> Any:
    features = FeaturesConfig.model_validate({"text": {"model": text_model}})
    return SimpleNamespace(features=features)  # a job file with a broken folder is refused


def test_tracking(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "TRACKING_TIMEOUT_SECONDS", 3.0)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{closed.getsockname()[1]}"
        [fix] = fixes(doctor._tracking(job(home, f"tracking: {{uri: '{uri}'}}\n")))
        says("start the server, correct tracking.uri, or set tracking.required: false", fix)
    # What `required: false` does is in test_advice_about_the_address_of_mlflow.
    assert fixes(doctor._tracking(job(home, f"tracking: {{uri: 'sqlite:///{home}/m.db'}}\n"))) == []


def test_secrets(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fixes(doctor._secrets(None)) == []
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://ann:geheim@mlflow.lab")
    [fix] = fixes(doctor._secrets(None))
    says("use MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD", fix)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.lab")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "geheim")
    assert fixes(doctor._secrets(None)) == []
    token = home / "a folder" / "token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    [fix] = fixes(doctor._secrets(None))
    says("write the cluster's token into that file, or unset the variable", fix)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    assert fixes(doctor._secrets(None)) == []
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    token.parent.mkdir()
    token.touch(0o600)
    assert fixes(doctor._secrets(None)) == [fix], "it is empty"
    token.write_text("geheim")
    assert fixes(doctor._secrets(None)) == []
    token.chmod(0o644)
    for folder in (token.parent, home):
        folder.chmod(0o755)
    [fix] = fixes(doctor._secrets(None))
    says("run `{}`", fix)
    subprocess.run(shlex.split(fix.split("`")[1]), check=True)
    assert fixes(doctor._secrets(None)) == []


def test_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from multistill import cluster

    @cluster.session.contextmanager
    def started(resources: object) -> Iterator[dict[str, float]]:
        yield {"CPU": 2.0}

    answers: list[Exception | None] = [TimeoutError(), None]

    def get(reference: object, timeout: float) -> None:
        if error := answers.pop(0):
            raise error

    task = SimpleNamespace(remote=lambda: None)
    monkeypatch.setattr(cluster, "start", started)
    monkeypatch.setattr(ray, "remote", lambda **_: lambda function: task)
    monkeypatch.setattr(ray, "get", get)
    with monkeypatch.context() as patch:
        patch.setattr(socket, "gethostname", lambda: "no-such-host.invalid")
        name, busy = fixes(doctor._ray(None))
    says("add it to /etc/hosts", name)
    says("check that the machine is not overloaded and no firewall blocks local", busy)
    with monkeypatch.context() as patch:
        patch.setattr(socket, "gethostname", lambda: "localhost")  # which stands in /etc/hosts
        assert "localhost" in Path("/etc/hosts").read_text()
        assert fixes(doctor._ray(None)) == []
