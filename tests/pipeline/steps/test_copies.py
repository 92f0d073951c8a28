"""The step of distorted copies: when a job has it, what decides it, and who reads it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers.training_corpus import make_corpus

from multistill.errors import UsageError
from multistill.pipeline import jobfile
from multistill.pipeline.recipes import steps_of
from multistill.pipeline.steps.copies import Copies
from multistill.pipeline.steps.label_shares import LabelShares
from multistill.pipeline.steps.search import Search
from multistill.pipeline.steps.training import Students, Teacher
from multistill.workspace import Artifact, Workspace

JOB = "name: small\ncorpora: [{kind: demo}]\nsearch: true\nlabel_shares: true\n"
WITH = JOB + "features: {augmentation: {copies: 2, noise: 1.0%s}}\n"


def artifacts(folder: Path) -> dict[str, Artifact]:
    names = ("manifest", "features", "statistics", "teachers", "soft_targets", "copies")
    meta = {"summary": {"splits": {"train": 40}, "content": "0", "seeds": ["0"]}}
    return {name: Artifact(name, name, folder, meta) for name in names}


def test_copies_are_made_before_the_first_training_and_decide_all_of_them(tmp_path: Path) -> None:
    make_corpus(tmp_path)
    workspace, made = Workspace(tmp_path), artifacts(tmp_path)
    plain, augmented = (
        steps_of(jobfile.parse(text, "job.yaml"), workspace) for text in (JOB, WITH % "")
    )
    names = [step.name for step in augmented]
    assert [name for name in names if name != "copies"] == [step.name for step in plain]
    assert names.index("statistics") < names.index("copies") < names.index("teacher")
    for before, after in zip(plain, [s for s in augmented if s.name != "copies"], strict=True):
        if before.name in ("features", "statistics", "distill"):
            assert before.fingerprint(made) == after.fingerprint(made), "these read no copies"
        if isinstance(after, Teacher | Students | LabelShares | Search):
            assert "copies" in after.reads() and "copies" not in before.reads()


def test_models_that_read_speech_are_trained_on_copies(tmp_path: Path) -> None:
    make_corpus(tmp_path)
    students = Students(jobfile.parse(WITH % "", "job.yaml"), Workspace(tmp_path))
    copies = {name: task.copies for name, [task] in students.tasks(artifacts(tmp_path)).items()}
    store = str(tmp_path / "store")
    assert copies == {
        "multimodal": store, "multimodal-control": store, "audio": store, "audio-control": store,
        "text": None, "text-control": None,
    }  # fmt: skip


def test_recordings_that_appear_in_the_noise_folder_make_other_copies(tmp_path: Path) -> None:
    folder, made = tmp_path / "noise", artifacts(tmp_path)

    def write(name: str) -> None:
        soundfile.write(folder / name, np.ones(800, np.float32) / 2, 16_000)

    folder.mkdir()
    write("a.wav")
    step = Copies(
        jobfile.parse(WITH % f", noise_folder: {folder}", "job.yaml"), Workspace(tmp_path)
    )
    before = step.fingerprint(made)
    (folder / "readme.txt").write_text("no recording")
    assert step.fingerprint(made) == before
    write("b.wav")
    assert step.fingerprint(made) != before
    assert step.problems() == []


@pytest.mark.parametrize("protocol", ["k-fold", "leave-one-out"])
def test_babble_is_refused_where_its_speakers_are_tested(protocol: str, tmp_path: Path) -> None:
    babble = WITH % ", noise_kinds: [white, babble]"
    jobfile.parse(babble, "job.yaml")
    with pytest.raises(UsageError, match=f"another fold of `protocol: {protocol}` tests"):
        jobfile.parse(f"{babble}protocol: {protocol}\n", "job.yaml")
    jobfile.parse(
        f"{WITH % f', noise_kinds: [babble], noise_folder: {tmp_path}'}protocol: {protocol}\n",
        "job.yaml",
    )


def test_folders_of_recordings_are_made_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = jobfile.parse(WITH % ", noise_folder: noise, rooms: rooms", "job.yaml")
    assert job.features.augmentation.folders() == {
        "noise_folder": str(tmp_path / "noise"),
        "rooms": str(tmp_path / "rooms"),
    }
