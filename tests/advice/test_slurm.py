"""Advice about jobs in Slurm's queue: provoked and followed, without Slurm."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.advice import says, told

from multistill.cli.app import main
from multistill.cluster import ray_node, slurm
from multistill.cluster.slurm import Part, SlurmRequest, submit_to_slurm
from multistill.config import JobConfig
from multistill.errors import UsageError
from multistill.pipeline import jobfile, slurm_job
from multistill.pipeline.parts import parts_of


def job(workspace: Path, more: str = "") -> JobConfig:
    text = f"name: t\nworkspace: {workspace}\ncorpora: [{{kind: demo}}]\n{more}"
    return jobfile.parse(text, "t.yaml")


@pytest.mark.parametrize(
    ("wrong", "advice", "right"),
    [
        (
            {"time": "tomorrow"},
            "--time {}: write MINUTES, HOURS:MINUTES:SECONDS or DAYS-HOURS",
            [{"time": "90"}, {"time": "1:30:00"}, {"time": "1-6"}],
        ),
        (
            {"time": "5", "save_before": 300},
            "before the limit; raise --time or lower --save-before",
            [{"time": "10", "save_before": 300}, {"time": "5", "save_before": 60}],
        ),
        (
            {"options": ["constraint=a100"]},
            "--sbatch `{}` is no option of sbatch; write one in one word, e.g. ",
            [{"options": ["--constraint=a100"]}],
        ),
        (
            {"options": ["--signal=INT@5"]},
            "--sbatch `{}`: the script sets {} itself; remove it, or write another script",
            [{}],
        ),
        (
            {"options": ["-N2"]},
            "--sbatch `{}`: the script sets {} itself; remove it, or write another script",
            [{"nodes": 2}],
        ),
    ],
)
def test_what_is_asked_of_slurm(
    wrong: dict[str, Any], advice: str, right: list[dict[str, Any]]
) -> None:
    with told(advice, UsageError):
        SlurmRequest(**wrong).check()
    for values in right:
        SlurmRequest(**values).check()


@pytest.mark.parametrize(
    ("array", "more", "advice", "right"),
    [
        (
            "split.seed",
            "",
            "--array {}: write `seeds`, or a key of the job file with its values, e.g. ",
            [("split.seed=1,2,3", ""), ("seeds", "seeds: 2\n")],
        ),
        (
            "seeds",
            "",
            "the job trains nothing with several seeds; set `seeds` of the job file, or leave",
            [("seeds", "seeds: 2\n"), (None, "")],
        ),
        (
            "seeds",
            "seeds: 2\nteacher: {seeds: 2}\n",
            "of its own (teacher.seeds), which one task would not train; leave --array out",
            [(None, "seeds: 2\nteacher: {seeds: 2}\n")],
        ),
    ],
)
def test_arrays(
    array: str, more: str, advice: str, right: list[tuple[str | None, str]], tmp_path: Path
) -> None:
    with told(advice, UsageError):
        parts_of(job(tmp_path, more), array)
    for other, text in right:
        assert parts_of(job(tmp_path, text), other)


def test_a_machine_without_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with told(
        "submit from a login node of the Slurm cluster, or print the script with", UsageError
    ):
        submit_to_slurm(job(tmp_path / "ws"), SlurmRequest(), [Part("run")])
    assert not (tmp_path / "ws").exists()
    assert slurm.scripts(job(tmp_path / "ws"), SlurmRequest(), [Part("run")])
    with told("this is no Slurm job; send the batch script with `sbatch`, or use `multistill sub"):
        slurm_job.Allocation.of({})


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    assert isinstance(end.value.code, int)
    return end.value.code


def test_where_a_job_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    file = tmp_path / "t.yaml"
    file.write_text(f"name: t\nworkspace: {tmp_path}\ncorpora: [{{kind: demo}}]\n")
    assert run("submit", str(file)) == 2
    says("say where the job runs: --address http://HEAD:8265, or --slurm", capsys.readouterr().err)
    assert run("submit", str(file), "--address", "http://x", "--array", "seeds") == 2
    sentence = capsys.readouterr().err
    says("{} is an option of Slurm's queue; add --slurm, or leave it out", sentence)
    assert run("submit", str(file), "--slurm", "--dry-run", "--no-wait") == 2
    says("--slurm never follows the log; leave --no-wait out", capsys.readouterr().err)
    assert run("submit", str(file), "--slurm", "--dry-run") == 0


def test_a_folder_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ms-7-0").mkdir()
    mine = os.getuid()
    monkeypatch.setattr("os.getuid", lambda: mine + 1)
    with told("{} belongs to another user; set RAY_TMPDIR to a folder of your own on every node"):
        ray_node.private_folder(tmp_path / "ms-7-0")
    monkeypatch.setattr("os.getuid", lambda: mine)
    assert ray_node.private_folder(tmp_path / "own" / "ms-7-0").is_dir()


def attempt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> slurm_job.SlurmJob:
    monkeypatch.setattr(slurm_job, "_job", lambda job_id: {"JobState": "RUNNING"})
    made = slurm_job.SlurmJob(slurm_job.Allocation("7", ["n1"], [4]), job(tmp_path), [])
    made.ending = signal.SIGUSR1.name
    return made


def test_an_attempt_that_got_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(slurm_job, "call_slurm", lambda *command: "")
    made = attempt(monkeypatch, tmp_path)
    assert made._try_again(frozenset()) == 1
    says(
        "again; raise --time, or lower --save-before, and submit it again", capsys.readouterr().out
    )
    monkeypatch.setattr(slurm_job, "reached", lambda job: frozenset(["teacher"]))
    assert made._try_again(frozenset()) == 0


def test_a_queue_that_takes_no_job_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*command: object, **_: object) -> None:
        raise subprocess.CalledProcessError(1, "scontrol", stderr="Requested operation is disabled")

    monkeypatch.setattr(
        slurm, "subprocess", SimpleNamespace(run=refuse, SubprocessError=subprocess.SubprocessError)
    )
    monkeypatch.setattr(slurm_job, "reached", lambda job: frozenset(["teacher"]))
    assert attempt(monkeypatch, tmp_path)._try_again(frozenset()) == 1
    text = capsys.readouterr().out
    says("{}; submit the job again to continue it", text)
    assert "disabled" in text


def test_a_queue_that_ends_the_program_that_asked_it_has_taken_the_job_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ended(*command: object, **_: object) -> None:
        raise subprocess.CalledProcessError(-signal.SIGTERM, "scontrol")

    monkeypatch.setattr(
        slurm, "subprocess", SimpleNamespace(run=ended, SubprocessError=subprocess.SubprocessError)
    )
    monkeypatch.setattr(slurm_job, "reached", lambda job: frozenset(["teacher"]))
    assert attempt(monkeypatch, tmp_path)._try_again(frozenset()) == 0
    says("the job is queued again and will continue", capsys.readouterr().out)
