"""The batch program of a Slurm job: which run it starts, and why a job was terminated."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from multistill.errors import JobFileError, MultistillError
from multistill.pipeline import jobfile, slurm_job
from multistill.pipeline.slurm_job import Allocation, cpus_per_node, was_cancelled

TASKS = ["--task=--set seed=5", "--task=--set seed=6 --until teacher"]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, list[str]]]:
    """Jobs and commands of the attempts that would have been made."""
    found: list[tuple[Any, list[str]]] = []

    def run(self: slurm_job.SlurmJob) -> int:
        found.append((self.job, self.command))
        return 0

    monkeypatch.setattr(slurm_job.SlurmJob, "run", run)
    monkeypatch.setattr(Allocation, "of", lambda variables: Allocation("7", ["n1"], [4]))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of-another-cluster")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    return found


@pytest.mark.parametrize(("task", "seed", "more"), [(3, 5, []), (4, 6, ["--until", "teacher"])])
def test_a_task_of_an_array_runs_the_job_with_its_options(
    task: int,
    seed: int,
    more: list[str],
    started: list[tuple[Any, list[str]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(task))
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "3")
    file = tmp_path / "t.yaml"
    file.write_text("name: t\ncorpora: [{kind: demo}]\n")
    arguments = [str(file), "--set", "seeds=1", "--workspace", str(tmp_path / "a b"), *TASKS]
    assert slurm_job.main(arguments) == 0
    [(job, command)] = started
    assert (job.seed, job.seeds, job.workspace) == (seed, 1, str(tmp_path / "a b"))
    assert command[:5] == [sys.executable, "-m", "multistill", "run", str(file)]
    assert command[5:] == [
        *("--set", "seeds=1", "--set", f"seed={seed}"),
        *("--set", f'workspace="{tmp_path / "a b"}"', *more),
    ]


def test_a_relative_workspace_is_refused(
    started: list[tuple[Any, list[str]]], tmp_path: Path
) -> None:
    file = tmp_path / "t.yaml"
    file.write_text("name: t\ncorpora: [{kind: demo}]\n")
    with pytest.raises(JobFileError, match="is a relative path"):
        slurm_job.main([str(file)])
    assert not started


@pytest.mark.parametrize(
    ("text", "cpus"), [("4", [4]), ("4(x2)", [4, 4]), ("4(x2),8,1(x3)", [4, 4, 8, 1, 1, 1])]
)
def test_cpus_of_nodes_are_read_as_slurm_writes_them(text: str, cpus: list[int]) -> None:
    assert cpus_per_node(text) == cpus


@pytest.mark.parametrize(
    ("state", "run", "limit", "cancelled"),
    [
        ("CANCELLED", "00:01:00", "01:00:00", True),
        ("COMPLETING", "00:01:00", "01:00:00", True),
        ("COMPLETING", "01:00:20", "01:00:00", False),
        ("COMPLETING", "2-00:00:01", "2-00:00:00", False),
        ("COMPLETING", "5-00:00:00", "UNLIMITED", True),
        ("RUNNING", "00:01:00", "01:00:00", False),
        ("PREEMPTED", "00:01:00", "01:00:00", False),
    ],
)
def test_a_job_beyond_its_limit_was_not_cancelled(
    state: str, run: str, limit: str, cancelled: bool
) -> None:
    job = {"JobState": state, "Reason": "None", "RunTime": run, "TimeLimit": limit}
    assert was_cancelled(job) == cancelled


def test_a_job_of_which_slurm_says_nothing_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_answer(*command: str) -> str:
        raise MultistillError("`scontrol show job` timed out after 60 seconds")

    monkeypatch.setattr(slurm_job, "call_slurm", no_answer)
    assert not was_cancelled(slurm_job._job("7"))


@pytest.mark.parametrize(
    ("variables", "gpus"),
    [
        ({"SLURM_GPUS_ON_NODE": "4"}, 8),
        ({"SLURM_GPUS_ON_NODE": "4", "SLURM_GPUS": "5"}, 5),
        ({"SLURM_GPUS_ON_NODE": "4", "SLURM_GPUS": "a100:4,h100"}, 5),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, 0),
    ],
)
def test_a_run_waits_for_the_cpus_and_gpus_of_all_nodes(
    variables: dict[str, str], gpus: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm_job, "call_slurm", lambda *command: "n1\nn2\n")
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_CPUS_PER_NODE": "4,8"}
    allocation = Allocation.of({**job, **variables})
    said = tmp_path / "arguments"
    program = f"import sys; open({str(said)!r}, 'w').write(' '.join(sys.argv[1:]))"
    config = jobfile.parse("name: t\ncorpora: [{kind: demo}]\n", "t.yaml")
    attempt = slurm_job.SlurmJob(allocation, config, [sys.executable, "-c", program])
    head: Any = SimpleNamespace(address="n1:1")
    assert attempt._run_driver(head) == 0
    waits = "--set resources.address=n1:1 --set resources.wait_for.CPU=12"
    assert said.read_text() == waits + (f" --set resources.wait_for.GPU={gpus}" if gpus else "")
