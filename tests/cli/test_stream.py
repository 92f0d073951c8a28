"""`multistill stream`: sources, what it prints, how it ends."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from helpers.predictor_case import LABELS, save_predictor
from helpers.stream_case import RATE, speech_with_pauses

from multistill import Predictor
from multistill.cli.app import main
from multistill.inference import stream_sources

SAMPLES = speech_with_pauses()
RAW = (SAMPLES * 32_767).astype("<i2").tobytes()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stream")
    save_predictor(folder / "model", "small-audio-student")
    soundfile.write(folder / "long.wav", SAMPLES, RATE, subtype="PCM_16")
    return folder


@pytest.fixture
def standard_input(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that writes bytes into the pipe that the command reads."""

    def write(data: bytes) -> None:
        out, into = os.pipe()
        monkeypatch.setattr(stream_sources, "_STANDARD_INPUT", out)

        def send() -> None:
            with os.fdopen(into, "wb") as file:
                file.write(data)

        threading.Thread(target=send, daemon=True).start()

    return write


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[Any], str]:
    with pytest.raises(SystemExit) as end:
        main(["stream", *map(str, arguments)])
    captured = capsys.readouterr()
    lines = [json.loads(line) for line in captured.out.splitlines()]
    return int(end.value.code or 0), lines, captured.err


def without_times(lines: list[Any]) -> list[Any]:
    return [{k: v for k, v in line.items() if k != "milliseconds"} for line in lines]


def test_a_recording_and_a_pipe_give_the_same_lines(
    home: Path, capsys: pytest.CaptureFixture[str], standard_input: Any
) -> None:
    code, lines, err = run(capsys, home / "model", "--audio", home / "long.wav")
    assert code == 0 and not err
    changing = ("interim", "provisional")
    events = [line["event"] for line in lines if line["event"] not in changing]
    assert events == ["start", "final"] * 3
    samples = soundfile.read(home / "long.wav", dtype="float32")[0]
    predictor = Predictor.load(home / "model", "cpu")
    for line in lines:
        if line["event"] == "final":
            piece = samples[round(line["start"] * RATE) : round(line["end"] * RATE)]
            assert line["distribution"] == predictor.predict_samples(piece).distribution
            assert list(line["distribution"]) == list(LABELS)
    data = (soundfile.read(home / "long.wav", dtype="int16")[0]).astype("<i2").tobytes()
    standard_input(data)
    code, piped, err = run(capsys, home / "model", "--audio", "-")
    assert code == 0 and not err
    assert without_times(piped) == without_times(lines)
    code, finals, _ = run(capsys, home / "model", "--audio", home / "long.wav", "--final-only")
    assert [line["event"] for line in finals] == ["final"] * 3
    assert [line["label"] for line in finals] == [
        line["label"] for line in lines if line["event"] == "final"
    ]


def test_what_is_said_besides(
    home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    soundfile.write(tmp_path / "silence.wav", np.zeros(2 * RATE), RATE)
    code, lines, err = run(capsys, home / "model", "--audio", tmp_path / "silence.wav")
    assert code == 0 and not lines and "nobody spoke" in err
    save_predictor(tmp_path / "both")
    code, lines, err = run(capsys, tmp_path / "both", "--audio", home / "long.wav", "--final-only")
    assert code == 0 and len(lines) == 3 and err.count("\n") == 1
    assert "reads text too" in err and all(line["missing"] == ["text"] for line in lines)


REFUSED: dict[str, tuple[bytes | None, list[str], int, str]] = {
    "empty": (b"", ["--audio", "-"], 1, "standard input: empty: 0 bytes"),
    "odd": (RAW[: 2 * RATE + 1], ["--audio", "-"], 1, "standard input: truncated: an odd number"),
    "a file": (b"RIFF" + RAW[:99], ["--audio", "-"], 1, "standard input: not raw samples"),
    "rate": (RAW[:99], ["--audio", "-", "--rate", "10"], 2, "rate: 10 is not possible"),
    "rate 0": (RAW[:99], ["--audio", "-", "--rate", "0"], 2, "rate: 0 is not possible"),
    "rate of a file": (None, ["--audio", "long.wav", "--rate", "16000"], 2, "has its own"),
    "no source": (None, [], 2, "give either --audio or --microphone"),
    "two": (None, ["--audio", "long.wav", "--microphone"], 2, "give either"),
    "not audio": (None, ["--audio", "model/config.json"], 1, "config.json: not audio"),
    "missing": (None, ["--audio", "none.wav"], 1, "none.wav: cannot be opened: No such file"),
    "folder": (None, ["--audio", "model"], 1, "model: cannot be opened: not a regular file"),
    "window": (None, ["--audio", "long.wav", "--window", "nan"], 2, "window: nan is not possible"),
    "interval": (None, ["--audio", "long.wav", "--interval", "0"], 2, "interval: 0 is not"),
    "segments": (
        None,
        ["--audio", "long.wav", "--max-segment", "1", "--min-speech", "2"],
        2,
        "max_segment: 1 s is not longer",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_one_sentence(
    name: str,
    home: Path,
    capsys: pytest.CaptureFixture[str],
    standard_input: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, arguments, wanted, sentence = REFUSED[name]
    monkeypatch.chdir(home)
    if data is not None:
        standard_input(data)
    code, lines, err = run(capsys, home / "model", *arguments)
    assert code == wanted and sentence in err and err.count("\n") == 1, err
    assert {line["event"] for line in lines} <= {"start", "interim", "final"}


def test_what_was_heard_before_an_error_is_predicted(
    home: Path, capsys: pytest.CaptureFixture[str], standard_input: Any
) -> None:
    standard_input(RAW[: 3 * RATE + 1])
    code, lines, err = run(capsys, home / "model", "--audio", "-")
    assert code == 1 and "odd number of bytes" in err and lines[-1]["event"] == "final"


def test_on_a_terminal_people_read_it(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    with pytest.raises(SystemExit):
        main(["stream", str(home / "model"), "--audio", str(home / "long.wav")])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and all(any(label in line for label in LABELS) for line in lines)
    with pytest.raises(SystemExit):
        main(["stream", str(home / "model"), "--audio", str(home / "long.wav"), "--json"])
    assert json.loads(capsys.readouterr().out.splitlines()[0])["event"] == "start"


def test_a_microphone(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """PortAudio's part is played by a thread: there is no microphone where tests run."""

    class InputStream:
        def __init__(self, **options: Any) -> None:
            self.options = options

        def start(self) -> None:
            threading.Thread(target=self._speak, daemon=True).start()

        def _speak(self) -> None:
            size = self.options["blocksize"]
            for start in range(0, len(SAMPLES), size):
                self.options["callback"](SAMPLES[start : start + size, None], size, None, None)
            self.options["finished_callback"]()

        def close(self) -> None: ...

    module = SimpleNamespace(InputStream=InputStream, PortAudioError=RuntimeError)
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    monkeypatch.setattr(stream_sources, "find_spec", lambda name: True)
    code, lines, err = run(capsys, home / "model", "--microphone", "--final-only")
    assert code == 0 and not err and [line["event"] for line in lines] == ["final"] * 3


def test_interrupt_ends_with_the_last_final(home: Path) -> None:
    command = [sys.executable, "-m", "multistill", "stream", str(home / "model"), "--audio", "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin and process.stdout
        process.stdin.write(RAW[: round(1.9 * RATE) * 2])
        process.stdin.flush()
        while json.loads(process.stdout.readline())["event"] != "interim":
            pass
        process.send_signal(signal.SIGINT)
        lines = [json.loads(line) for line in io.TextIOWrapper(process.stdout)]
        assert process.wait(timeout=60) == 0
    assert lines[-1]["event"] == "final" and lines[-1]["end"] <= 1.9


def test_a_reader_that_closes_its_pipe_ends_it(home: Path) -> None:
    command = [sys.executable, "-m", "multistill", "stream", str(home / "model"), "--audio", "-"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdin.write(RAW)
        process.stdin.flush()
        process.stdout.readline()
        process.stdout.close()
        process.stdin.close()
        assert process.wait(timeout=60) == 141 and process.stderr.read() == b""
