"""One recording through each door of a model.

The voice activity of both streams finds speech from beginning to end, so that their final
prediction is one of the whole recording.
"""

from __future__ import annotations

import base64
import json
import wave
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from helpers.serving_case import client
from multistill import Predictor
from multistill.audio.errors import UnusableClipError
from multistill.audio.reading import read_sound
from multistill.cli.app import main
from multistill.export.formats import export
from multistill.inference import streaming


@dataclass(frozen=True)
class Answer:
    """A prediction, or the sentence in its place with an exit code or a status of HTTP."""

    label: str | None = None
    distribution: Mapping[str, float] = field(default_factory=dict)
    error: str = ""
    code: int = 0

    @classmethod
    def of(cls, labels: Sequence[str], shares: npt.NDArray[np.float32]) -> Answer:
        """Args: shares: [classes]."""
        distribution = dict(zip(labels, shares.tolist(), strict=True))
        return cls(max(distribution, key=distribution.__getitem__), distribution)

    def assert_same(self, wanted: Answer, difference: float) -> None:
        assert not self.error and self.label == wanted.label is not None
        assert list(self.distribution) == list(wanted.distribution)
        shares = [list(each.distribution.values()) for each in (self, wanted)]
        np.testing.assert_allclose(*shares, rtol=0, atol=difference)


class AlwaysSpeech:
    def __call__(self, frame: object) -> float:
        return 1.0


@dataclass(frozen=True)
class Doors:
    """Each method takes a recording's path, some of them a transcript too.

    Attributes:
        model: as of `multistill predict`.
        http: a client of an HTTP interface.
        pyfunc: the model as MLflow loads it.
    """

    model: str
    predictor: Predictor
    http: Any
    pyfunc: Any
    capsys: pytest.CaptureFixture[str]

    def by_class(self, audio: Path | None, text: str | None = None) -> Answer:
        try:
            found = self.predictor.predict(audio, text)
        except UnusableClipError as error:
            return Answer(error=str(error))
        return Answer(found.label, found.distribution)

    def by_content(self, audio: Path, text: str | None = None) -> Answer:
        try:
            found = self.predictor.predict(audio.read_bytes(), text)
        except UnusableClipError as error:
            return Answer(error=str(error))
        return Answer(found.label, found.distribution)

    def by_command(self, audio: Path | None, text: str | None = None) -> Answer:
        arguments = [] if audio is None else ["--audio", str(audio)]
        arguments += [] if text is None else ["--text", text]
        return self._printed("predict", *arguments)

    def by_stream(self, audio: Path) -> Answer:
        return self._printed("stream", "--audio", str(audio), "--final-only")

    def by_mlflow(self, audio: Path | None, text: str | None = None) -> Answer:
        return self._row(None if audio is None else str(audio), text)

    def by_mlflow_content(self, audio: Path, text: str | None = None) -> Answer:
        return self._row(base64.b64encode(audio.read_bytes()).decode(), text)

    def by_http(self, audio: Path | None, text: str | None = None) -> Answer:
        files: list[tuple[str, Any]] = []
        if audio is not None:
            files.append(("audio", (audio.name, audio.read_bytes())))
        if text is not None:
            files.append(("text", (None, text.encode("utf-8", "surrogatepass"))))
        reply = self.http.post("/predict", files=files)
        found = reply.json()
        if reply.status_code != 200:
            return Answer(error=found["error"], code=reply.status_code)
        return Answer(found["label"], found["distribution"])

    def by_websocket(self, audio: Path) -> Answer:
        """What a client reads with `read_sound`, in 16 bits."""
        samples = read_sound(str(audio)).samples
        with self.http.websocket_connect("/stream?keep_up=false") as socket:
            assert socket.receive_json()["event"] == "ready"
            socket.send_bytes((samples * 32768).round().clip(-32768, 32767).astype("<i2").tobytes())
            socket.send_text("end")
            finals = []
            while (event := socket.receive_json())["event"] not in ("end", "error"):
                finals += [event] if event["event"] == "final" else []
        [final] = finals
        return Answer(final["label"], final["distribution"])

    def _printed(self, command: str, *arguments: str) -> Answer:
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main([command, self.model, *arguments, "--json"])
        printed = self.capsys.readouterr()
        code = int(end.value.code or 0)
        if code or not printed.out:
            said = [line for line in printed.err.splitlines() if "a stream has none" not in line]
            assert not printed.out and len(said) == 1, printed.err
            return Answer(error=said[0].removeprefix("multistill: "), code=code)
        found = json.loads(printed.out)
        return Answer(found["label"], found["distribution"])

    def pyfunc_answer(self, found: Mapping[str, Any]) -> Answer:
        """Of a row of a pyfunc."""
        if found["error"] is not None:
            return Answer(error=found["error"])
        shares = {label: found[f"p_{label}"] for label in self.predictor.labels}
        return Answer(found["label"], shares)

    def _row(self, audio: str | None, text: str | None) -> Answer:
        import pandas as pd

        given = {"audio": audio} | ({"text": text} if self.predictor.modality != "audio" else {})
        [found] = self.pyfunc.predict(pd.DataFrame([given], dtype=object)).to_dict("records")
        return self.pyfunc_answer(found)


def by_onnx_runtime(graph: Path, audio: Path) -> Answer:
    """A recording of 16 bits at 16 kHz, without this package's code."""
    import onnxruntime

    session = onnxruntime.InferenceSession(graph)
    inputs = graph_inputs(audio)
    for each in session.get_inputs()[len(inputs) :]:  # states of a transcript, of which is none
        shape = [1 if isinstance(size, str) else size for size in each.shape]
        inputs[each.name] = np.zeros(shape, np.float32 if each.name == "text" else np.bool_)
    [shares] = session.run(["distribution"], inputs)
    labels = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
    return Answer.of(labels, shares[0])


def graph_inputs(audio: Path) -> dict[str, npt.NDArray[Any]]:
    with wave.open(str(audio)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16) / np.float32(32768)
    return {"samples": samples[None], "lengths": np.array([len(samples)])}


@contextmanager
def opened_doors(folder: Path, exported: Path) -> Iterator[Callable[..., Doors]]:
    """A function that makes the doors of a model folder for a test's `capsys`.

    Args:
        exported: a new folder, for the model as MLflow has it.
    """
    from mlflow import pyfunc

    export(folder, exported, "mlflow")
    predictor = Predictor.load(folder, "cpu")
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(streaming, "SileroVoiceActivity", AlwaysSpeech)
        http, _ = stack.enter_context(client(predictor))
        model = pyfunc.load_model(str(exported))
        yield lambda capsys: Doors(str(folder), predictor, http, model, capsys)
