"""Every reader of a workspace's files, on real files that were altered.

Whoever may write to a workspace may put anything there: a reader answers, or says in one
sentence what is wrong; it runs no code, touches no other file, and does not crash.
`MULTISTILL_FUZZ_CASES=100000 pytest tests/security/test_altered_files.py` looks for an hour.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from helpers.altered_files import Fix, Reader, failures
from helpers.evaluation_case import EvaluationCase, make_search
from helpers.fake_mlflow import FakeServer, Store
from helpers.finished_jobs import finish
from helpers.search_case import finish_trial, study_of, write_spec

from multistill.audio.digests import Digests
from multistill.corpora.manifest import classes_of, label_arrays, read_classes, read_manifest
from multistill.distillation.files import SOFT_TARGETS
from multistill.distillation.targets import read_soft_targets, read_states, write_states
from multistill.evaluation.paired import read_answers
from multistill.features.statistics import compute_statistics, read_statistics
from multistill.features.store import FeatureStore
from multistill.features.store_writer import read_marker
from multistill.models.files import load_model
from multistill.pipeline.runs import find_run, list_runs
from multistill.report.search import read_trials
from multistill.search.results import trial_rows
from multistill.search.spec import SearchSpec
from multistill.search.storage import has_values
from multistill.search.trial_folders import unfinished_trials
from multistill.tracking.journal import Journal
from multistill.tracking.owner import Owner
from multistill.tracking.replay import Replay, foreign_journals
from multistill.tracking.runs import Runs
from multistill.training.checkpoint import (
    Checkpoint,
    Progress,
    best_weights,
    load_checkpoint,
    newest_epoch,
    save_checkpoint,
)
from multistill.workspace import Workspace, canonical

CASES = int(os.environ.get("MULTISTILL_FUZZ_CASES", "40"))
SEED = int(os.environ.get("MULTISTILL_FUZZ_SEED", "0"))


class Altered(NamedTuple):
    """An artifact, who reads it, and what whoever alters it updates too."""

    folder: Path
    read: Reader
    fix: Fix = lambda folder: None


def _manifest(folder: Path) -> None:
    table = read_manifest(folder)
    read_classes(folder)
    label_arrays(table)
    classes_of(table)


def _features(folder: Path) -> None:
    store = FeatureStore(folder)
    read_marker(folder, 0)
    store.encoders()
    for name in store.ids[:40]:
        assert store.audio(name).size + store.text(name).size
        store.audio_frames([name])
    store.verify()


def _targets(folder: Path) -> None:
    read_soft_targets(folder / SOFT_TARGETS)
    read_states(folder / SOFT_TARGETS)


def _checkpoint(folder: Path) -> None:
    newest, _ = newest_epoch(folder)
    if newest:
        load_checkpoint(folder, newest)
    best_weights(folder)


def _search(folder: Path) -> None:
    spec = SearchSpec.read(folder)
    study = study_of(folder, spec)
    has_values(study)
    trial_rows(study)
    unfinished_trials(folder, study)
    read_trials(folder)


def _journals(folder: Path) -> None:
    """As at the start of a run: nothing that is wrong with them keeps it from starting."""
    server: Any = FakeServer(Store(), "ann")
    foreign_journals(folder, Owner("ben", "ben"))
    journal = Journal.create(folder / "live", {"target": "t", "experiment": "e"})
    owner, messages = Owner("ann", "ann"), []
    runs = Runs(server, owner, journal)
    Replay(server, runs, folder, "t", owner, messages.append).send_abandoned(protected="")


def _digests(folder: Path) -> None:
    digests, file = Digests(folder / "digests.npy"), folder / "digests.npy"
    with file.open("rb") as stream:
        digests.digest(str(file), stream.fileno())
    digests.confirm([str(file)], ["0" * 32])


def _runs(folder: Path) -> None:
    for row in list_runs(folder):
        if row["report"]:
            find_run(f"{row['job']}@{row['variant']}", folder)


def _reseal_model(folder: Path) -> None:
    try:
        config = json.loads((folder / "config.json").read_text())
        config["sha256"] = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    except (ValueError, TypeError, AttributeError, RecursionError):
        return
    (folder / "config.json").write_text(json.dumps(config))


def _reseal_checkpoint(folder: Path) -> None:
    for file in folder.rglob("checkpoint.json"):
        try:
            record = json.loads(file.read_text())
            for name in record["sha256"]:
                digest = hashlib.sha256((file.parent / name).read_bytes()).hexdigest()
                record["sha256"][name] = digest
            record.pop("seal", None)
            record["seal"] = hashlib.sha256(canonical(record).encode()).hexdigest()
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            continue
        file.write_text(json.dumps(record))


def _make_checkpoint(folder: Path) -> Path:
    tensors = {"a": torch.ones(4, 4), "b": torch.zeros(3)}
    history = [{"epoch": 1.0, "seconds": 0.5}]
    progress = Progress(1, 10, 1, [0.5], False, history, {"seed": 1})
    save_checkpoint(folder, Checkpoint(progress, tensors, {"step": torch.ones(1)}))
    return folder


def _make_search(folder: Path) -> Path:
    make_search(folder)
    spec = write_spec(folder, trials=5)
    study = study_of(folder, spec)
    for value in (0.5, None, 0.7):
        finish_trial(study, value, "0123456789ab")
    study.ask().set_user_attr("driver", "0123456789ab")
    return folder


def _make_journals(folder: Path) -> Path:
    source = folder.parent / "upload.txt"
    source.write_text("content")
    owner = Owner("ann", "ann").as_json()
    journal = Journal.create(folder, {"target": "t", "owner": owner, "experiment": "e"})
    opened = {"name": "job", "kind": "model", "t": 5, "tags": {}}
    journal.append({"op": "open", "node": "k", "parent": None, "key": "k", **opened})
    journal.append({"op": "open", "node": "k/c", "parent": "k", "key": "c", **opened})
    journal.append({"op": "metrics", "node": "k/c", "t": 1, "step": 1, "values": {"loss": 0.5}})
    journal.append({"op": "params", "node": "k", "values": {"a": "1"}})
    journal.append({"op": "tags", "node": "k", "values": {"a": "1"}})
    file = journal.copy_in(source)
    journal.append({"op": "artifact", "node": "k", "file": file, "folder": "files"})
    journal.append({"op": "close", "node": "k", "status": "FINISHED", "t": 9})
    journal.write_doubts({"requests": []})
    journal.mark_sent(10)
    journal.release()
    return folder


@pytest.fixture(scope="module")
def artifacts(
    evaluation_case: EvaluationCase, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Altered]:
    home, case = tmp_path_factory.mktemp("altered"), evaluation_case
    compute_statistics(case.manifest / "manifest.parquet", case.store, home / "statistics")
    shutil.copytree(case.distill, home / "targets")
    write_states(home / "targets" / SOFT_TARGETS, [0, 1], [0, 0], torch.ones(2, 3).numpy())
    workspace = home / "workspace"
    finish(case, workspace)
    digests = home / "digests" / "digests.npy"
    Digests(digests).save()
    digests.parent.mkdir(exist_ok=True)
    _remember(digests)

    def done(folder: Path) -> None:
        for file in sorted(folder.rglob("done.json")):
            kind = str(file.parent.parent.relative_to(folder))
            if found := Workspace(folder).find(kind, file.parent.name):
                print(found.summary, found.seconds, file=io.StringIO())

    return {
        "manifest": Altered(case.home / "prepared", _manifest),
        "features": Altered(case.store, _features),
        "statistics": Altered(home / "statistics", read_statistics),
        "soft targets": Altered(home / "targets", _targets),
        "model": Altered(case.folders["multimodal"], load_model, _reseal_model),
        "checkpoint": Altered(
            _make_checkpoint(home / "checkpoint"), _checkpoint, _reseal_checkpoint
        ),
        "predictions": Altered(case.out, lambda f: read_answers(f / "predictions.parquet")),
        "search": Altered(_make_search(home / "search"), _search),
        "journals": Altered(_make_journals(home / "journals"), _journals),
        "digests": Altered(digests.parent, _digests),
        "finished artifacts": Altered(workspace, done),
        "list of runs": Altered(workspace, _runs),
    }


def _remember(file: Path) -> None:
    import numpy as np

    np.save(file, np.sort(np.random.default_rng(0).integers(0, 2**63, (4, 9)).astype("uint64")))


@pytest.mark.parametrize(
    "name",
    [
        "manifest",
        "features",
        "statistics",
        "soft targets",
        "model",
        "checkpoint",
        "predictions",
        "search",
        "journals",
        "digests",
        "finished artifacts",
        "list of runs",
    ],
)
def test_what_was_altered_is_refused_or_harmless(
    name: str, artifacts: dict[str, Altered], tmp_path: Path
) -> None:
    folder, read, fix = artifacts[name]
    cases = CASES // 4 if name == "list of runs" else CASES  # a case takes a tenth of a second
    found = list(failures(folder, read, tmp_path, cases=max(1, cases), seed=SEED, fix=fix))
    assert not found, "\n".join(found)
