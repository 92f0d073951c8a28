"""The end of a search: seeds, a winner by its mean, a control of its own, what is registered."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.recording_logger import RecordingLogger
from helpers.search_case import TASK

from multistill.config import ChampionConfig, SearchConfig
from multistill.corpora.manifest import MANIFEST_SCHEMA
from multistill.models.files import FORMAT
from multistill.search.champion import data_digest, register
from multistill.search.finalists import retrain
from multistill.tracking.logger import NullLogger
from multistill.workspace import write_json

HOT, COLD = {"distillation.temperature": 6.0}, {"distillation.temperature": 2.0}


class ModelStore:
    """Trains nothing: a model's validation score is what `scores` says of it."""

    def __init__(self, home: Path, scores: dict[str, float]) -> None:
        self.home, self.scores, self.calls = home, scores, []

    def folder(self, model: Any) -> Path:
        return self.home / model["fingerprint"]

    def train(self, tasks, inputs, out, logger):
        self.calls.append([task.name for task in tasks])
        self.tasks = {**getattr(self, "tasks", {}), **{task.name: task for task in tasks}}
        for task in tasks:
            folder = self.home / task.name
            folder.mkdir()
            score = self.scores.get(task.name, 0.3)
            epochs = [
                {"epoch": 1.0, "valid_macro_f1": score, "valid_loss": 2.0 - score},
                {"epoch": 2.0, "valid_macro_f1": score - 0.1, "valid_loss": 0.1},
            ]
            history = {"epochs": epochs, "best_epoch": 1}
            (folder / "history.json").write_text(json.dumps(history))
            (folder / "model.safetensors").write_text(task.name)
            (folder / "config.json").write_text("{}")
        return {"models": {task.name: {"fingerprint": task.name} for task in tasks}}


def finals(model_store: ModelStore, top: list[dict], **more: Any) -> dict[str, Any]:
    config = SearchConfig(retrain=len(top), **more)
    return retrain(TASK, top, config, model_store, {}, model_store.home, NullLogger())  # type: ignore[arg-type]


def test_the_winner_has_the_best_mean_not_the_best_seed(tmp_path):
    scores = {
        "audio-search-1-seed0": 0.7, "audio-search-1-seed1": 0.3,
        "audio-search-2-seed0": 0.6, "audio-search-2-seed1": 0.5,
    }  # fmt: skip
    model_store = ModelStore(
        tmp_path, {k.replace("audio", TASK.name): v for k, v in scores.items()}
    )
    found = finals(model_store, [HOT, COLD], seeds=2)
    assert found["winner"] == f"{TASK.name}-search-2"
    first, second = found["finalists"]
    assert second["mean"] == pytest.approx(0.55) and second["sd"] == pytest.approx(0.1 / 2**0.5)
    assert first["values"] == [0.7, 0.3] and first["params"] == HOT
    assert first["seeds"] == second["seeds"] == found["control"]["seeds"]
    assert first["seeds"] == [TASK.seed + 1, TASK.seed + 2], "the trials' own flatters"


def test_a_control_has_the_winners_settings_and_seeds_and_no_teacher(tmp_path):
    wide = {**HOT, "train.learning_rate": 2e-3}
    model_store = ModelStore(tmp_path, {f"{TASK.name}-search-2": 0.9})
    found = finals(model_store, [COLD, wide], seeds=1)
    assert len(model_store.calls) == 2, "which control is known once the winner is"
    control = model_store.tasks[f"{TASK.name}-search-control"]
    assert control.seed == model_store.tasks[found["winner"]].seed == TASK.seed + 1
    assert control.distillation is None and control.soft_targets is None
    assert control.role == "control" and control.control_of == found["winner"]
    assert control.train == model_store.tasks[found["winner"]].train
    assert control.train.learning_rate == 2e-3


def test_controls_train_with_the_finalists_where_the_teacher_alone_was_searched(tmp_path):
    model_store = ModelStore(tmp_path, {})
    finals(model_store, [HOT, COLD], seeds=2)
    assert len(model_store.calls) == 1, "one worker group for all"
    assert len(model_store.calls[0]) == 6


def test_a_loss_is_best_where_it_is_low(tmp_path):
    model_store = ModelStore(tmp_path, {f"{TASK.name}-search-1": 0.9, f"{TASK.name}-search-2": 0.8})
    found = finals(model_store, [HOT, COLD], seeds=1, metric="loss")
    assert found["winner"] == f"{TASK.name}-search-1"
    assert found["finalists"][0]["values"] == [pytest.approx(1.1)], "of the kept epoch"


def manifest(folder: Path, split: str = "valid") -> Path:
    row = {
        field.name: "x" if pa.types.is_string(field.type) else 0
        for field in MANIFEST_SCHEMA
        if not field.nullable and not pa.types.is_list(field.type)
    }
    row |= {"label_soft": [1.0, 0, 0, 0, 0, 0, 0], "split": split}
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist([row], schema=MANIFEST_SCHEMA), folder / "manifest.parquet")
    return folder


def test_the_model_of_the_first_seed_is_offered_with_the_mean_over_seeds(tmp_path):
    model_store = ModelStore(
        tmp_path, {f"{TASK.name}-search-1-seed{n}": v for n, v in enumerate((0.4, 0.8))}
    )
    found = finals(model_store, [HOT], seeds=2)
    folders = [
        model_store.folder(found["models"][name]) for name in found["finalists"][0]["members"]
    ]
    logger, rule = RecordingLogger(), ChampionConfig(margin=0.01)
    register("emotion", folders, rule, manifest(tmp_path / "prepared"), logger)
    (offered,) = logger.registrations
    assert offered.value == pytest.approx(0.6) and offered.metric == "valid_macro_f1"
    assert offered.files == {
        "model.safetensors": f"{TASK.name}-search-1-seed0".encode(),
        "config.json": b"{}",
    }
    assert offered.options["margin"] == 0.01
    assert offered.options["data"] == data_digest(tmp_path / "prepared")


def test_a_loss_is_registered_under_a_name_that_says_which(tmp_path):
    model_store = ModelStore(tmp_path, {f"{TASK.name}-search-1": 0.4})
    found = finals(model_store, [HOT], seeds=1)
    folders, logger = [model_store.folder(found["models"][found["winner"]])], RecordingLogger()
    rule = ChampionConfig(metric="validation.loss")
    training = {"loss": "focal", "label_source": "winner"}
    config = {"format": FORMAT, "sha256": "", "spec": {}, "training": training}
    write_json(folders[0] / "config.json", config)
    register("emotion", folders, rule, manifest(tmp_path / "prepared"), logger)
    (offered,) = logger.registrations
    assert offered.metric == "valid_loss.focal.winner" and offered.value == pytest.approx(1.6)


def test_another_split_of_the_same_clips_is_other_data(tmp_path):
    first, same = manifest(tmp_path / "a"), manifest(tmp_path / "b")
    other = manifest(tmp_path / "c", split="train")
    assert data_digest(first) == data_digest(same) != data_digest(other)


def test_seeds_do_not_change_the_trials_that_a_larger_search_takes_over(tmp_path):
    from multistill.search.request import Request
    from multistill.search.warm_start import find_previous

    old = Request(TASK, SearchConfig(trials=4, seeds=3), 1, "a", "study")
    old.write(tmp_path / "old")
    (tmp_path / "old" / "study.json").write_text("{}")
    asked = replace(old, config=SearchConfig(trials=6, seeds=5, retrain=2))
    assert find_previous(tmp_path, asked) == tmp_path / "old"
    assert (
        find_previous(tmp_path, replace(asked, config=SearchConfig(trials=6, metric="uar"))) is None
    )
