"""The doctor reports every problem with its fix, prints no secret and never raises."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from multistill import doctor
from multistill.config import JobConfig
from multistill.doctor import Finding
from multistill.pipeline import jobfile


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("MLFLOW_TRACKING_URI", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def job(tmp_path: Path, more: str = "", corpora: str = "[{kind: demo}]") -> JobConfig:
    text = f"name: x\nworkspace: {tmp_path / 'ws'}\ncorpora: {corpora}\n{more}"
    return jobfile.parse(text, "x.yaml")


def named(findings: list[Finding], name: str) -> list[Finding]:
    return [finding for finding in findings if finding.name == name]


@pytest.mark.ray
def test_a_healthy_machine_has_no_problems(
    home: Path, ray_session: None, capsys: pytest.CaptureFixture[str]
) -> None:
    findings = doctor.examine(job(home))
    machine_dependent = {"machine", "disk", "gpu"}  # may fail on the machine that runs the tests
    assert [f for f in findings if not f.ok and f.name not in machine_dependent] == []
    assert all(f.ok == (not f.fix) for f in findings)
    names = {finding.name for finding in findings}
    assert names == {
        *("machine", "disk", "audio", "gpu", "corpora", "encoders"),
        *("tracking", "secrets", "stages", "ray"),
    }
    assert "runs tasks (4 CPUs" in named(findings, "ray")[0].sentence
    doctor.render(findings)
    assert "untrained-electra is a stand-in" in capsys.readouterr().out


def test_every_problem_is_reported_with_its_fix(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_ray", lambda job: iter(()))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home / "missing-token"))
    credentials = home / ".mlflow" / "credentials"
    credentials.parent.mkdir()
    credentials.write_text("[mlflow]\npassword = geheim99\n")
    for path in (home, credentials.parent):
        path.chmod(0o755)
    credentials.chmod(0o644)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        monkeypatch.setenv(
            "MLFLOW_TRACKING_URI", f"http://ann:geheim99@127.0.0.1:{sock.getsockname()[1]}"
        )
        findings = doctor.examine(
            job(
                home,
                "features: {speech: {model: org/unknown-speech}}\n",
                f"[{{kind: emodb, path: {home / 'missing'}}}]",
            )
        )
    problems = {finding.name for finding in findings if not finding.ok}
    assert problems == {"corpora", "encoders", "tracking", "secrets"}
    assert all(finding.fix for finding in findings if not finding.ok)
    assert "geheim99" not in str(findings)
    assert len([f for f in named(findings, "secrets") if not f.ok]) == 3
    assert "missing-token" in named(findings, "secrets")[1].sentence


def test_a_check_that_raises_is_a_finding(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(job: JobConfig | None) -> None:
        raise RuntimeError("no such device")

    for name in ("_ray", "_gpu", "_disk"):
        monkeypatch.setattr(doctor, name, broken)
    findings = doctor.examine()
    assert [f.sentence for f in named(findings, "gpu")] == ["RuntimeError: no such device"]
    assert named(findings, "machine")[0].ok
