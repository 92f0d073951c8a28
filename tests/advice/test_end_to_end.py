"""Advice about FE2E, MESM and losses of one class against the rest: provoked and followed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers.advice import says, told

from multistill.errors import JobFileError, UsageError
from multistill.models.presets import resolve
from multistill.pipeline import jobfile
from multistill.pipeline.data_check import check_data

BASE = "name: x\ncorpora: [{kind: demo}]\n"
LOG_MEL = "features: {speech: {model: log-mel}}\n"
TEACHER = LOG_MEL + "teacher: {model: {preset: %s}, train: {%s}}\n"
STUDENT = LOG_MEL + "students: [{name: a, model: {preset: %s}, train: {%s}}]\n"

JOB_FILES: list[tuple[str, str, list[str]]] = [
    # what provokes it, the advice, what the user writes instead
    (
        TEACHER % ("small-fe2e", "class_weights: odds"),
        "does not tell apart; set `loss: one-vs-rest`, or `class_weights: inverse`",
        [
            TEACHER % ("small-fe2e", "class_weights: odds, loss: one-vs-rest"),
            TEACHER % ("small-fe2e", "class_weights: inverse"),
        ],
    ),
    (
        STUDENT % ("small-student", "loss: one-vs-rest"),
        "use another `train.loss` for the student (its teacher may have this one)",
        [
            STUDENT % ("small-student", "loss: focal"),
            TEACHER % ("small-teacher", "loss: one-vs-rest"),
        ],
    ),
    (
        TEACHER % ("paper-mesm", "workers: 2"),
        "`accumulation: 1` and no `batch_frames`, or `chunk_normalization: layer`",
        [
            TEACHER % ("paper-mesm", "workers: 1"),
            TEACHER % ("paper-mesm, chunk_normalization: layer", "workers: 2"),
        ],
    ),
    (
        STUDENT % ("paper-fe2e", "") + "search: {workers_per_trial: 2}\n",
        "search no `train.accumulation`, or set `chunk_normalization: layer`",
        [
            STUDENT % ("paper-fe2e", "") + "search: {workers_per_trial: 1}\n",
            STUDENT % ("fe2e", "") + "search: {workers_per_trial: 2}\n",
        ],
    ),
    (
        TEACHER % ("small-mesm, top_p: 0.5, pooling: attention", ""),
        "makes one state of a text by pooling published or mean, not {}",
        [TEACHER % ("small-mesm, top_p: 0.5, pooling: mean", "")],
    ),
]


@pytest.mark.parametrize(("wrong", "advice", "right"), JOB_FILES)
def test_job_files(wrong: str, advice: str, right: list[str]) -> None:
    with pytest.raises((JobFileError, UsageError)) as refused:
        jobfile.parse(BASE + wrong, "x.yaml")
    says(advice, refused.value)
    for text in right:
        jobfile.parse(BASE + text, "x.yaml")


@pytest.mark.parametrize(
    ("wrong", "piece"),
    [
        (TEACHER % ("small-msem", ""), "did you mean `small-mesm`?"),
        (TEACHER % ("small-mesm, modality: audio", ""), "modality"),
        (TEACHER % ("small-fe2e, top_p: 0.5", ""), "the network fe2e does not use `top_p`"),
        (
            "features: {speech: {model: smart-turn}}\nteacher: {model: {preset: small-mesm}}\n",
            "the network mesm reads the bands of log-mel energies, and this one would read the "
            "states of smart-turn; add `additional: [log-mel]` to features.speech",
        ),
        (TEACHER % ("small-fe2e", "loss: one-vs-rst"), "one-vs-rest"),
    ],
)
def test_what_fits_no_end_to_end_network_is_one_sentence(wrong: str, piece: str) -> None:
    with pytest.raises((JobFileError, UsageError)) as refused:
        jobfile.parse(BASE + wrong, "x.yaml")
    assert piece in str(refused.value)


def test_the_share_of_points_is_searched() -> None:
    space = "search: {space: {model.top_p: {low: 0.5, high: 1.0}}}\n"
    job = jobfile.parse(BASE + STUDENT % ("small-mesm", "") + space, "x.yaml")
    assert "model.top_p" in job.search.space


def test_a_share_of_nothing() -> None:
    with told("top_p must be above 0 and at most 1, not {}", UsageError):
        resolve("mesm", {"top_p": 0.0})
    assert resolve("mesm", {"top_p": 0.01}).top_p == 0.01


def test_a_corpus_without_transcripts(tmp_path: Path) -> None:
    rows = ["audio_path,text,label,speaker"]
    for number in range(24):
        wave = 0.3 * np.sin(np.arange(8_000 + 10 * number) / (9 + number))
        soundfile.write(tmp_path / f"{number}.wav", wave, 16_000)
        rows.append(f"{number}.wav,,{('Ruhig', 'wut')[number % 2]},p{number // 4}")
    (tmp_path / "t.csv").write_text("\n".join(rows), encoding="utf-8")
    text = (
        f"name: x\nworkspace: {tmp_path}/w\ncorpora: [{{kind: table, path: {tmp_path}/t.csv}}]\n"
        "labels: {classes: [calm, anger]}\nsplit: {by: speaker, valid: 0.2, test: 0.2}\n"
        "distillation: {targets: in-sample}\n"
    )
    student = "students: [{name: a, model: {preset: small-audio-student}}]\n"
    with told("which computes all, or corpora with transcripts", UsageError):
        check_data(jobfile.parse(text + TEACHER % ("small-mesm", "") + student, "x.yaml"))
    check_data(jobfile.parse(text + TEACHER % ("small-fe2e", "") + student, "x.yaml"))
    (tmp_path / "t.csv").write_text("\n".join(rows).replace(",,", ",said,"), encoding="utf-8")
    check_data(jobfile.parse(text + TEACHER % ("small-mesm", "") + student, "x.yaml"))
