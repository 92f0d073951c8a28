"""What is registered of a search: the model, its metric and the data that it was measured on."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.recording_logger import RecordingLogger
from helpers.search_case import TASK
from helpers.search_models import HOT, VALIDATION, StoreWithScores, retrained

from multistill.config import CLASSES, ChampionConfig
from multistill.corpora.manifest import data_digest, manifest_schema
from multistill.search.champion import register
from multistill.workspace import read_json, write_json


def write_manifest(folder: Path, split: str = "valid") -> Path:
    row = {
        field.name: "x" if pa.types.is_string(field.type) else 0
        for field in manifest_schema(CLASSES)
        if not field.nullable and not pa.types.is_list(field.type)
    }
    row |= {"label_soft": [1.0, 0, 0, 0, 0, 0, 0], "split": split}
    folder.mkdir()
    pq.write_table(
        pa.Table.from_pylist([row], schema=manifest_schema(CLASSES)), folder / "manifest.parquet"
    )
    return folder


def write_config(folder: Path, **training: object) -> None:
    """config.json of a training that beat the majority, except where `training` says otherwise."""
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", {**config, "training": {**config["training"], **training}})


@pytest.mark.parametrize(
    "training",
    [
        {"train_loss": [1.94, 1.939]},
        {"validation": {**VALIDATION, "macro_f1": 0.05}},
        {"validation": {**VALIDATION, "uar": 0.16}},
    ],
)
def test_a_winner_that_does_not_beat_the_majority_is_not_registered(tmp_path, training):
    store = StoreWithScores(tmp_path, {f"{TASK.name}-search-1": 0.05})
    trained = retrained(store, [HOT], seeds=1)
    folders = [store.folder(trained["models"][trained["winner"]])]
    write_config(folders[0], **training)
    logger = RecordingLogger()
    register("emotion", folders, ChampionConfig(), write_manifest(tmp_path / "data"), logger)
    assert logger.registrations == []
    assert "nothing is registered, the winner is not trained" in logger.messages[-1]


def test_the_model_of_the_first_seed_is_registered_with_the_mean_over_seeds(tmp_path):
    name = f"{TASK.name}-search-1"
    store = StoreWithScores(tmp_path, {f"{name}-seed0": 0.4, f"{name}-seed1": 0.8})
    trained = retrained(store, [HOT], seeds=2)
    folders = [store.folder(trained["models"][m]) for m in trained["finalists"][0]["members"]]
    logger, rule = RecordingLogger(), ChampionConfig(margin=0.01)
    register("emotion", folders, rule, write_manifest(tmp_path / "prepared"), logger)
    (registered,) = logger.registrations
    assert registered.value == pytest.approx(0.6) and registered.metric == "valid_macro_f1"
    model = {name: c for name, c in registered.files.items() if name.startswith("artifacts/")}
    assert model == {
        "artifacts/model/model.safetensors": f"{name}-seed0".encode(),
        "artifacts/model/config.json": (folders[0] / "config.json").read_bytes(),
    }
    assert b"python_function" in registered.files["MLmodel"]
    assert registered.options["margin"] == 0.01
    assert registered.options["data"] == data_digest(tmp_path / "prepared")


def test_a_loss_is_registered_under_a_name_that_contains_its_function(tmp_path):
    store = StoreWithScores(tmp_path, {f"{TASK.name}-search-1": 0.4})
    trained = retrained(store, [HOT], seeds=1)
    folders = [store.folder(trained["models"][trained["winner"]])]
    logger, rule = RecordingLogger(), ChampionConfig(metric="validation.loss")
    write_config(folders[0], loss="focal", label_source="winner")
    register("emotion", folders, rule, write_manifest(tmp_path / "prepared"), logger)
    (registered,) = logger.registrations
    assert registered.metric == "valid_loss.focal.winner"
    assert registered.value == pytest.approx(1.6)


def test_another_split_of_the_same_clips_is_other_data(tmp_path):
    first, same = write_manifest(tmp_path / "a"), write_manifest(tmp_path / "b")
    other = write_manifest(tmp_path / "c", split="train")
    assert data_digest(first) == data_digest(same) != data_digest(other)
