"""`/stream`: the events of a `StreamingPredictor`, limits, and what is no stream."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from helpers.predictor_case import speech_like
from helpers.serving_case import TOKEN, LoudIsSpeech, client
from starlette.websockets import WebSocketDisconnect

from multistill import Predictor
from multistill.errors import MissingPackageError
from multistill.inference import streaming
from multistill.inference.stream_settings import StreamSettings
from multistill.inference.streaming import Final, StreamingPredictor
from multistill.serving import service, streams
from multistill.serving.refusals import RefusedError

SAMPLES = np.concatenate(
    [np.zeros(8_000), speech_like(1.5), np.zeros(12_000), speech_like(1.0, seed=1), np.zeros(9_000)]
)
PCM = (SAMPLES * 32767).astype("<i2")


@pytest.fixture(autouse=True)
def energy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "SileroVoiceActivity", LoudIsSpeech)


def rest(socket: Any) -> Iterator[dict[str, Any]]:
    while True:
        event = socket.receive_json()
        yield event
        if event["event"] in ("end", "error"):
            return


def send(socket: Any, pcm: np.ndarray, chunk: int = 3_000) -> None:
    for start in range(0, len(pcm), chunk):
        socket.send_bytes(pcm[start : start + chunk].tobytes())
    socket.send_text("end")


def plain(event: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name != "milliseconds"}


@pytest.mark.parametrize("query", ["", "&only=sad&only=fear&unsure_below=0.6", "&interval=0.5"])
def test_events_are_those_of_the_class(predictor: Predictor, query: str) -> None:
    options: dict[str, Any] = {}
    if "only" in query:
        options = {"only": ["sad", "fear"], "unsure_below": 0.6}
    settings = StreamSettings(interval=0.5 if "interval" in query else 0.25)
    direct = StreamingPredictor(predictor, settings, **options)
    wanted = [event.to_json() for event in (*direct.push(PCM), *direct.finish())]
    with (
        client(predictor) as (http, _),
        http.websocket_connect(f"/stream?keep_up=false{query}") as socket,
    ):
        first = socket.receive_json()
        send(socket, PCM)
        found = list(rest(socket))
    assert first["event"] == "ready" and first["notes"] == list(direct.notes)
    assert found.pop() == {"event": "end", "at": direct.position}
    as_lists = [
        {k: list(v) if isinstance(v, tuple) else v for k, v in event.items()} for event in wanted
    ]
    assert list(map(plain, found)) == list(map(plain, as_lists))
    kinds = [event["event"] for event in found]
    assert kinds.count("final") == kinds.count("provisional") == 2 <= kinds.count("interim")


def test_sound_that_waits_costs_interim_predictions_only(predictor: Predictor) -> None:
    with client(predictor) as (http, _), http.websocket_connect("/stream") as socket:
        send(socket, PCM, len(PCM))
        found = list(rest(socket))
    finals = [event for event in found if event["event"] == "final"]
    assert len(finals) == 2 and sum(event["skipped"] for event in finals) > 0


def test_a_server_without_room_costs_interim_predictions_only(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    direct = StreamingPredictor(predictor)
    wanted = [e.prediction for e in (*direct.push(PCM), *direct.finish()) if isinstance(e, Final)]
    with client(predictor) as (http, backend):
        predict, calls = backend.predict, itertools.count(1)

        async def every_third(clip: Any) -> Any:
            if next(calls) % 3:
                raise RefusedError(503, "overloaded", "no replica of the model is free")
            return await predict(clip)

        monkeypatch.setattr(backend, "predict", every_third)
        with http.websocket_connect("/stream?keep_up=false") as socket:
            send(socket, PCM)
            *found, end = rest(socket)
    finals = [event for event in found if event["event"] == "final"]
    assert end["event"] == "end" and sum(event["skipped"] for event in finals) > 0
    assert [event["distribution"] for event in finals] == [each.distribution for each in wanted]


def test_a_final_prediction_does_not_wait_for_room_for_ever(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "ROOM_SECONDS", 0.2)
    with client(predictor) as (http, backend):

        async def full(clip: Any) -> Any:
            raise RefusedError(503, "overloaded", "no replica of the model is free")

        monkeypatch.setattr(backend, "predict", full)
        with http.websocket_connect("/stream") as socket:
            send(socket, PCM)
            *_, error = rest(socket)
    assert error == {
        "event": "error",
        "error": "no replica of the model is free",
        "reason": "overloaded",
    }


REFUSED: list[tuple[str, Any, int, str]] = [
    ("?speed=2", None, 1007, "there is no option `speed`"),
    ("?window=long", None, 1007, "window: `long` is no number"),
    ("?rate=nan", None, 1007, "rate: `nan` is no number"),
    ("?keep_up=0", None, 1007, "keep_up: `0` is neither"),
    ("?only=joy", None, 1007, "the model has no class `joy`"),
    ("?rate=5", None, 1007, "rate: 5 is not possible"),
    ("?window=0.01", None, 1007, "window"),
    ("", b"abc", 1007, "a message has 3 bytes"),
    ("", "hello", 1007, "a message is text"),
    ("", bytes(2 * 16_000 * 4), 1009, "the stream is longer than the 3 s"),
]


@pytest.mark.parametrize(("query", "message", "code", "sentence"), REFUSED)
def test_what_is_no_stream_is_one_sentence(
    predictor: Predictor, query: str, message: Any, code: int, sentence: str
) -> None:
    with (
        client(predictor, max_stream_seconds=3) as (http, _),
        http.websocket_connect(f"/stream{query}") as socket,
    ):
        if isinstance(message, bytes):
            socket.send_bytes(message)
        elif message:
            socket.send_text(message)
        *_, error = rest(socket)
        assert error["event"] == "error" and sentence in error["error"], error
        with pytest.raises(WebSocketDisconnect) as closed:
            socket.receive_json()
        assert closed.value.code == code


def test_too_much_at_once_and_too_many_streams(predictor: Predictor) -> None:
    with client(predictor, max_seconds=1, max_streams=1) as (http, _):
        with http.websocket_connect("/stream") as socket:
            assert socket.receive_json()["event"] == "ready"
            with http.websocket_connect("/stream") as second:
                assert second.receive_json()["reason"] == "overloaded"
            assert "multistill_streams_open 1.0" in http.get("/metrics").text
            socket.send_bytes(bytes(2 * 16_000 * 2))
            *_, error = rest(socket)
            assert error["reason"] == "too fast"
        with http.websocket_connect("/stream") as socket:
            assert socket.receive_json()["event"] == "ready"


def test_a_stream_does_not_wait_for_a_model_for_ever(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "READY_SECONDS", 0.1)
    with client(predictor) as (http, backend):

        async def never() -> None:
            await asyncio.sleep(60)

        monkeypatch.setattr(backend, "served", never)
        with http.websocket_connect("/stream") as socket:
            assert socket.receive_json()["reason"] == "not ready"
        assert http.get("/ready").json()["reason"] == "not ready"
        assert "multistill_streams_open 0.0" in http.get("/metrics").text


def test_a_token_comes_as_a_header_or_as_a_subprotocol(predictor: Predictor) -> None:
    with client(predictor, TOKEN) as (http, _):
        with http.websocket_connect("/stream") as socket:
            assert socket.receive_json()["reason"] == "no token"
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        with http.websocket_connect("/stream", headers=bearer) as socket:
            assert socket.receive_json()["event"] == "ready"
        offered = ["multistill", f"multistill.bearer.{TOKEN}"]
        with http.websocket_connect("/stream", subprotocols=offered) as socket:
            assert socket.accepted_subprotocol == "multistill"
            assert socket.receive_json()["event"] == "ready"


def test_a_page_of_another_site_gets_no_stream(predictor: Predictor) -> None:
    with (
        client(predictor) as (http, _),
        http.websocket_connect("/stream", headers={"Origin": "https://example.org"}) as socket,
    ):
        assert socket.receive_json()["reason"] == "other site"


def test_nothing_follows_the_end(predictor: Predictor) -> None:
    with client(predictor) as (http, backend):
        with http.websocket_connect("/stream") as socket:
            assert socket.receive_json()["event"] == "ready"
            backend.released.clear()  # no prediction comes, and the socket is read all the same
            send(socket, PCM)
            socket.send_bytes(bytes(1000))
            *_, error = rest(socket)
        backend.released.set()
    assert "a message came after `end`" in error["error"]


def test_messages_without_sound_keep_no_stream_open(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "IDLE_SECONDS", 0.2)
    with (
        client(predictor, max_stream_seconds=0.1) as (http, _),
        http.websocket_connect("/stream") as socket,
    ):
        assert socket.receive_json()["event"] == "ready"
        for _ in range(400):
            socket.send_bytes(b"")
            time.sleep(0.001)
        assert socket.receive_json()["reason"] == "too long"


def test_the_limit_on_waiting_sound_is_one_of_bytes_too(predictor: Predictor) -> None:
    with (
        client(predictor, max_mb=0.1) as (http, _),
        http.websocket_connect("/stream?rate=192000&keep_up=false") as socket,
    ):
        assert socket.receive_json()["event"] == "ready"
        socket.send_bytes(bytes(200_000))
        *_, error = rest(socket)
    assert error["reason"] == "too fast" and "more than 0.26" in error["error"]


def test_a_server_without_the_packages_of_streams_says_so(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise MissingPackageError("streams need the packages silero-vad and onnxruntime")

    monkeypatch.setattr(streaming, "SileroVoiceActivity", missing)
    with client(predictor) as (http, _), http.websocket_connect("/stream") as socket:
        assert socket.receive_json()["reason"] == "not possible"
