"""A training that does not beat the majority is called `not trained`, with what to look at."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest
from helpers.training_corpus import make_corpus, make_task, trained

from multistill.config import CLASSES, DistillationConfig, TrainSection
from multistill.corpora.manifest import manifest_schema, read_manifest, write_manifest
from multistill.distillation.schedule import Schedule
from multistill.distillation.targets import write_soft_targets
from multistill.evaluation.trained import not_trained_on_test, not_trained_on_validation
from multistill.models.presets import resolve
from multistill.models.spec import Fusion
from multistill.training.data import TrainingData
from multistill.training.defaults import resolve_training


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_corpus(tmp_path_factory.mktemp("corpus"), rows=300)


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"learning_rate": 1e-9}, "hardly learnt its own clips"),
        ({"learning_rate": 5e-5, "epochs": 1, "batch_size": 512}, "train.learning_rate 5e-05"),
        ({"learning_rate": 1e-7, "loss": "mse"}, "raise the rate or the epochs"),
        ({"learning_rate": 1e-7, "loss": "focal", "metric": "loss"}, "train.batch_size 16"),
    ],
)
def test_a_training_that_moves_no_weight_is_not_trained(
    corpus: tuple[Path, Path], tmp_path: Path, settings: dict[str, Any], advice: str
) -> None:
    reason = not_trained_on_validation([trained(make_task(corpus, **settings), tmp_path)])
    assert reason is not None
    assert reason.startswith("not trained: ")
    assert advice in reason


def test_a_training_that_learns_is_trained_and_says_with_what(
    corpus: tuple[Path, Path], tmp_path: Path
) -> None:
    task = make_task(corpus, epochs=12)
    training = trained(task, tmp_path)
    assert not_trained_on_validation([training]) is None
    assert (training["learning_rate"], training["batch_size"]) == (3e-3, 16)
    assert training["budget"] == training["epochs"] == 12
    assert training["train_loss"][1] < training["train_loss"][0]
    assert training["validation"]["uar"] > training["validation"]["bars"]["uar"]
    assert training["seed"] == task.seed


@pytest.mark.parametrize(
    ("schedule", "loss"), [*((schedule, "kd") for schedule in get_args(Schedule)), ("fall", "dkd")]
)
def test_a_student_that_learns_is_trained_under_every_schedule(
    corpus: tuple[Path, Path], tmp_path: Path, schedule: Schedule, loss: str
) -> None:
    """The loss of a falling schedule rises, since the labels' is larger than the teacher's."""
    base = make_task(corpus, epochs=12)
    train = TrainingData.open(base).train
    write_soft_targets(
        tmp_path / "targets.parquet", train.ids, 2 * train.shares, "t", np.full(len(train), -1)
    )
    for rate, learns in ((3e-3, True), (1e-9, False)):
        distillation = {"weight": 0.9, "temperature": 2.0, "loss": loss, "schedule": schedule}
        task = replace(
            base.with_train(learning_rate=rate),
            soft_targets=str(tmp_path / "targets.parquet"),
            distillation=DistillationConfig.model_validate(distillation),
        )
        reason = not_trained_on_validation([trained(task, tmp_path / str(rate))])
        assert (reason is None) is learns, reason


@pytest.mark.parametrize("fusion", get_args(Fusion))
def test_every_fusion_learns_with_what_a_job_file_leaves_out(
    tmp_path: Path, fusion: Fusion
) -> None:
    """A rival that cannot train at its defaults is none; states may be far from standardised."""
    task = make_task(make_corpus(tmp_path / "corpus", rows=100, offset=4.0))
    clips = len(TrainingData.open(task).train)
    train = resolve_training(TrainSection(), "small-student", clips)
    assert train is not None
    task = replace(task, spec=resolve("small-student", {"fusion": fusion}), train=train)
    training = trained(task, tmp_path / "model")
    assert not_trained_on_validation([training]) is None
    assert training["validation"]["uar"] > 0.8


@pytest.mark.parametrize("seed", range(4))
def test_a_lucky_network_with_random_weights_is_not_trained(
    corpus: tuple[Path, Path], tmp_path: Path, seed: int
) -> None:
    task = replace(make_task(corpus, learning_rate=1e-9, epochs=2), seed=seed)
    training = trained(task, tmp_path)
    training["validation"]["uar"] = training["validation"]["macro_f1"] = 0.9
    reason = not_trained_on_validation([training])
    assert reason is not None and "hardly learnt its own clips" in reason


def test_labels_that_the_states_do_not_carry_are_named(tmp_path: Path) -> None:
    """The clips are learnt by heart, and validation shows nothing of it."""
    manifest, store = make_corpus(tmp_path / "corpus", rows=150)
    rows = read_manifest(manifest).to_pylist()
    random = np.random.default_rng(0)
    for row in rows:
        label = int(random.integers(0, 4))
        row |= {"label": CLASSES[label], "label_soft": np.eye(7, dtype=np.float32)[label].tolist()}
    write_manifest(
        pa.Table.from_pylist(rows, schema=manifest_schema(CLASSES)), Path(manifest).parent
    )
    training = trained(make_task((manifest, store), epochs=40, metric="loss"), tmp_path / "model")
    reason = not_trained_on_validation([training])
    assert reason is not None
    assert "look at the labels" in reason


def test_seeds_are_judged_by_their_mean(corpus: tuple[Path, Path], tmp_path: Path) -> None:
    good = trained(make_task(corpus, epochs=12), tmp_path / "good")
    bad = trained(replace(make_task(corpus, learning_rate=1e-9), seed=4), tmp_path / "bad")
    assert not_trained_on_validation([good, good, bad]) is None
    assert not_trained_on_validation([bad, bad, bad]) is not None


def test_without_two_classes_in_validation_nothing_is_said() -> None:
    training = {"validation": None, "epochs": 2, "train_loss": [1.9, 1.2]}
    assert not_trained_on_validation([training]) is None


@pytest.mark.parametrize(
    ("uar", "macro_f1", "fails"),
    [(0.143, 0.2, True), (0.3, 0.05, True), (0.143, 0.05, True), (0.3, 0.2, False)],
)
def test_the_test_set_has_to_confirm_it(uar: float, macro_f1: float, fails: bool) -> None:
    baseline = {"uar": 0.143, "macro_f1": 0.05}
    reason = not_trained_on_test({"uar": uar, "macro_f1": macro_f1}, baseline)
    assert (reason is not None) is fails
    assert reason is None or "on test" in reason
