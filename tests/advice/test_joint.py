"""Advice about encoders that are trained with models: provoked and followed."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.advice import says, told
from helpers.joint_case import make_joint_corpus, make_joint_task, save_wav2vec2
from helpers.tiny_encoders import save_speech_model

from multistill.config import AugmentationConfig, SpeechEncoderConfig
from multistill.encoders.preflight import slimmed_problems
from multistill.encoders.slim import EncoderSizes
from multistill.errors import JobFileError, UsageError
from multistill.models.files import load_model
from multistill.pipeline import jobfile
from multistill.training.data import TrainingData
from multistill.training.export import export
from multistill.training.loop import fit
from multistill.training.task import TrainingTask

BASE = "name: x\ncorpora: [{kind: demo}]\n"
SPEECH = "features: {speech: {model: untrained-wav2vec2, train: %s}}\n"
STUDENT = "students: [{name: a, model: {preset: small-audio-student%s}%s}]\n"
LAST, FULL = SPEECH % "last-1", SPEECH % "full"
SLIM = ", encoder_layers: 1, encoder_heads: 2, encoder_feedforward: 64"
SPACE = "search: {space: {%s}}\n"

JOB_FILES: list[tuple[str, str, list[str]]] = [
    # what provokes it, the advice, what the user writes instead
    (
        SPEECH % "last",
        "`last` needs the number of layers to train; write last-1 or more",
        [SPEECH % "last-1"],
    ),
    (
        SPEECH % "last-0",
        "write last-1, last-2 or more, and no `layers` beside it",
        [SPEECH % "last-2"],
    ),
    (
        SPEECH % "{kind: last-1, layers: 2}",
        "write last-1, last-2 or more, and no `layers` beside it",
        [SPEECH % "last-2", SPEECH % "{kind: last, layers: 2}"],
    ),
    (
        SPEECH % "{kind: last-1, rank: 4}",
        "`{}` is a setting of {}, and `train` is `{}`; remove it, or set another `kind`",
        [SPEECH % "last-1", SPEECH % "{kind: lora, layers: 1, rank: 4}"],
    ),
    (
        LAST + "recipe: features-only\n",
        "trains no model that would train the encoder; set `none`, or `recipe: distillation`",
        [SPEECH % "none" + "recipe: features-only\n", LAST + "recipe: distillation\n"],
    ),
    (
        LAST + STUDENT % (", context_turns: 2", ""),
        "changes the encoder at every step; set context_turns to 0, or `train: none`",
        [
            LAST + STUDENT % (", context_turns: 0", ""),
            SPEECH % "none" + STUDENT % (", context_turns: 2", ""),
        ],
    ),
    (
        LAST + STUDENT % ("", ", train: {augmentation: {noise: 0.1}}"),
        "remove it, and use `time_mask` and `feature_mask` of features.speech.train, or",
        [
            LAST + STUDENT % ("", ""),
            SPEECH % "{kind: last-1, time_mask: 0.1}" + STUDENT % ("", ""),
            LAST + STUDENT % ("", ", train: {augmentation: {mixup: 0.2, mixup_of: pooled}}"),
        ],
    ),
    (
        LAST + STUDENT % ("", "") + SPACE % "train.augmentation.noise: {low: 0, high: 0.5}",
        "remove that key",
        [
            LAST + STUDENT % ("", "") + SPACE % "train.learning_rate: {low: 1e-4, high: 1e-3}",
            SPEECH % "none"
            + STUDENT % ("", "")
            + SPACE % "train.augmentation.noise: {low: 0, high: 0.5}",
        ],
    ),
    (
        LAST + STUDENT % ("", "") + SPACE % "train.augmentation.mixup: {low: 0, high: 0.5}",
        "set `mixup_of: pooled` of the student, or remove that key",
        [
            LAST
            + STUDENT % ("", ", train: {augmentation: {mixup_of: pooled}}")
            + SPACE % "train.augmentation.mixup: {low: 0, high: 0.5}",
        ],
    ),
    (
        LAST + STUDENT % (SLIM, ""),
        "set `train: full` there (with `train_encoder: false`, other models leave it as it is)",
        [FULL + STUDENT % (SLIM, "")],
    ),
    (
        FULL.replace("train:", "layers: [1, 2], train:") + STUDENT % (SLIM, ""),
        "features.speech.layers names several; name one layer there",
        [FULL.replace("train:", "layers: [1], train:") + STUDENT % (SLIM, "")],
    ),
    (
        FULL + STUDENT % (", encoder_layers: 3", ""),
        "is more than the {} {} of `{}`; lower the size",
        [FULL + STUDENT % (", encoder_layers: 2", "")],
    ),
    (
        FULL + STUDENT % (SLIM + ", train_encoder: false", ""),
        "and `train_encoder` is false; remove it, or the sizes `encoder_...`",
        [FULL + STUDENT % (SLIM, ""), FULL + STUDENT % (", train_encoder: false", "")],
    ),
    (
        FULL + (STUDENT % (SLIM, "")).replace("audio", "text"),
        "and this model reads text alone; remove these three",
        [FULL + STUDENT % (SLIM, "")],
    ),
    (
        FULL + f"teacher: {{model: {{preset: small-audio-teacher{SLIM}}}}}\n" + STUDENT % ("", ""),
        "which is slimmer than its teacher; remove the sizes",
        [FULL + "teacher: small-audio-teacher\n" + STUDENT % (SLIM, "")],
    ),
    (
        SPEECH.replace("train: %s", "additional: [log-mel]") + STUDENT % (SLIM, ""),
        "remove the others, or the sizes `encoder_...` of the model",
        [
            FULL + STUDENT % (SLIM, ""),
            SPEECH.replace("train: %s", "additional: [log-mel]") + STUDENT % ("", ""),
        ],
    ),
    (
        FULL
        + STUDENT % (", train_encoder: false", "")
        + SPACE % "model.encoder_heads: {low: 1, high: 2}",
        "trains none; search other keys",
        [
            FULL + STUDENT % ("", "") + SPACE % "model.encoder_heads: {low: 1, high: 2}",
            FULL + STUDENT % (", train_encoder: false", "") + SPACE % "model.width: {choices: [8]}",
        ],
    ),
]


@pytest.mark.parametrize(("wrong", "advice", "right"), JOB_FILES)
def test_job_files(wrong: str, advice: str, right: list[str]) -> None:
    with pytest.raises((JobFileError, UsageError)) as refused:
        jobfile.parse(BASE + wrong, "x.yaml")
    says(advice, refused.value)
    for text in right:
        jobfile.parse(BASE + text, "x.yaml")


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> TrainingTask:
    corpus = make_joint_corpus(tmp_path_factory.mktemp("joint"))
    return make_joint_task(corpus, epochs=1)


def test_previous_turns(task: TrainingTask) -> None:
    spec = replace(task.spec, context_turns=2)
    with told("which a trained encoder changes at every step; set context_turns to 0", UsageError):
        replace(task, spec=spec)
    assert replace(task, spec=spec, encoders={}).spec.context_turns


def test_augmented_rows(task: TrainingTask) -> None:
    def augmented(**settings: object) -> TrainingTask:
        return task.with_train(augmentation=AugmentationConfig.model_validate(settings))

    with told("input of an encoder that is trained; use `mixup_of: pooled` alone", UsageError):
        augmented(mixup=0.2)
    assert augmented(mixup=0.2, mixup_of="pooled").encoders


def test_layers_that_cannot_be_slimmed(tmp_path: Path) -> None:
    def check(kind: str, **sizes: int) -> None:
        model = str(save_speech_model(tmp_path / kind, kind))
        config = SpeechEncoderConfig(model=model, train="full")
        for problem in slimmed_problems(config, EncoderSizes(**sizes)):
            raise UsageError(problem)

    with told("use an encoder of type {}, or remove the sizes `encoder_...`", UsageError):
        check("wavlm", heads=1)
    check("hubert", heads=1)


def test_a_slimmed_encoder_without_an_encoder(task: TrainingTask) -> None:
    spec = replace(task.spec, encoder_heads=1)
    with told("set `train: full` in features.speech, or no sizes `encoder_...`", UsageError):
        replace(task, spec=spec, encoders={})
    full = task.encoders["speech"].with_training({"kind": "full"})
    assert replace(task, spec=spec, encoders={"speech": full}).encoders["speech"].slim.heads == 1
    assert replace(task, encoders={}).spec == task.spec


def test_another_base(task: TrainingTask, tmp_path: Path) -> None:
    data = TrainingData.open(task)
    list(fit(task, state_dir=tmp_path / "state", data=data, device="cpu"))
    export(task, data, tmp_path / "state", tmp_path / "model")
    base = Path(task.encoders["speech"].config.model)
    shutil.copytree(base, tmp_path / "kept")
    save_wav2vec2(base, seed=1)
    with told("belongs to another base; restore those weights, or train again"):
        load_model(tmp_path / "model")
    shutil.rmtree(base)
    shutil.copytree(tmp_path / "kept", base)
    assert load_model(tmp_path / "model").spec == task.spec
