"""Training on the teacher's sequences and relations: learnt, resumed, refused where they lack."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.training_corpus import AUDIO_DIM, TEXT_DIM, Corpus, losses, make_task, run, weights

from multistill.config import DistillationConfig
from multistill.distillation.stage import soft_targets
from multistill.errors import MultistillError
from multistill.models.build import build
from multistill.models.files import ModelInfo, save_model
from multistill.training.data import TrainingData
from multistill.training.loop import fit
from multistill.training.task import TrainingTask


@pytest.fixture(scope="module")
def targets(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Soft targets with sequences of a random teacher twice as wide as the student."""
    folder = tmp_path_factory.mktemp("targets")
    torch.manual_seed(5)
    spec = replace(make_task(corpus).spec, width=32)
    save_model(build(spec, AUDIO_DIM, TEXT_DIM), folder / "model", ModelInfo("teacher"))
    soft_targets(*corpus, [folder / "model"], {}, True, True, folder / "soft_targets.parquet")
    return folder / "soft_targets.parquet"


def student(
    corpus: Corpus, targets: Path, *, spec: dict[str, object], **weight: float
) -> TrainingTask:
    task = make_task(corpus, epochs=6, learning_rate=1e-2)
    return replace(
        task,
        spec=replace(task.spec, **spec),
        soft_targets=str(targets),
        distillation=DistillationConfig(weight=0.0, **weight),
    )


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"fusion": "mixer"},
        {"fusion": "concat"},
        {"modality": "audio", "audio_stride": 4},
        {"modality": "text", "pooling": "published"},
    ],
)
def test_students_of_any_rate_learn_the_teachers_sequences(
    corpus: Corpus, targets: Path, tmp_path: Path, spec: dict[str, object]
) -> None:
    """Labels give a loss of 0 to 2 here, and the weight makes the sequences all of it."""
    task = student(corpus, targets, spec=spec, sequence_weight=100.0)
    values = losses(run(task, tmp_path / "state"))
    assert values[-1] < 0.8 * values[0]


def test_a_resumed_training_has_the_same_weights(
    corpus: Corpus, targets: Path, tmp_path: Path
) -> None:
    weight = {"sequence_weight": 1.0, "relation_weight": 1.0}
    task = student(corpus, targets, spec={}, **weight)
    run(task, tmp_path / "whole")
    next(iter(fit(task, state_dir=tmp_path / "resumed", device="cpu")))
    run(task, tmp_path / "resumed")
    assert torch.equal(weights(tmp_path / "whole"), weights(tmp_path / "resumed"))
    without = student(corpus, targets, spec={})
    run(without, tmp_path / "without")
    assert not torch.equal(weights(tmp_path / "whole"), weights(tmp_path / "without"))


def test_the_exported_model_has_no_projection_and_puts_out_no_sequences(
    corpus: Corpus, targets: Path, tmp_path: Path
) -> None:
    task = student(corpus, targets, spec={}, sequence_weight=1.0)
    run(task, tmp_path / "with")
    run(replace(task, soft_targets=None, distillation=None), tmp_path / "without")
    assert len(weights(tmp_path / "with")) == len(weights(tmp_path / "without"))
    assert build(task.spec, AUDIO_DIM, TEXT_DIM)(torch.randn(1, 4, AUDIO_DIM)).sequences is None


def test_a_student_that_pools_none_of_them_is_refused(corpus: Corpus, targets: Path) -> None:
    task = student(corpus, targets, spec={"paths": "wide"}, sequence_weight=1.0)
    with pytest.raises(MultistillError, match="has no sequences of what `model` reads"):
        TrainingData.open(task)
