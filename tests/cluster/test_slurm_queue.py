"""Attempts of Slurm jobs at a real Slurm: time limits, saving, and being queued again."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers import slurm_attempts
from helpers.slurm import INSTALL, Slurm, missing_programs, running_slurm

from multistill import pipeline
from multistill.cluster.slurm import Part, SlurmRequest, render, submit_to_slurm
from multistill.pipeline import jobfile
from multistill.workspace import Workspace, read_json

pytestmark = pytest.mark.skipif(
    bool(missing_programs()), reason=f"Slurm is not installed; {INSTALL}"
)
KINDS = ("saves", "slow", "futile", "fails", "cancelled", "terminated")


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    with running_slurm() as slurm:
        yield slurm


JOB = """
name: slurm
seed: 3
workspace: {home}/workspace
corpora: [{{kind: table, path: {home}/corpus/t.csv}}]
split: {{by: speaker, valid: 0.2, test: 0.2}}
features:
  speech: {{model: log-mel}}
  text: {{model: hashed-ngrams}}
distillation: {{targets: in-sample}}
teacher:
  model: {{preset: light-multimodal-student}}
  train: {{epochs: 30, batch_size: 8, patience: 30, workers: 2}}
students: [{{name: audio, model: {{preset: light-student-s}}}}]
"""


@pytest.fixture(scope="module")
def sent(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The folder of jobs that need no Ray, and their ids by kind. They end while others run."""
    folder = tmp_path_factory.mktemp("jobs")
    ids: dict[str, str] = {}
    for kind in KINDS:
        script = folder / f"{kind}.sbatch"
        program = [sys.executable, slurm_attempts.__file__, str(folder), kind]
        request = SlurmRequest(time="1:00:00", save_before=60)
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
    return folder, ids


@pytest.fixture
def ended(slurm: Slurm, sent: tuple[Path, dict[str, str]]) -> dict[str, tuple[Path, str]]:
    """The same jobs when they have ended, by kind: the folder of their files, and their id."""
    folder, ids = sent

    def done() -> bool:
        states = [slurm.job(job_id)["JobState"] for job_id in ids.values()]
        return not {"RUNNING", "PENDING", "COMPLETING"} & set(states)

    slurm.wait(done, "the end of the jobs")
    return {kind: (folder, job_id) for kind, job_id in ids.items()}


def make_corpus(folder: Path) -> None:
    folder.mkdir()
    random = np.random.default_rng(0)
    lines = ["audio_path,text,label,speaker"]
    for number in range(30):
        pitch = (1 + number % 2) * random.uniform(200, 240)
        wave = 0.3 * np.sin(2 * np.pi * pitch * np.arange(8_000 + 100 * number) / 16_000)
        soundfile.write(folder / f"{number}.wav", wave, 16_000)
        lines.append(
            f"{number}.wav,{'good' if number % 2 else 'bad'} day,"
            f"{('sad', 'anger')[number % 2]},p{number // 6}"
        )
    (folder / "t.csv").write_text("\n".join(lines), encoding="utf-8")


@pytest.mark.timeout(1200)
def test_a_job_on_two_nodes_that_was_interrupted_has_the_result_of_an_undisturbed_run(
    slurm: Slurm,
    sent: object,
    ray_session: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("PATH", "SLURM_CONF"):
        monkeypatch.setenv(name, slurm.environment[name])
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "120")
    make_corpus(tmp_path / "corpus")
    job = jobfile.parse(JOB.format(home=tmp_path), "job.yaml")
    pipeline.run(job, until="statistics")
    other = job.model_copy(update={"workspace": str(tmp_path / "other")})
    shutil.copytree(job.workspace, other.workspace)
    parts = [Part("run", ["--until", "teacher"])]
    request = SlurmRequest(nodes=2, cpus_per_task=2, time="30", save_before=60)
    submission = submit_to_slurm(other, request, parts)
    job_id = submission.ids["run"]
    again = submit_to_slurm(other, request, parts)
    assert (again.ids, again.submitted) == (submission.ids, False)

    log = submission.folder / f"run-{job_id}.log"
    teacher = Path(other.workspace) / "teacher"
    try:
        slurm.wait(lambda: any(teacher.glob(".*.partial/**/epoch-*")), "the first epoch", 400)
        token = tmp_path / ".multistill" / f"slurm-{job_id}" / "ray-token"
        secret = token.read_text()
        assert (token.stat().st_mode & 0o777, token.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        assert secret not in slurm.call("scontrol", "show", "job", "-dd", job_id)
        assert not [path for path in Path("/proc").glob("[0-9]*/cmdline") if holds(path, secret)]
        slurm.call("scancel", "--batch", "--signal=USR1", job_id)  # as the queue does
        slurm.wait(lambda: "queued again" in log.read_text(), "the queueing", 200)
        assert not token.exists() and not any(Path("/tmp").glob(f"ms-{job_id}*"))
        slurm.wait(lambda: slurm.job(job_id)["JobState"] == "COMPLETED", "the end", 400)
    except AssertionError as error:
        raise AssertionError(log.read_text() if log.exists() else "no log") from error

    said = log.read_text()
    assert "with n2" in said and said.count("ray node 127.0.0.1 on") == 2
    assert slurm.job(job_id)["Restarts"] == "1"
    [model] = Workspace(other.workspace).root.glob("models/*/model.safetensors")
    undisturbed = pipeline.run(job, until="teacher").stages["teacher"].summary["models"]
    [entry] = undisturbed.values()
    assert model.parent.name == entry["fingerprint"]
    folder = Workspace(job.workspace).folder("models", entry["fingerprint"])
    assert losses(folder) == losses(model.parent)
    assert model.read_bytes() == (folder / "model.safetensors").read_bytes()


def losses(folder: Path) -> list[tuple[float, float]]:
    epochs = read_json(folder / "history.json")["epochs"]
    return [(epoch["train_loss"], epoch["valid_loss"]) for epoch in epochs]


def holds(path: Path, secret: str) -> bool:
    try:
        return secret.encode() in path.read_bytes()
    except OSError:  # the process has ended
        return False


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
