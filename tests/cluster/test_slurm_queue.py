"""Attempts of Slurm jobs at a real Slurm: time limits, saving, and being queued again."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from helpers import slurm_attempts
from helpers.slurm import INSTALL, Slurm, missing_programs, running_slurm

from multistill.cluster.slurm import Request, render

pytestmark = pytest.mark.skipif(
    bool(missing_programs()), reason=f"Slurm is not installed; {INSTALL}"
)
KINDS = ("saves", "slow", "futile", "fails", "cancelled", "terminated")


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    with running_slurm() as slurm:
        yield slurm


@pytest.fixture(scope="module")
def ended(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    """Jobs that ran side by side, by kind: the folder of their files, and their id."""
    folder = tmp_path_factory.mktemp("jobs")
    ids: dict[str, str] = {}
    for kind in KINDS:
        script = folder / f"{kind}.sbatch"
        program = [sys.executable, slurm_attempts.__file__, str(folder), kind]
        request = Request(time="1:00:00", save_before=60)
        script.write_text(render(request, program, name=kind, log=f"{folder}/{kind}.log"))
        ids[kind] = slurm.call("sbatch", "--parsable", str(script)).strip()
    for kind in KINDS:
        if kind != "fails":
            slurm.wait((folder / f"{kind}.started").exists, f"the start of `{kind}`")
    # The queue looks at limits every half minute. The job `slow` is then beyond its own and is
    # terminated at once; the signal of the others comes a minute before theirs.
    for kind, seconds in (("saves", 50), ("slow", 1), ("futile", 50)):
        end = datetime.now() + timedelta(seconds=seconds)
        slurm.call("scontrol", "update", f"JobId={ids[kind]}", f"EndTime={end:%FT%T}")
    slurm.call("scancel", ids["cancelled"])
    slurm.call("scancel", "--batch", "--signal=TERM", ids["terminated"])

    def done() -> bool:
        states = [slurm.job(job_id)["JobState"] for job_id in ids.values()]
        return not {"RUNNING", "PENDING", "COMPLETING"} & set(states)

    slurm.wait(done, "the end of the jobs")
    return {kind: (folder, job_id) for kind, job_id in ids.items()}


@pytest.mark.parametrize("kind", ["saves", "slow", "terminated"])
def test_an_interrupted_job_is_queued_again_and_finishes(
    slurm: Slurm, ended: dict[str, tuple[Path, str]], kind: str
) -> None:
    folder, job_id = ended[kind]
    log = (folder / f"{kind}.log").read_text()
    job = slurm.job(job_id)
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1"), log
    assert (folder / kind).read_text() == "done"
    assert log.count("the run saves and stops") == 1
    assert log.count("queued again") == 1


@pytest.mark.parametrize(
    ("kind", "state", "code", "reason"),
    [
        ("futile", "FAILED", "1:0", "nothing was finished or saved in this attempt"),
        ("fails", "FAILED", "3:0", "the job failed by itself (exit code 3)"),
        ("cancelled", "CANCELLED", None, "the job was cancelled"),
    ],
)
def test_a_job_is_not_queued_again_without_need(
    slurm: Slurm,
    ended: dict[str, tuple[Path, str]],
    kind: str,
    state: str,
    code: str | None,
    reason: str,
) -> None:
    folder, job_id = ended[kind]
    job = slurm.job(job_id)
    log = (folder / f"{kind}.log").read_text()
    assert (job["JobState"], job["Restarts"]) == (state, "0"), log
    assert code is None or job["ExitCode"] == code
    assert reason in log
    assert "is queued again and will continue" not in log
