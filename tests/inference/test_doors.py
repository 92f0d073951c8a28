"""One recording and one model: the same label and the same distribution by each door."""

from __future__ import annotations

import json
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import soundfile
import torch
from helpers.doors import Answer, Doors, opened_doors
from helpers.predictor_case import save_predictor
from helpers.stream_case import RATE, RECORDING

from multistill import Predictor
from multistill.audio.reading import read_sound
from multistill.export import programs
from multistill.export.formats import export
from multistill.export.to_folder import PROGRAM
from multistill.export.to_onnx import MODEL

TEXT = "오늘 정말 기뻐요"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of a recording of speech, in 16 bits at 16 kHz: as each door reads them."""
    path = tmp_path_factory.mktemp("clip") / "clip.wav"
    soundfile.write(path, read_sound(str(RECORDING)).samples[: 2 * RATE], RATE, subtype="PCM_16")
    return path


def samples_of(clip: Path) -> np.ndarray:
    with wave.open(str(clip)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), np.int16) / np.float32(32768)


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Doors]]:
    """Doors of a light student, which reads samples and no text."""
    home = tmp_path_factory.mktemp("light")
    folder = save_predictor(home / "model", "light-student-s", temperature=1.7)
    with opened_doors(folder, home / "mlflow") as doors:
        yield doors


@pytest.fixture(scope="module")
def multimodal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Doors]]:
    """Doors of a light student that reads hashed n-grams of the transcript too."""
    home = tmp_path_factory.mktemp("multimodal")
    features = {"text": {"model": "hashed-ngrams"}}
    folder = save_predictor(home / "model", "light-multimodal-student", features, temperature=0.8)
    with opened_doors(folder, home / "mlflow") as doors:
        yield doors


def assert_same(found: Answer, wanted: Answer, difference: float) -> None:
    assert not found.error and found.label == wanted.label is not None
    assert list(found.distribution) == list(wanted.distribution)
    shares = [list(each.distribution.values()) for each in (found, wanted)]
    np.testing.assert_allclose(*shares, rtol=0, atol=difference)


def test_a_recording_gets_one_answer(
    light: Callable[..., Doors], clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    doors = light(capsys)
    wanted = doors.by_class(clip)
    assert max(wanted.distribution.values()) > 0.2, "or nothing is decided"
    for door in (doors.by_command, doors.by_stream, doors.by_http, doors.by_websocket):
        assert_same(door(clip), wanted, 0.0)
    for door in (doors.by_content, doors.by_mlflow, doors.by_mlflow_content):
        assert_same(door(clip), wanted, 0.0)


def test_what_was_exported_gives_the_same_answer(
    light: Callable[..., Doors],
    clip: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """ONNX Runtime alone, the folder with this package, and its program with torch alone."""
    doors = light(capsys)
    wanted = doors.by_class(clip)
    traced = programs.trace(doors.folder)  # once for both formats
    monkeypatch.setattr(programs, "trace", lambda folder, head_only: traced)
    for form in ("onnx", "folder"):
        export(doors.folder, tmp_path / form, form)
    samples = samples_of(clip)

    session = onnxruntime.InferenceSession(tmp_path / "onnx" / MODEL)
    inputs = {"samples": samples[None], "lengths": np.array([len(samples)])}
    [shares] = session.run(["distribution"], inputs)
    labels = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
    assert_same(answer(labels, shares), wanted, 1e-4)

    found = Predictor.load(tmp_path / "folder", "cpu").predict(clip)
    assert_same(Answer(found.label, found.distribution), wanted, 0.0)
    program = torch.export.load(tmp_path / "folder" / PROGRAM).module()
    with torch.no_grad():
        shares = program(**{name: torch.from_numpy(each) for name, each in inputs.items()})
    assert_same(answer(labels, shares["distribution"]), wanted, 1e-4)


def answer(labels: list[str], shares: Any) -> Answer:
    distribution = dict(zip(labels, shares[0].tolist(), strict=True))
    return Answer(max(distribution, key=distribution.__getitem__), distribution)


@pytest.mark.parametrize("given", ["both", "recording", "transcript"])
def test_a_recording_with_its_transcript_gets_one_answer(
    multimodal: Callable[..., Doors],
    clip: Path,
    given: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    doors = multimodal(capsys)
    clips = (None if given == "transcript" else clip, None if given == "recording" else TEXT)
    wanted = doors.by_class(*clips)
    for door in (doors.by_command, doors.by_http, doors.by_mlflow):
        assert_same(door(*clips), wanted, 0.0)
    if given == "recording":
        assert wanted != doors.by_class(clip, TEXT)
        for stream in (doors.by_stream, doors.by_websocket):
            assert_same(stream(clip), wanted, 0.0)
