"""Advice about networks, pre-training and initial weights: provoked and followed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.advice import says, told
from helpers.joint_case import make_joint_corpus, make_joint_task
from helpers.training_corpus import make_corpus, make_task, trained

from multistill.errors import JobFileError, UsageError
from multistill.models.build import build
from multistill.models.joint import build_model
from multistill.models.presets import resolve
from multistill.pipeline import jobfile
from multistill.training.initial import load_initial

BASE = "name: x\ncorpora: [{kind: demo}]\n"
FUSION = "recipe: pretrain\nteacher: {model: {preset: va-fusion%s}}\n"
STUDENT = "students: [{name: a, model: {preset: %s}}]\n"
PRETRAIN = FUSION % "" + "pretrain: {%s}\n"
AUGMENTED = "students: [{name: a, model: small-student, train: {augmentation: {only: [%s], %s}}}]\n"
TRAINED_TEXT = "features: {text: {train: full}}\n"
SPEECH = "features: {speech: {model: %s}}\n"

JOB_FILES: list[tuple[str, str, list[str]]] = [
    # what provokes it, the advice, what the user writes instead
    (
        STUDENT % "va-audio, fusion: mixer",
        "does not use `{}`; remove it from the model",
        [STUDENT % "va-audio"],
    ),
    (
        STUDENT % "small-student, va_recurrent: 8",
        "does not use `{}`; remove it from the model",
        [STUDENT % "small-student"],
    ),
    (
        FUSION % ", va_text_dimension: arousal",
        "set va_audio_dimension and va_text_dimension to different dimensions",
        [FUSION % ", va_text_dimension: dominance"],
    ),
    (
        "recipe: pretrain\nteacher: small-teacher\n",
        "has none; use `{}` or `paper-{}`, or `recipe: distillation`",
        [FUSION % "", "recipe: pretrain\nteacher: paper-va-fusion\n", "teacher: small-teacher\n"],
    ),
    (
        FUSION % ", va_frozen: true" + TRAINED_TEXT,
        "what they read; set `va_frozen: false`, or `train: none`",
        [FUSION % ", va_frozen: false" + TRAINED_TEXT, FUSION % ", va_frozen: true"],
    ),
    (
        PRETRAIN % "audio: {metric: uar}",
        "a branch predicts a dimension; use `ccc` or `loss`",
        [PRETRAIN % "audio: {metric: ccc}", PRETRAIN % "audio: {metric: loss}"],
    ),
    (
        PRETRAIN % "text: {oversample: true}",
        "a branch predicts a dimension; remove them",
        [PRETRAIN % "text: {}"],
    ),
    (
        AUGMENTED % ("joy", "noise: 0.1"),
        "train.augmentation.only: `{}` is not a class of the job; use some of {}",
        [AUGMENTED % ("happy", "noise: 0.1")],
    ),
    (
        AUGMENTED % ("happy", "mixup: 0.1"),
        "set `feature_masks: 1`, for example, or remove `only`",
        [AUGMENTED % ("happy", "feature_masks: 1"), AUGMENTED % ("", "mixup: 0.1")],
    ),
    (
        "search: {space: {train.augmentation.only: {choices: [happy]}}}\n",
        "choose the classes in `students`",
        [AUGMENTED % ("happy", "noise: 0.1")],
    ),
    (
        SPEECH % "untrained-wav2vec2, bands: 40",
        "it is a setting of `log-mel`, and the encoder is `{}`; remove it",
        [SPEECH % "untrained-wav2vec2", SPEECH % "log-mel, bands: 40"],
    ),
    (
        STUDENT % "paper-va-fusion" + SPEECH % "log-mel",
        "and here they have none; set `va_frozen: false`, or let",
        [
            STUDENT % "paper-va-fusion, va_frozen: false" + SPEECH % "log-mel",
            FUSION.replace("va-fusion", "paper-va-fusion") % "" + SPEECH % "log-mel",
        ],
    ),
    (
        STUDENT % "va-fusion"
        + SPEECH % "log-mel"
        + "search: {space: {model.va_frozen: {choices: [true, false]}}}\n",
        "fusion, and those of a student are not; remove that key",
        [STUDENT % "va-fusion" + SPEECH % "log-mel" + "search: {trials: 2}\n"],
    ),
    (
        PRETRAIN % "" + "tasks: [valence]\n" + SPEECH % "log-mel",
        "both would learn nothing; add `classes` to `tasks`, or use presets `va-audio` and ",
        [
            PRETRAIN % "" + "tasks: [classes, valence]\n" + SPEECH % "log-mel",
            "teacher: {model: va-text}\ntasks: [valence]\n",
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


def test_a_branch_on_a_trained_encoder_changes_no_states() -> None:
    text = "recipe: pretrain\nteacher: {model: va-fusion}\npretrain: {%s}\nfeatures: "
    text += "{speech: log-mel, text: {model: klue/bert-base, train: full}}\n"
    with pytest.raises(JobFileError) as refused:
        jobfile.parse(BASE + text % "text: {augmentation: {word_swap: 0.2}}", "x.yaml")
    says(
        "remove it, and use `time_mask` and `feature_mask` of features.speech.train, or",
        refused.value,
    )
    jobfile.parse(BASE + text % "audio: {augmentation: {time_masks: 1}}", "x.yaml")


def test_another_modality() -> None:
    with told("and modality is {}; choose another preset", UsageError):
        resolve("va-audio", {"modality": "text"})
    assert resolve("va-text", {}).modality == "text"


def test_bands() -> None:
    with told("and the features have {} bands; use at least 4", UsageError):
        build(resolve("va-audio", {}), 3, 8)
    with torch.device("meta"):
        assert build(resolve("va-audio", {}), 4, 8).pooled_dim == 64


def test_initial_weights(tmp_path: Path) -> None:
    task = make_task(make_corpus(tmp_path / "corpus"), epochs=1)
    trained(task, tmp_path / "model")
    folder = str(tmp_path / "model")

    def load(name: str = "", **spec: int) -> None:
        load_initial(build(replace(task.spec, **spec), 12, 8), {name: folder})

    with told("could be loaded into; name one that it has"):
        load("audio")
    with told("and the model that they are loaded into has {}; set both alike"):
        load(heads=4)
    load()


def test_initial_weights_with_an_encoder(tmp_path: Path) -> None:
    task = make_joint_task(make_joint_corpus(tmp_path / "corpus"), epochs=1)
    trained(task, tmp_path / "model")
    initial = {"": str(tmp_path / "model")}
    encoders = task.load_encoders()
    [encoder] = encoders.values()
    dims = (encoder.dim, 8)
    with told("and the model trains none; set `train_encoder` alike in both"):
        load_initial(build(task.spec, *dims), initial)
    load_initial(build_model(task.spec, encoder.stored_dim, 8, encoders), initial)
