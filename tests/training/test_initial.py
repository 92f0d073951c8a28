"""Trainings that start from the weights of finished models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.joint_case import make_joint_corpus, make_joint_task
from helpers.training_corpus import AUDIO_DIM, TEXT_DIM, Corpus, make_task, run, trained, weights

from multistill.config import TrainConfig
from multistill.errors import MultistillError
from multistill.models.build import build
from multistill.models.files import load_model
from multistill.models.joint import JointModel, build_model
from multistill.models.presets import resolve
from multistill.training.initial import load_initial
from multistill.training.loop import fit
from multistill.training.model_store import ModelStore
from multistill.training.task import TrainingTask

BRANCH = {"width": 12, "heads": 2, "layers": 1, "feedforward": 16, "va_recurrent": 6}
FUSION = {
    "width": 12,
    "heads": 3,
    "layers": 1,
    "feedforward": 16,
    "va_recurrent": 8,
    "va_audio_layers": 1,
    "va_text_layers": 1,
    "va_branch_heads": 2,
    "va_branch_feedforward": 16,
    "va_branch_recurrent": 6,
    "num_classes": 7,
    "dimensions": ("valence", "arousal"),
}


def task_of(corpus: Corpus, preset: str, **spec: Any) -> TrainingTask:
    task = make_task(corpus, preset, epochs=4, dimension_loss="mse")
    of_classes = preset.endswith("fusion")
    more = {} if preset.endswith("text") else {"front_channels": 1}
    resolved = resolve(preset, {**(FUSION if of_classes else BRANCH), **more, **spec})
    dimensions = dict.fromkeys(resolved.dimensions, 1.0)
    return replace(
        task,
        role="teacher",
        spec=resolved,
        tasks={"classes": 1.0, **dimensions} if of_classes else dimensions,
        train=TrainConfig.model_validate(
            {**task.train.model_dump(), "metric": "macro_f1" if of_classes else "ccc"}
        ),
    )


@pytest.fixture(scope="module")
def branches(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of a trained `va-audio` and `va-text`; tests only read them."""
    root = tmp_path_factory.mktemp("models")
    folders = {}
    for name in ("audio", "text"):
        folder = root / f"{name}-fingerprint"
        trained(task_of(corpus, f"va-{name}"), folder)
        folders[name] = str(folder)
    return folders


@pytest.mark.parametrize("preset", ["va-audio", "va-text", "va-fusion", "paper-va-fusion"])
def test_a_resumed_training_gives_the_weights_of_an_uninterrupted_one(
    corpus: Corpus, branches: dict[str, str], tmp_path: Path, preset: str
) -> None:
    task = task_of(corpus, preset)
    if preset == "va-fusion":
        task = replace(task, initial=branches)
    run(task, tmp_path / "uninterrupted")
    interrupted = fit(task, state_dir=tmp_path / "resumed", device="cpu")
    for _ in range(2):
        next(interrupted)
    interrupted.close()
    resumed = run(task, tmp_path / "resumed")
    assert [report.epoch for report in resumed] == [3, 4]
    assert torch.equal(weights(tmp_path / "resumed"), weights(tmp_path / "uninterrupted"))


def test_a_fusion_with_frozen_branches_predicts_the_dimensions_of_its_pre_training(
    corpus: Corpus, branches: dict[str, str], tmp_path: Path
) -> None:
    task = replace(task_of(corpus, "va-fusion", va_frozen=True), initial=branches)
    record = trained(task, tmp_path / "fusion")
    torch.manual_seed(0)
    states = torch.randn(3, 9, AUDIO_DIM), None, torch.randn(3, 4, TEXT_DIM), None
    found = load_model(tmp_path / "fusion")(*states).dimensions
    own = [load_model(Path(branches[name]))(*states).dimensions for name in ("text", "audio")]
    torch.testing.assert_close(found, torch.cat([each for each in own if each is not None], dim=1))
    for name, folder in branches.items():
        config = record["initial"][name]
        assert config["fingerprint"] == Path(folder).name
        assert config["name"] == f"va-{name}"
        assert len(config["sha256"]) == 64


def test_the_losses_of_both_dimensions_go_on_in_the_branches(
    corpus: Corpus, branches: dict[str, str], tmp_path: Path
) -> None:
    base = replace(task_of(corpus, "va-fusion"), initial=branches)
    trained(base, tmp_path / "a")
    trained(replace(base, tasks={**base.tasks, "arousal": 0.0}), tmp_path / "b")
    before = load_model(Path(branches["audio"])).state_dict()["classifier.weight"]
    with_loss, without = (
        load_model(tmp_path / name).state_dict()["audio.classifier.weight"] for name in "ab"
    )
    moved = (with_loss - before).norm(), (without - before).norm()
    assert moved[0] > 2 * moved[1]  # that of weight decay alone


def test_the_whole_of_a_model_can_be_taken_over(corpus: Corpus, tmp_path: Path) -> None:
    task = make_task(corpus, epochs=1, learning_rate=1e-9)
    trained(task, tmp_path / "first")
    trained(replace(task, seed=9, initial={"": str(tmp_path / "first")}), tmp_path / "second")
    first, second = (load_model(tmp_path / name).state_dict() for name in ("first", "second"))
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, atol=1e-6, rtol=0)


def test_an_encoder_that_was_trained_with_a_branch_is_taken_over(tmp_path: Path) -> None:
    corpus = make_joint_corpus(tmp_path / "corpus")
    encoders = make_joint_task(corpus).encoders
    trained(replace(task_of(corpus, "va-audio"), encoders=encoders), tmp_path / "branch")
    fusion = replace(task_of(corpus, "va-fusion"), encoders=encoders)
    model = build_model(fusion.spec, AUDIO_DIM, TEXT_DIM, fusion.load_encoders())
    source = load_model(tmp_path / "branch")
    assert isinstance(model, JointModel) and isinstance(source, JointModel)
    before = model.trained_encoder_state()
    untrained = {name: tensor.clone() for name, tensor in before.items()}
    load_initial(model, {"audio": str(tmp_path / "branch")})
    found, expected = model.trained_encoder_state(), source.trained_encoder_state()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor)
    assert any(not torch.equal(untrained[name], tensor) for name, tensor in expected.items())
    branch = model.head.get_submodule("audio").state_dict()
    assert all(torch.equal(branch[name], t) for name, t in source.head.state_dict().items())


@pytest.mark.parametrize(
    ("spec", "initial", "sentence"),
    [
        (
            {"va_branch_heads": 3},
            "audio",
            r"of a model with heads 2, and the model that they are loaded into has 3; set both",
        ),
        ({"va_audio_layers": 2}, "audio", "with layers 1, and .* has 2"),
        ({"va_audio_dimension": "dominance"}, "audio", r"dimensions \['arousal'\]"),
        ({}, "speech", "va-fusion has no network `speech`"),
    ],
)
def test_weights_of_another_network_are_refused(
    corpus: Corpus,
    branches: dict[str, str],
    spec: dict[str, Any],
    initial: str,
    sentence: str,
) -> None:
    model = build(task_of(corpus, "va-fusion", **spec).spec, AUDIO_DIM, TEXT_DIM)
    with pytest.raises(MultistillError, match=sentence):
        load_initial(model, {initial: branches["audio"]})


def test_only_what_stands_on_a_changed_model_has_another_fingerprint(
    corpus: Corpus, branches: dict[str, str]
) -> None:
    base = task_of(corpus, "va-fusion")
    moved = {name: str(Path("/elsewhere") / Path(folder).name) for name, folder in branches.items()}
    changed = {**branches, "text": str(Path(branches["text"]).with_name("other"))}

    def fingerprint(initial: dict[str, str]) -> str:
        return ModelStore._fingerprint(replace(base, initial=initial), {})

    assert fingerprint(branches) == fingerprint(moved)
    assert len({fingerprint(each) for each in (branches, changed, {})}) == 3


def test_a_task_with_initial_weights_survives_json(
    corpus: Corpus, branches: dict[str, str]
) -> None:
    task = replace(task_of(corpus, "va-fusion"), initial=branches)
    assert TrainingTask.from_dict(task.to_dict()) == task
