"""The job files of multistill for the four comparisons, and what its artifacts hold."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import spec
import yaml

if TYPE_CHECKING:
    from tasks import Inputs

Job = dict[str, Any]
HEAD = dict(spec.HEAD)
PREFIX = "table/"


def _job(inputs: Inputs, name: str, workspace: Path, **sections: Any) -> Job:
    recordings = Path(spec.read_corpus(inputs.corpus)[0]["audio_path"]).parent
    return {
        "name": f"peers-{name}",
        "seed": spec.SEED,
        "workspace": str(workspace),
        "corpora": [{"kind": "table", "path": str(inputs.corpus), "audio_root": str(recordings)}],
        "labels": {"classes": sorted(spec.CLASSES.values())},
        "split": {"by": "column"},
        "features": {"text": {"model": "hashed-ngrams"}},
        **sections,
    }


def _run(inputs: Inputs, job: Job, folder: Path, until: str | None = None) -> list[str]:
    path = folder / f"{job['name']}.yaml"
    path.write_text(yaml.safe_dump(job, sort_keys=False), encoding="utf-8")
    command = [inputs.python("multistill"), "-m", "multistill", "run", str(path)]
    return [*command, "--until", until] if until else command


def _stored(inputs: Inputs, folder: Path) -> Path:
    """A copy of the workspace that has the stored states and the inputs of a search."""
    workspace = folder / "workspace"
    shutil.copytree(inputs.workspace, workspace, symlinks=True)
    return workspace


def extract(inputs: Inputs, folder: Path) -> list[str]:
    features = {
        "speech": {"model": str(inputs.encoder)},
        "text": {"model": "hashed-ngrams"},
    }
    sections = {"recipe": "features-only", "features": features}
    job = _job(inputs, "extract", folder / "workspace", **sections)
    return _run(inputs, job, folder, "features")


def stored_job(inputs: Inputs, workspace: Path) -> Job:
    """Head and search: `smart-turn` states, a head, and a search of the same network.

    The distillation loss has no weight, since the peers have none, and the teacher is the head.
    """
    train = {
        "batch_size": spec.BATCH,
        "learning_rate": spec.LEARNING_RATE,
        "weight_decay": spec.WEIGHT_DECAY,
        "metric": "uar",
    }
    low, high = spec.LEARNING_RATES
    least, most = spec.WEIGHT_DECAYS
    none, half = spec.DROPOUTS
    return _job(
        inputs,
        "stored",
        workspace,
        features={"speech": {"model": "smart-turn"}, "text": {"model": "hashed-ngrams"}},
        teacher={"model": HEAD, "train": {**train, "epochs": inputs.epochs}},
        distillation={"weight": 0.0, "targets": "in-sample"},
        students=[
            {"name": "audio", "model": HEAD, "train": {**train, "epochs": inputs.trial_epochs}}
        ],
        search={
            "trials": inputs.trials,
            "metric": "uar",
            "grace_epochs": min(spec.GRACE_EPOCHS, inputs.trial_epochs),
            "reduction": spec.REDUCTION,
            "seeds": 1,
            "space": {
                "train.learning_rate": {"low": low, "high": high, "log": True},
                "train.weight_decay": {"low": least, "high": most, "log": True},
                "model.classifier_dropout": {"low": none, "high": half},
            },
        },
    )


def store(inputs: Inputs) -> list[str]:
    """Makes the stored states: not measured."""
    return _run(inputs, stored_job(inputs, inputs.workspace), inputs.folder, "statistics")


def before_search(inputs: Inputs) -> list[str]:
    """Makes what stands before the search in the recipe, and what peers do not have."""
    return _run(inputs, stored_job(inputs, inputs.workspace), inputs.folder, "students")


def head(inputs: Inputs, folder: Path) -> list[str]:
    workspace = _stored(inputs, folder)
    for kind in ("teacher", "distill", "students", "models"):
        shutil.rmtree(workspace / kind, ignore_errors=True)
    return _run(inputs, stored_job(inputs, workspace), folder, "teacher")


def search(inputs: Inputs, folder: Path) -> list[str]:
    return _run(inputs, stored_job(inputs, _stored(inputs, folder)), folder, "search")


def opensmile(inputs: Inputs, folder: Path) -> list[str]:
    job = _job(
        inputs,
        "opensmile",
        folder / "workspace",
        recipe="features-only",
        protocol={"kind": "leave-one-out", "by": "speaker"},
        split={"by": "speaker", "valid": 0.2},
        features={"speech": {"model": "log-mel"}, "text": {"model": "hashed-ngrams"}},
        evaluation={"opensmile": ["egemaps"]},
    )
    return _run(inputs, job, folder)


def features_folder(workspace: Path) -> Path:
    [found] = (path for path in (workspace / "features").iterdir() if path.is_dir())
    return found


def stored_states(workspace: Path) -> dict[str, Any]:
    """float32 [T, D] of each clip; a corpus without a name is `table/` before its clips' names."""
    import numpy as np

    from multistill.features.store import FeatureStore

    store = FeatureStore(features_folder(workspace))
    return {
        name.removeprefix(PREFIX): np.array(store.audio(name), np.float32) for name in store.ids
    }


def _summary(workspace: Path, stage: str) -> dict[str, Any]:
    [done] = (workspace / stage).glob("*/done.json")
    found: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))["summary"]
    return found


def extracted(inputs: Inputs, folder: Path) -> dict[str, Any]:
    from reference import agreement

    return agreement(stored_states(folder / "workspace"), inputs.reference)


def _score(inputs: Inputs, workspace: Path, fingerprint: str) -> dict[str, Any]:
    """UAR of a model of the workspace on validation and test, not measured."""
    import torch
    from states import NAMES, uar

    from multistill.features.store import FeatureStore
    from multistill.inference.predict import predict_logits
    from multistill.models.files import load_model

    model = load_model(workspace / "models" / fingerprint)
    store = FeatureStore(features_folder(workspace))
    scores = {}
    for part in ("valid", "test"):
        rows = [row for row in spec.read_corpus(inputs.corpus) if row["split"] == part]
        ids = [PREFIX + row["utterance_id"] for row in rows]
        logits = predict_logits(model, store, ids, torch.device("cpu"))
        labels = torch.tensor([NAMES.index(row["label"]) for row in rows])
        scores[f"{part}_uar"] = uar(labels, torch.from_numpy(logits).argmax(dim=1))
    return scores


def head_scores(inputs: Inputs, folder: Path) -> dict[str, Any]:
    workspace = folder / "workspace"
    [model] = _summary(workspace, "teacher")["models"].values()
    return _score(inputs, workspace, model["fingerprint"])


def search_scores(inputs: Inputs, folder: Path) -> dict[str, Any]:
    """Of the winner, which was trained again with a seed of its own."""
    workspace = folder / "workspace"
    found = _summary(workspace, "search")
    winner = next(each for each in found["finalists"] if each["name"] == found["winner"])
    model = found["models"][winner["members"][0]]
    return {
        **_score(inputs, workspace, model["fingerprint"]),
        "trials": found["trials"],
        "best_trial": found["best"]["value"],
    }


def opensmile_scores(inputs: Inputs, folder: Path) -> dict[str, Any]:
    [path] = (folder / "workspace" / "reports").glob("*/latest/report.json")
    references = json.loads(path.read_text(encoding="utf-8"))["references"]
    [svm] = (each for each in references if "eGeMAPS" in each["name"] and "SVM" in each["name"])
    return {"test_uar": svm["metrics"]["uar"]["value"]}
