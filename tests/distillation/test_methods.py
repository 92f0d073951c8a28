"""Every network as a teacher: trained, run over the corpus, and a light student learns from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.training_corpus import Corpus, make_corpus, make_task, trained

from multistill.config import DistillationConfig
from multistill.corpora.manifest import read_manifest
from multistill.distillation.stage import soft_targets
from multistill.distillation.targets import SoftTargets, read_soft_targets
from multistill.features.store import FeatureStore
from multistill.inference.predict import predict
from multistill.metrics.classification import distributions
from multistill.models.branches import BRANCHES, branch_spec
from multistill.models.files import load_model, read_model_config
from multistill.models.networks import NETWORKS
from multistill.models.presets import resolve
from multistill.training.task import TrainingTask, fold_tasks

HEAD = {"width": 16, "heads": 2, "layers": 1, "feedforward": 32, "classifier": 16}
CHUNKS = {
    "width": 8,
    "heads": 2,
    "layers": 1,
    "feedforward": 16,
    "front_channels": 2,
    "chunk_frames": 8,
    "chunk_hidden": 8,
}
BRANCH = {
    "width": 12,
    "heads": 2,
    "layers": 1,
    "feedforward": 16,
    "va_recurrent": 6,
    "num_classes": 7,
}
FUSION = {
    **BRANCH,
    "front_channels": 1,
    "va_audio_layers": 1,
    "va_text_layers": 1,
    "va_branch_heads": 2,
    "va_branch_feedforward": 16,
    "va_branch_recurrent": 6,
}
LIGHT = {
    "width": 16,
    "heads": 2,
    "feedforward": 32,
    "classifier": 16,
    "front_channels": 4,
    "front_blocks": 1,
}

AGAINST_REST = {"loss": "one-vs-rest", "class_weights": "odds", "label_source": "winner"}
METHODS: Mapping[str, tuple[str, Mapping[str, Any], Mapping[str, Any]]] = {
    "head": ("small-teacher", HEAD, {}),
    "head of squared errors": ("small-teacher", HEAD, {"loss": "mse"}),
    "light": ("light-multimodal-student", LIGHT, {}),
    "pooled": ("pooled", {"width": 8}, {}),
    "pooled-strided": ("pooled-strided", {"width": 8}, {}),
    "fe2e": ("small-fe2e", CHUNKS, AGAINST_REST),
    "mesm": ("small-mesm", CHUNKS, AGAINST_REST),
    "paper-mesm": ("paper-mesm", CHUNKS, {}),
    "va-audio": ("va-audio", {**BRANCH, "front_channels": 1}, {}),
    "va-text": ("va-text", BRANCH, {}),
    "va-fusion": ("va-fusion", FUSION, {}),
    "paper-va-fusion": ("paper-va-fusion", FUSION, {}),
}
"""Preset, its fields and settings of the training."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("methods"), rows=50)


def teacher_task(corpus: Corpus, method: str, epochs: int = 1) -> TrainingTask:
    preset, fields, train = METHODS[method]
    task = make_task(corpus, "teacher", epochs=epochs, learning_rate=1e-2, **train)
    spec = resolve(preset, fields)
    tasks = {"classes": 1.0, **dict.fromkeys(spec.dimensions, 0.2)}
    return replace(task, role="teacher", spec=spec, tasks=tasks)


def train_teacher(task: TrainingTask, folder: Path) -> Path:
    """Train a teacher, and before it what it stands on."""
    initial = {}
    for modality in BRANCHES if task.spec.network == "va-fusion" else ():
        spec = branch_spec(task.spec, modality)
        branch = replace(task, spec=spec, tasks={spec.dimensions[0]: 1.0})
        branch = replace(branch, train=branch.train.model_copy(update={"metric": "ccc"}))
        trained(branch, folder / modality)
        initial[modality] = str(folder / modality)
    trained(replace(task, initial=initial), folder / "teacher")
    return folder / "teacher"


def write_targets(
    corpus: Corpus,
    out: Path,
    teachers: Sequence[Path],
    folds: Mapping[int, Sequence[Path]],
) -> SoftTargets:
    soft_targets(corpus[0], corpus[1], teachers, folds, True, False, out)
    return read_soft_targets(out)


def outputs_of(corpus: Corpus, folder: Path, ids: Sequence[str]) -> np.ndarray:
    """Distributions of a saved model over clips [N, C], without the stage."""
    model, kind = load_model(folder), read_model_config(folder)["output"]
    return distributions(predict(model, FeatureStore(corpus[1]), list(ids), "cpu").logits, kind)


def student_task(corpus: Corpus, teacher: TrainingTask, targets: Path) -> TrainingTask:
    """A light student that learns from a teacher alone, its states included."""
    base = make_task(corpus, "student", epochs=5, learning_rate=1e-2)
    spec = resolve("light-multimodal-student", {**LIGHT, "dimensions": teacher.spec.dimensions})
    return replace(
        base,
        spec=spec,
        tasks=teacher.tasks,
        soft_targets=str(targets),
        distillation=DistillationConfig(weight=1.0, hint_weight=0.5),
    )


def test_every_network_is_a_method_here() -> None:
    networks = {resolve(preset, fields).network for preset, fields, _ in METHODS.values()}
    assert networks == set(NETWORKS)


@pytest.mark.parametrize("method", METHODS)
def test_a_light_student_learns_from_any_network_out_of_fold(
    corpus: Corpus, tmp_path: Path, method: str
) -> None:
    base = teacher_task(corpus, method)
    rows = read_manifest(corpus[0], ["utterance_id", "split", "fold"]).to_pandas()
    numbers = sorted(rows[rows["split"] == "train"]["fold"].unique().tolist())
    teacher = train_teacher(base, tmp_path / "all")
    folds = {
        number: [train_teacher(task, tmp_path / f"fold{number}")]
        for number, task in zip(numbers, fold_tasks(base, numbers), strict=True)
    }
    targets = write_targets(corpus, tmp_path / "soft_targets.parquet", [teacher], folds)

    splits = rows.set_index("utterance_id").loc[targets.ids]
    own = np.where(splits["split"] == "train", splits["fold"], -1)
    assert targets.fold.tolist() == own.tolist()
    found = targets.distributions
    for number, [folder] in {-1: [teacher], **folds}.items():
        chosen = np.flatnonzero(own == number)
        expected = outputs_of(corpus, folder, [targets.ids[row] for row in chosen])
        np.testing.assert_allclose(found[chosen], expected, atol=1e-5)

    student = student_task(corpus, base, tmp_path / "soft_targets.parquet")
    first, last = trained(student, tmp_path / "student")["train_loss"]
    assert last < 0.95 * first
    trained(student.control("control"), tmp_path / "control")
    distance = {
        name: np.abs(outputs_of(corpus, tmp_path / name, targets.ids) - found).sum()
        for name in ("student", "control")
    }
    assert distance["student"] < distance["control"]


@pytest.mark.parametrize("order", [1, -1])
def test_an_ensemble_of_different_outputs_is_the_mean_of_its_distributions(
    corpus: Corpus, tmp_path: Path, order: int
) -> None:
    """Logits, shares and one class against the rest, of three networks."""
    methods = ["pooled", "head of squared errors", "fe2e"][::order]
    teachers = [
        train_teacher(teacher_task(corpus, method, epochs=2), tmp_path / str(number))
        for number, method in enumerate(methods)
    ]
    kinds = [read_model_config(folder)["output"] for folder in teachers]
    assert set(kinds) == {"logits", "shares", "one-vs-rest"}
    targets = write_targets(corpus, tmp_path / "soft_targets.parquet", teachers, {})
    members = [outputs_of(corpus, folder, targets.ids) for folder in teachers]
    np.testing.assert_allclose(targets.distributions, np.mean(members, axis=0), atol=1e-5)
    student = student_task(
        corpus, teacher_task(corpus, "pooled"), tmp_path / "soft_targets.parquet"
    )
    first, last = trained(student, tmp_path / "student")["train_loss"]
    assert last < first
