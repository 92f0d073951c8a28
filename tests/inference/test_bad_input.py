"""Whatever is not a recording, a text or a model: the right answer or one sentence, by every door.

Each row is given to `Predictor`, `multistill predict`, `multistill stream`, MLflow and HTTP, which
must agree.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from helpers.doors import Answer, Doors, opened_doors
from helpers.features_case import save_electra
from helpers.predictor_case import save_predictor, speech_like

from multistill import Predictor
from multistill.audio import mpeg4
from multistill.audio.errors import UnusableClipError
from multistill.cli.app import main
from multistill.errors import MultistillError
from multistill.export.pyfunc import EmotionModel


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("model")
    return save_predictor(home / "m", features={"text": str(save_electra(home / "electra"))})


@pytest.fixture(scope="module")
def opened(model: Path) -> Iterator[Callable[..., Doors]]:
    with opened_doors(model, model.parent / "mlflow") as doors:
        yield doors


@pytest.fixture
def doors(opened: Callable[..., Doors], capsys: pytest.CaptureFixture[str]) -> Doors:
    return opened(capsys)


@pytest.fixture
def predictor(doors: Doors) -> Predictor:
    return doors.predictor


def run(
    capsys: pytest.CaptureFixture[str], *arguments: object, command: str = "predict"
) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main([command, *map(str, arguments)])
    captured = capsys.readouterr()
    return int(end.value.code or 0), captured.out, captured.err


def sound(rate: int = 16_000, seconds: float = 1.0, channels: int = 1, **how: Any) -> Any:
    def write(path: Path) -> None:
        samples = np.stack([speech_like(seconds, rate)] * channels, axis=1)
        soundfile.write(path, samples, rate, **{"format": "WAV", **how})

    return write


def samples(values: list[float], **how: Any) -> Any:
    return lambda path: soundfile.write(path, np.array(values), 16_000, format="WAV", **how)


NAN = {"subtype": "FLOAT"}
REFUSED: dict[str, tuple[Callable[[Path], Any], str, int]] = {
    "text": (lambda path: path.write_text("hello"), "not audio", 415),
    "random bytes": (
        lambda path: path.write_bytes(np.random.default_rng(0).bytes(4000)), "not audio", 415,
    ),
    "m4a": (
        lambda path: path.write_bytes(b"\0\0\0\x20ftypM4A \0\0\0\0"), "save it as FLAC", 415,
    ),
    "sample dump": (
        lambda path: path.write_bytes(b"\xf0\x7e\0\1" + bytes(200)), "save it as WAV", 415,
    ),
    "empty": (lambda path: path.touch(), "empty: 0 bytes", 422),
    "header only": (samples([]), "empty: no samples", 422),
    "one sample": (samples([0.5]), "too short: 1 samples", 422),
    "nan": (samples([0.1] * 999 + [float("nan")], **NAN), "not finite", 422),
    "infinite": (samples([0.1] * 999 + [float("inf")], **NAN), "not finite", 422),
    "cut in the header": (lambda path: path.write_bytes(b"RIFF\xff\xff"), "not audio", 415),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_recording_is_one_sentence(
    name: str, doors: Doors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mpeg4, "PACKAGE", "not_installed")
    make, reason, status = REFUSED[name]
    path = tmp_path / "a.wav"
    make(path)
    of_file, of_content = doors.by_class(path), doors.by_content(path)
    assert reason in of_content.error and of_file.error == f"{path}: {of_content.error}"
    assert doors.by_command(path) == replace(of_file, code=1)
    assert doors.by_http(path) == replace(of_content, code=status)
    assert doors.by_mlflow(path) == of_content
    by_stream = doors.by_stream(path)
    if name == "one sample":  # a stream ends at any time
        assert by_stream.code == 0 and "nobody spoke" in by_stream.error
    else:
        assert by_stream == replace(of_file, code=1)
    if name == "empty":
        of_content = Answer(error="nothing to read: the model reads audio and text")
    assert doors.by_mlflow_content(path) == of_content


NO_FILE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda path: None, "cannot be opened: No such file"),
    "folder in its place": (lambda path: path.mkdir(), "cannot be opened: not a regular file"),
    "pipe": (os.mkfifo, "cannot be opened: not a regular file"),
}


@pytest.mark.parametrize("name", NO_FILE)
def test_what_is_no_file_is_one_sentence(name: str, doors: Doors, tmp_path: Path) -> None:
    make, reason = NO_FILE[name]
    path = tmp_path / "a.wav"
    make(path)
    wanted = doors.by_class(path)
    assert reason in wanted.error and str(path) in wanted.error
    assert doors.by_stream(path) == replace(wanted, code=1)
    assert "neither a file nor the content of one" in doors.by_mlflow(path).error
    by_command = doors.by_command(path)
    if path.is_dir():
        assert by_command.code == 2 and "there is no recording" in by_command.error
    else:
        assert by_command == replace(wanted, code=1)


READ: dict[str, tuple[Callable[[Path], Any], float]] = {
    "8 kHz": (sound(8_000), 0.2),
    "96 kHz": (sound(96_000), 0.2),
    "22.05 kHz": (sound(22_050), 0.2),
    "six channels": (sound(channels=6), 0.01),
    "24 bit": (sound(subtype="PCM_24"), 0.01),
    "float": (sound(subtype="FLOAT"), 0.01),
    "double": (sound(subtype="DOUBLE"), 0.01),
    "8 bit": (sound(subtype="PCM_U8"), 0.2),
    "flac": (sound(format="FLAC"), 0.01),
    "ogg": (sound(format="OGG", subtype="VORBIS"), 0.2),
    "mp3": (sound(format="MP3"), 0.3),
}


@pytest.mark.parametrize("name", READ)
def test_the_same_speech_in_another_form_is_the_same_clip(
    name: str, doors: Doors, tmp_path: Path
) -> None:
    make, tolerance = READ[name]
    path = tmp_path / "a.wav"
    make(path)
    wanted = doors.predictor.predict((speech_like(1.0), 16_000)).distribution
    found = doors.by_class(path)
    assert max(abs(found.distribution[label] - wanted[label]) for label in wanted) < tolerance
    for door in (doors.by_content, doors.by_command, doors.by_http, doors.by_mlflow):
        assert door(path) == found
    by_stream = doors.by_stream(path)
    assert by_stream.label == found.label
    assert by_stream.distribution == pytest.approx(found.distribution, abs=1e-6)


@pytest.mark.parametrize(
    ("array", "rate", "reason"),
    [
        (np.zeros(0, np.float32), 16_000, "empty"),
        (np.zeros((2, 3, 4), np.float32), 16_000, "not audio"),
        (np.array(["a", "b"]), 16_000, "not audio"),
        (np.full(16_000, np.nan), 16_000, "not finite"),
        (np.full(16_000, 1e300), 16_000, "not finite"),
        (np.zeros(16_000, np.float32), 0, "invalid header"),
        (np.zeros((16_000, 0), np.float32), 16_000, "invalid header"),
        (np.zeros(100, np.float32), 16_000, "too short"),
    ],
)
def test_arrays_that_are_no_recording(
    predictor: Predictor, array: Any, rate: int, reason: str
) -> None:
    with pytest.raises(UnusableClipError, match=reason):
        predictor.predict((array, rate))


def test_integers_have_the_full_scale_of_their_type(predictor: Predictor) -> None:
    quiet = 0.3 * speech_like(1.0)
    forms = [(quiet * 2.0**15).astype(np.int16), (quiet * 2.0**31).astype(np.int32)]
    forms.append(((quiet + 1) * 2.0**15).astype(np.uint16))
    wanted = predictor.predict((quiet, 16_000)).distribution
    for form in forms:
        found = predictor.predict((form, 16_000)).distribution
        assert max(abs(found[label] - wanted[label]) for label in wanted) < 0.01


def test_ten_hours_are_cut_where_training_was(predictor: Predictor) -> None:
    hours = np.zeros(10 * 3600 * 8_000, np.int8)  # as one byte a sample
    hours[: 31 * 8_000] = (speech_like(31.0, 8_000) * 100).astype(np.int8)
    found = predictor.predict((hours, 8_000))
    assert found.notes == ("only the first 30 s were read",)
    first = predictor.predict((hours[: 30 * 8_000], 8_000))
    assert found.distribution == pytest.approx(first.distribution, abs=0.01)


@pytest.mark.parametrize("text", ["좋다 " * 33_000, "a" * 100_000, "\u200b" * 100_000 + "good"])
def test_a_very_long_text_is_cut(doors: Doors, text: str) -> None:
    found = doors.by_class(None, text)
    assert found.label is not None
    for door in (doors.by_command, doors.by_http, doors.by_mlflow):
        assert door(None, text) == found


@pytest.mark.parametrize("text", ["good \ud800 day", "\udcff", "a\x07b"])
def test_what_is_no_text_is_one_sentence(doors: Doors, text: str) -> None:
    found = doors.by_class(None, text)
    assert "the transcript has U+" in found.error
    assert doors.by_mlflow(None, text) == found
    by_command, by_http = doors.by_command(None, text), doors.by_http(None, text)
    assert (by_command.code, by_http.code) == (1, 422)
    assert found.error in by_command.error
    encodes = text.isascii()
    assert (found.error if encodes else "the field `text` is not in UTF-8") in by_http.error


def _edit(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))

    return edit


def _without(name: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        del config[name]
        (folder / "config.json").write_text(json.dumps(config))

    return edit


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "is not a model folder"),
    "cut config": (lambda folder: (folder / "config.json").write_text("{"), "is damaged"),
    "foreign config": (
        lambda folder: (folder / "config.json").write_text('{"model_type": "wav2vec2"}'),
        "is not the config of a multistill model",
    ),
    "list": (lambda folder: (folder / "config.json").write_text("[]"), "is not the config"),
    "other format": (_edit(format=1), "has format 1"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "is missing"),
    "cut weights": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"abc"),
        "is damaged",
    ),
    "other head": (_edit(audio_dim=81), "the weights belong to another architecture"),
    "file": (
        lambda folder: (shutil.rmtree(folder), folder.write_bytes(b"weights")),
        "is not a model folder",
    ),
    "unknown settings": (
        _edit(encoders={k: {"settings": {"model": "log-mel", "x": 1}} for k in ("speech", "text")}),
        "settings that this version does not know",
    ),
    "labels of another model": (_edit(labels=["joy"]), "1 labels and "),
    "no labels": (_edit(labels=None), "labels: Input should be a valid list"),
    "temperature 0": (_edit(temperature=0), "temperature: Input should be greater than 0"),
    "unknown output": (_edit(output="odds"), "output: Input should be 'logits'"),
    "unknown dtype": (_edit(dtype="int4"), "settings that this version does not know"),
    "no dtype": (_without("dtype"), "dtype: Field required"),
    "no training": (_without("training"), "training: Field required"),
    "encoders without values": (_edit(encoders={"speech": None}), "encoders.speech: Input should"),
    "no encoders": (_edit(encoders={}), "does not say which speech encoder it reads"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_or_foreign_model_folder_is_one_sentence(
    name: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, reason = BROKEN[name]
    folder = tmp_path / "m"
    shutil.copytree(model, folder)
    damage(folder)
    with pytest.raises(MultistillError, match=reason):
        Predictor.load(folder)
    with pytest.raises(MultistillError, match=reason):
        EmotionModel().load_context(SimpleNamespace(artifacts={"model": str(folder)}))
    sound()(tmp_path / "a.wav")
    for command, *arguments in (
        ("predict", "--text", "good day"),
        ("stream", "--audio", tmp_path / "a.wav"),
        ("export", "--format", "mlflow", "--out", tmp_path / "out"),
    ):
        code, out, err = run(capsys, folder, *arguments, command=command)
        assert code in (1, 2) and not out and reason in err and err.count("\n") == 1, command
        assert not (tmp_path / "out").exists()


def test_neither_model_nor_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, reason in (
        ("nothing", "neither a model folder nor a job"),
        ("a" * 300, "neither a model folder nor a job"),
        ("\udcff", "neither a model folder nor a job"),
        ("~nobody-at-all/m", "neither a model folder nor a job"),
        ("models:/nothing@champion", "there is no MLflow database"),
        ("runs:/0123", "there is no MLflow database"),
    ):
        code, _, err = run(capsys, name, "--text", "a", "--workspace", tmp_path)
        assert code == 2 and reason in err and err.count("\n") == 1
