"""One recording and one model: the same label and the same distribution by each door."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import soundfile
import torch
from helpers.doors import Answer, Doors, by_onnx_runtime, graph_inputs, opened_doors
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


def test_a_recording_gets_one_answer(
    light: Callable[..., Doors], clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    doors = light(capsys)
    wanted = doors.by_class(clip)
    assert max(wanted.distribution.values()) > 0.2, "or nothing is decided"
    for door in (doors.by_command, doors.by_stream, doors.by_http, doors.by_websocket):
        door(clip).assert_same(wanted, 0.0)
    for door in (doors.by_content, doors.by_mlflow, doors.by_mlflow_content):
        door(clip).assert_same(wanted, 0.0)


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
    traced = programs.trace(Path(doors.model))  # once for both formats
    monkeypatch.setattr(programs, "trace", lambda folder, head_only: traced)
    for form in ("onnx", "folder"):
        export(doors.model, tmp_path / form, form)

    by_onnx_runtime(tmp_path / "onnx" / MODEL, clip).assert_same(wanted, 1e-4)
    found = Predictor.load(tmp_path / "folder", "cpu").predict(clip)
    Answer(found.label, found.distribution).assert_same(wanted, 0.0)
    program = torch.export.load(tmp_path / "folder" / PROGRAM).module()
    inputs = {name: torch.from_numpy(each) for name, each in graph_inputs(clip).items()}
    with torch.no_grad():
        shares = program(**inputs)["distribution"][0].numpy()
    Answer.of(list(found.distribution), shares).assert_same(wanted, 1e-4)


@pytest.mark.parametrize("given", ["both", "recording", "transcript"])
def test_a_recording_with_its_transcript_gets_one_answer(
    multimodal: Callable[..., Doors],
    clip: Path,
    given: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    doors = multimodal(capsys)
    clips = (None if given == "transcript" else clip, None if given == "recording" else TEXT)
    wanted = doors.by_class(*clips)
    for door in (doors.by_command, doors.by_http, doors.by_mlflow):
        door(*clips).assert_same(wanted, 0.0)
    if given == "recording":
        assert wanted != doors.by_class(clip, TEXT)
        for stream in (doors.by_stream, doors.by_websocket):
            stream(clip).assert_same(wanted, 0.0)
        export(doors.model, tmp_path / "onnx", "onnx")
        by_onnx_runtime(tmp_path / "onnx" / MODEL, clip).assert_same(wanted, 1e-4)
