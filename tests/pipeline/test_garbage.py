"""What `gc` deletes: nothing that a job, a report or a live process needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from helpers.finished_jobs import key_of
from hypothesis import given, settings
from hypothesis import strategies as st

from multistill.cli.app import main
from multistill.config import JobConfig
from multistill.errors import UsageError
from multistill.forecast.rates import Rates
from multistill.forecast.record import forecast_file
from multistill.pipeline.drivers import Driver, read_drivers
from multistill.pipeline.garbage import artifact_kinds, delete, find_garbage, seconds_of
from multistill.pipeline.recipes import RECIPES, get_recipe, steps_of
from multistill.pipeline.stage_status import status
from multistill.pipeline.variants import job_file
from multistill.tracking.journal import Journal
from multistill.workspace import Artifact, Workspace, fingerprint, write_atomic

DAY = 86400.0
TABLE = "audio_path,text,label,speaker,session\n"


def code_of(*arguments: object) -> object:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return end.value.code


def make_job(root: Path, number: int, **more: Any) -> JobConfig:
    """A job of a corpus of its own, which is there."""
    corpus = root.parent / f"corpus-{number}" / "t.csv"
    corpus.parent.mkdir(exist_ok=True)
    corpus.write_text(TABLE)
    values = {
        "name": f"job-{number}",
        "workspace": str(root),
        "corpora": [{"kind": "table", "path": str(corpus)}],
        "students": [{"name": "a", "model": {"preset": "small-audio-student"}}],
        **more,
    }
    return JobConfig.model_validate(values)


def add_model(root: Workspace, of: str, inputs: Mapping[str, str]) -> str:
    name = fingerprint("models", 1, {"of": of}, inputs)
    root.make("models", name, lambda out: _write(out, "model.safetensors"), inputs=inputs)
    return name


def _write(out: Path, name: str) -> None:
    (out / name).write_bytes(bytes(1000))


def work(job: JobConfig, stages: int, *, noted: bool = True) -> dict[str, Artifact]:
    """The first stages of a job as if it had run, with the summaries that others need."""
    root, artifacts = Workspace(job.workspace), dict[str, Artifact]()
    if noted:
        write_atomic(job_file(root.root, job.name, key_of(job)), job.to_yaml())
    for step in steps_of(job, root)[:stages]:
        name, inputs = step.fingerprint(artifacts), step.inputs(artifacts)
        summary: dict[str, Any] = {"content": f"content of {job.corpora[0].path}"}
        if step.name in ("teacher", "students"):
            model = add_model(root, step.name, inputs)
            entry = {"fingerprint": model, "record_id": None, "role": "x", "seed": 1, "fold": None}
            summary["models"] = {step.name: entry}

        def build(out: Path, summary: Mapping[str, Any] = summary) -> Mapping[str, Any]:
            _write(out, "content")
            _write(out, "soft_targets.parquet")
            return summary

        artifacts[step.artifact] = root.make(
            step.kind, name, build, config=step.config(), inputs=inputs
        )
    return artifacts


@pytest.fixture(autouse=True)
def intact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Manifests without content."""
    monkeypatch.setattr("multistill.corpora.prepare.is_current", lambda *_: True)


def states(job: JobConfig) -> list[str]:
    return [entry.state for entry in status(job)]


def trees(root: Path) -> set[Path]:
    found = {path.relative_to(root) for path in root.rglob("*")}
    return {path for path in found if path.parts[0] != "locks"}


@settings(max_examples=12, deadline=None)
@given(
    stages=st.lists(st.integers(0, 6), min_size=1, max_size=3),
    deleted=st.sets(st.integers(0, 2)),
)
def test_every_known_job_finds_its_stages_after_any_collection(
    tmp_path_factory: pytest.TempPathFactory, stages: list[int], deleted: set[int]
) -> None:
    root = tmp_path_factory.mktemp("gc") / "ws"
    jobs = [make_job(root, number) for number in range(len(stages))]
    # Jobs 0 and 2 share a corpus, so they share what does not depend on the seed.
    if len(jobs) == 3:
        jobs[2] = make_job(root, 0, name="job-2", seed=77)
    for number, (job, count) in enumerate(zip(jobs, stages, strict=True)):
        work(job, count, noted=number not in deleted)
    known = [job for number, job in enumerate(jobs) if number not in deleted]
    before = [states(job) for job in known]
    models = {model for job in known for model in _models(job)}
    shown = find_garbage(root, 0.0) if root.exists() else None
    untouched = trees(root) if root.exists() else set()
    assert shown is None or trees(root) == untouched, "looking changes nothing"
    if root.exists():
        garbage, gone = delete(root, 0.0)
        assert {item.path for item in gone} == {item.path for item in garbage.items}
        assert not find_garbage(root, 0.0).items, "the second time, there is nothing left"
    assert [states(job) for job in known] == before
    assert models <= {path.name for path in (root / "models").glob("[!.]*")}
    if not known and root.exists():
        assert {path.parts[0] for path in trees(root) if len(path.parts) > 1} == set()


def _models(job: JobConfig) -> set[str]:
    """Models of the finished stages, and those that an unfinished one would find."""
    root = Workspace(job.workspace)
    return {
        str(entry["fingerprint"])
        for found in status(job)
        if found.state == "done" and found.fingerprint
        for artifact in [root.find(found.stage, found.fingerprint)]
        if artifact is not None
        for entry in artifact.summary.get("models", {}).values()
    }


def test_what_only_a_forgotten_job_needs_goes_and_what_others_share_stays(tmp_path: Path) -> None:
    root = tmp_path / "ws"
    stays, goes = make_job(root, 1), make_job(root, 1, name="other", seed=5)
    work(stays, 6)
    work(goes, 6)
    before = states(stays)
    garbage = find_garbage(root, 7 * DAY, ["other"])
    kinds = sorted({item.kind for item in garbage.items})
    assert kinds == ["distill", "job", "models", "students", "teacher"], "the rest is shared"
    assert find_garbage(root, 7 * DAY).items == [], "it is too young to go unasked"
    delete(root, 7 * DAY, ["other"])
    assert states(stays) == before
    assert not job_file(root, "other", key_of(goes)).exists()
    with pytest.raises(UsageError, match="no job called `other`"):
        find_garbage(root, 0.0, ["other"])


def test_a_running_job_keeps_everything_until_it_knows_what_it_needs(tmp_path: Path) -> None:
    root = tmp_path / "ws"
    work(make_job(root, 1), 3, noted=False)  # of a deleted job; the new one will find them
    job = make_job(root, 1, seed=9)
    with Driver(Workspace(root), job, key_of(job)):
        assert {item.kind for item in find_garbage(root, 0.0).items} == set()
        work(job, 3)
        assert states(job).count("done") == 3
        delete(root, 0.0)
        assert states(job).count("done") == 3
        with pytest.raises(UsageError, match="stop it first"):
            find_garbage(root, 0.0, [f"{job.name}@{key_of(job)[:8]}"])


def test_a_job_that_cannot_be_read_protects_all_unless_it_recorded_its_stages(
    tmp_path: Path,
) -> None:
    root = tmp_path / "ws"
    work(make_job(root, 1), 3, noted=False)
    lost = make_job(root, 2)
    artifacts = work(lost, 2)
    Path(lost.corpora[0].path).unlink()
    garbage = find_garbage(root, 0.0)
    assert not garbage.items and list(garbage.incomplete) == [f"{lost.name}@{key_of(lost)[:6]}"]
    with Driver(Workspace(root), lost, key_of(lost)) as driver:
        driver.works()
        for stage, artifact in artifacts.items():
            driver.artifact(stage, artifact.kind, artifact.fingerprint)
    _, gone = delete(root, 0.0)
    assert {item.kind for item in gone} == {"prepare", "features", "statistics"}
    assert all(artifact.path.is_dir() for artifact in artifacts.values())
    assert len(read_drivers(root)) == 1


def test_partial_folders_go_once_nobody_builds_them(tmp_path: Path) -> None:
    root = Workspace(tmp_path)
    names = {who: fingerprint("features", 1, who, {}) for who in ("dead", "built", "joined")}
    for name in names.values():
        root.partial("features", name).mkdir(parents=True)
    young = find_garbage(tmp_path, DAY)
    assert young.items == []
    (root.partial("features", names["joined"]) / "drivers").mkdir()
    with (
        root.lock(f"features-{names['built']}"),
        FileLock(root.partial("features", names["joined"]) / "drivers" / "a"),
    ):
        _, gone = delete(tmp_path, 0.0)
        assert [item.path for item in gone] == [root.partial("features", names["dead"])]
    assert len(delete(tmp_path, 0.0)[1]) == 2


def test_an_artifact_under_construction_is_not_taken_even_if_it_was_listed(tmp_path: Path) -> None:
    root = Workspace(tmp_path)
    name = fingerprint("features", 1, "x", {})
    root.make("features", name, lambda out: None)
    [item] = find_garbage(tmp_path, 0.0).items
    with root.lock(f"features-{name}"):
        assert item.take() is None
        garbage, gone = delete(tmp_path, 0.0)
        assert gone == [] and garbage.kept == {item.path: "is in use"}
    assert root.find("features", name)
    assert item.take() and not root.find("features", name)
    assert item.take() is None, "somebody else was faster"


def test_a_run_that_starts_waits_while_folders_are_renamed(tmp_path: Path) -> None:
    root, job = Workspace(tmp_path), make_job(tmp_path / "ws", 1)
    with root.lock("drivers"):
        started = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import sys\nfrom filelock import FileLock\n"
                "print('begins', flush=True)\n"
                "FileLock(sys.argv[1]).acquire(); print('in', flush=True)",
                str(tmp_path / "locks" / "drivers.lock"),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert started.stdout and started.stdout.readline() == "begins\n"
        assert started.poll() is None
    assert started.stdout.readline() == "in\n"
    started.wait()
    with Driver(root, job, key_of(job)):
        assert len(read_drivers(tmp_path)) == 1


def test_delivered_journals_go_and_others_stay(tmp_path: Path) -> None:
    spool = tmp_path / "tracking"
    journals = {who: Journal.create(spool, {"owner": {}}) for who in ("sent", "waiting", "live")}
    for who, journal in journals.items():
        journal.append({"op": "tags"})
        if who != "waiting":
            journal.mark_sent(journal.size)
        if who != "live":
            journal.release()
    doubtful = Journal.create(spool, {"owner": {}})
    doubtful.mark_sent(doubtful.size)
    doubtful.write_doubts({"requests": [{}]})
    doubtful.release()
    full = Journal.create(spool, {"owner": {}})
    full.mark_sent(full.size)
    full.defer({"op": "artifact", "node": "n", "file": "files/1/model", "folder": ""})
    full.release()
    killed = Journal.create(spool, {"owner": {}})
    killed.append({"op": "open", "node": "n", "t": 1})
    killed.mark_sent(killed.size)  # but its run is still to be ended on the server
    killed.release()
    _, gone = delete(tmp_path, 0.0)
    assert [item.path for item in gone] == [journals["sent"].folder]
    assert not journals["sent"].folder.exists()
    journals["live"].release()


def test_what_is_not_recognised_stays_and_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "features" / "my-own").mkdir(parents=True)
    fake = tmp_path / "features" / "0123456789abcdef"
    fake.mkdir()
    (fake / "done.json").write_text('{"kind": "models", "fingerprint": "x"}')
    (tmp_path / "corpora" / "demo").mkdir(parents=True)
    old = tmp_path / "features" / f".x.{'0' * 32}"
    old.write_text("")
    half = tmp_path / "features" / f".abc.{'1' * 32}.deleted"
    half.mkdir()
    os.utime(old, (time.time() - 9 * DAY,) * 2)
    garbage, gone = delete(tmp_path, 7 * DAY)
    assert {item.path for item in gone} == {old, half}
    assert set(garbage.kept) == {tmp_path / "notes.txt", tmp_path / "features" / "my-own", fake}
    assert (tmp_path / "corpora" / "demo").is_dir()


def test_forecasts_go_with_their_job_and_rates_stay(tmp_path: Path) -> None:
    jobs = [make_job(tmp_path / "ws", number) for number in range(3)]
    root = Path(jobs[0].workspace)
    files = [forecast_file(root, job.name, key_of(job)) for job in jobs]
    for job, file in zip(jobs, files, strict=True):
        work(job, 1, noted=job is not jobs[2])  # that was measured by `plan --measure` only
        file.parent.mkdir(exist_ok=True)
        file.write_text("{}")
    Rates(root).add({"of": "start"}, "cpu", "start of a worker", "probe", {"seconds": 1.0})
    (root / "slurm" / "job-0-1").mkdir(parents=True)
    (root / "reports").mkdir()
    (root / "reports" / ".DS_Store").write_text("")
    garbage, gone = delete(root, 7 * DAY, ["job-1"])
    assert [item.path for item in gone if item.kind == "forecast"] == [files[1]]
    assert garbage.kept == {root / "reports" / ".DS_Store": "is not recognised"}
    _, gone = delete(root, 0.0)
    assert [item.path for item in gone if item.kind == "forecast"] == [files[2]]
    assert files[0].exists()
    assert len(list((root / "rates").glob("*.json"))) == 1


def test_kinds_are_those_of_all_recipes(tmp_path: Path) -> None:
    job = make_job(tmp_path / "ws", 1)
    names = {step.kind for r in RECIPES for step in get_recipe(r).steps(job, Workspace(tmp_path))}
    assert {name for name in names if not name.startswith("reports/")} <= artifact_kinds()


def test_the_command_shows_sizes_and_deletes_only_when_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "ws"
    work(make_job(root, 1), 3, noted=False)
    options = ("gc", "--workspace", root, "--older-than", "0")
    assert code_of(*options) == 0
    shown = capsys.readouterr().out
    assert "nothing was deleted" in shown and "features" in shown and "together" in shown
    assert code_of(*options, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["bytes"] == sum(item["bytes"] for item in facts["items"]) > 3 * 1000
    assert (root / "features").glob("[!.]*")
    assert code_of(*options, "--delete") == 0
    assert capsys.readouterr().out.rstrip().endswith("deleted")
    assert code_of(*options) == 0
    assert "nothing to delete" in capsys.readouterr().out
    assert code_of("gc", "--workspace", tmp_path / "none") == 2


@pytest.mark.parametrize(
    ("text", "seconds"), [("7d", 7 * DAY), ("1.5h", 5400.0), ("0", 0.0), ("2w", 14 * DAY)]
)
def test_ages(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "7", "d", "-1d", "7 days", "1e9d"])
def test_what_is_no_age_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no age"):
        seconds_of(text)
