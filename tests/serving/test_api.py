"""The HTTP interface over a real model and without Ray: answers, refusals, limits."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import soundfile
from helpers.predictor_case import LABELS, speech_like
from helpers.serving_case import TOKEN, client

from multistill import Predictor
from multistill.audio import mpeg4
from multistill.audio.errors import UnusableClipError


def wav(seconds: float = 1.0, rate: int = 16_000) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, speech_like(seconds, rate), rate, format="WAV")
    return stream.getvalue()


def upload(audio: bytes, **fields: Any) -> dict[str, Any]:
    return {"files": {"audio": ("a.wav", audio)}, "data": fields}


def test_an_upload_is_predicted_as_the_class_does(predictor: Predictor) -> None:
    with client(predictor) as (http, _):
        for fields, options in (
            ({}, {}),
            ({"text": "good day"}, {}),
            ({"only": ["sad", "fear"]}, {"only": ["sad", "fear"]}),
            ({"unsure_below": "0.99"}, {"unsure_below": 0.99}),
        ):
            reply = http.post("/predict", **upload(wav(), **fields))
            assert reply.status_code == 200, reply.text
            found = reply.json()
            wanted = predictor.predict(wav(), fields.get("text"), **options)
            assert found["distribution"] == wanted.distribution
            assert found["label"] == wanted.label and found["model"] == predictor.name
            assert found["missing"] == list(wanted.missing)
        alone = http.post("/predict", files={"text": (None, "good day")})
        assert alone.json()["distribution"] == predictor.predict(None, "good day").distribution


REFUSED: list[tuple[dict[str, Any], int, str]] = [
    (upload(b"hello " * 100), 415, "not audio: libsndfile says"),
    (upload(b"\0\0\0\x20ftypM4A \0\0\0\0" * 9), 415, "not supported"),
    (upload(b""), 422, "empty: 0 bytes"),
    (upload(wav(0.001)), 422, "too short: 16 samples"),
    (upload(wav()[:1000]), 422, "truncated"),
    (upload(wav(6.0)), 413, "the recording has 6 s, and this server reads 5 s"),
    (upload(wav(), text="a\x07b"), 422, "the transcript has U+"),
    (upload(wav(), text="좋다".encode("cp949")), 422, "the field `text` is not in UTF-8"),
    (upload(wav(), only="joy"), 422, "the model has no class `joy`"),
    (upload(wav(), unsure_below="2"), 422, "unsure_below: 2.0 is no probability"),
    (upload(wav(), unsure_below="nan"), 422, "unsure_below: nan is no probability"),
    (upload(wav(), unsure_below="much"), 422, "unsure_below: `much` is no probability"),
    (upload(wav(), sound="x"), 422, "there is no field `sound`"),
    ({"data": {"audio": "x"}}, 415, "send multipart/form-data"),
    ({"json": {"audio": "x"}}, 415, "the request is `application/json`"),
    ({"files": {"audio": (None, "x")}}, 422, "the field `audio` is text"),
    ({"files": {"text": ("t.txt", b"x")}}, 422, "a field other than `audio` is a file"),
    ({"files": {"text": (None, "")}}, 422, "nothing to read"),
    (upload(b"x" * 2_100_000), 413, "larger than the 2 MB"),
    (
        {"content": b"x", "headers": {"Content-Type": "multipart/form-data"}},
        400,
        "the form cannot be read",
    ),
    (
        {"files": [("audio", ("a", b"1")), ("audio", ("b", b"2"))]},
        400,
        "the form cannot be read (Too many files",
    ),
    ({"files": {"text": (None, "x" * 1_100_000)}}, 400, "the form cannot be read (Part exceeded"),
]  # fmt: skip


def test_bad_input_is_one_sentence_with_its_status(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mpeg4, "PACKAGE", "not_installed")
    with client(predictor, max_mb=2, max_seconds=5) as (http, _):
        for request, status, sentence in REFUSED:
            reply = http.post("/predict", **request)
            found = reply.json()
            assert (reply.status_code, sentence in found["error"]) == (status, True), found
            assert set(found) == {"error", "reason"} and "\n" not in found["error"]
        assert http.post("/predict", **upload(wav())).status_code == 200
        text = http.get("/metrics").text
        assert 'multistill_requests_total{path="/predict",status="200"} 1.0' in text
        assert 'multistill_refused_total{reason="not audio"} 1.0' in text
        assert 'multistill_stage_seconds_count{stage="speech"} 1.0' in text


def test_the_sentence_is_that_of_the_class(predictor: Predictor) -> None:
    with client(predictor) as (http, _):
        for audio in (b"hello", b"", wav(0.001), wav()[:1000]):
            with pytest.raises(UnusableClipError) as raised:
                predictor.predict(audio)
            assert http.post("/predict", **upload(audio)).json()["error"] == str(raised.value)


def test_a_body_of_unknown_length_is_bounded_too(predictor: Predictor) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="audio"; filename="a"\r\n\r\n'
        for _ in range(100):
            yield b"x" * 100_000

    with client(predictor, max_mb=1) as (http, _):
        kind = {"Content-Type": "multipart/form-data; boundary=b"}
        reply = http.post("/predict", content=chunks(), headers=kind)
        assert reply.status_code == 413


def test_a_token_is_asked_for_where_predictions_are(predictor: Predictor) -> None:
    with client(predictor, TOKEN) as (http, _):
        for headers in ({}, {"Authorization": f"Bearer {TOKEN}x"}, {"Authorization": TOKEN}):
            reply = http.post("/predict", **upload(wav()), headers=headers)
            assert reply.status_code == 401 and reply.headers["www-authenticate"] == "Bearer"
            assert TOKEN not in reply.text
            assert http.get("/metrics", headers=headers).status_code == 401
        right = {"Authorization": f"Bearer {TOKEN}"}
        assert http.post("/predict", **upload(wav()), headers=right).status_code == 200
        assert http.get("/metrics", headers=right).status_code == 200
        for path in ("/", "/docs", "/openapi.json", "/health", "/ready"):
            assert http.get(path).status_code == 200
        assert http.get("/ready").json()["token"] is True


def test_pages_of_other_sites_may_not_ask(predictor: Predictor) -> None:
    with client(predictor) as (http, _):
        for origin in ("https://example.org", "null", "http://["):
            reply = http.post("/predict", **upload(wav()), headers={"Origin": origin})
            assert reply.status_code == 403
        own = {"Origin": "http://testserver"}
        assert http.post("/predict", **upload(wav()), headers=own).status_code == 200


def test_more_predictions_than_the_server_takes_are_refused(predictor: Predictor) -> None:
    with client(predictor, max_requests=2) as (http, backend):
        backend.released.clear()
        replies: list[Any] = []
        waiting = [
            threading.Thread(target=lambda: replies.append(http.post("/predict", **upload(wav()))))
            for _ in range(2)
        ]
        for thread in waiting:
            thread.start()
        for _ in waiting:
            assert backend.arrived.acquire(timeout=20)
        refused = http.post("/predict", **upload(wav()))
        assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
        assert refused.json()["reason"] == "overloaded"
        assert http.get("/ready").status_code == 503 and http.get("/health").status_code == 200
        assert "multistill_predictions_in_progress 2.0" in http.get("/metrics").text
        backend.released.set()
        for thread in waiting:
            thread.join()
        assert [reply.status_code for reply in replies] == [200, 200]
        assert http.post("/predict", **upload(wav())).status_code == 200


def test_a_prediction_that_takes_too_long_is_given_up(predictor: Predictor) -> None:
    with client(predictor, timeout_s=0.1) as (http, backend):
        backend.released.clear()
        reply = http.post("/predict", **upload(wav()))
        assert reply.status_code == 503 and "within 0.1 s" in reply.json()["error"]
        backend.released.set()
        assert "multistill_predictions_in_progress 0.0" in http.get("/metrics").text


def test_other_paths_and_methods_are_told(predictor: Predictor) -> None:
    with client(predictor) as (http, _):
        assert http.get("/nothing").json()["error"] == "there is no GET /nothing; see /docs"
        assert http.get("/predict").status_code == 405
        ready = http.get("/ready").json()
        assert ready["labels"] == list(LABELS) and ready["modality"] == "multimodal"
        paths = http.get("/openapi.json").json()["paths"]
        assert {"/predict", "/health", "/ready", "/metrics"} == set(paths)
        for page in ("/", "/docs"):
            reply = http.get(page)
            assert "default-src 'none'" in reply.headers["content-security-policy"]


def test_an_unexpected_error_is_told_without_its_text(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    with client(predictor, raise_server_exceptions=False) as (http, backend):

        async def fail(clip: object) -> None:
            raise ZeroDivisionError("a secret")

        monkeypatch.setattr(backend, "predict", fail)
        reply = http.post("/predict", **upload(wav()))
        assert reply.status_code == 500 and "secret" not in reply.text
        assert "unexpected ZeroDivisionError" in reply.json()["error"]
        text = http.get("/metrics").text
        assert 'multistill_requests_total{path="/predict",status="500"} 1.0' in text
        assert "multistill_predictions_in_progress 0.0" in text


def test_a_server_of_this_machine_has_no_other_name(predictor: Predictor) -> None:
    """A page whose name resolves to this machine by now is of the same origin to a browser."""
    for token, host, status in (
        (None, "127.0.0.1:8000", 200),
        (None, "localhost:8000", 200),
        (None, "[::1]:8000", 200),
        (None, "evil.example:8000", 403),
        (None, "", 403),
        (TOKEN, "emotions.example", 200),
    ):
        with client(predictor, token) as (http, _):
            http.base_url = "http://127.0.0.1:8000"
            headers = {"Host": host, "Origin": f"http://{host}"}
            if token:
                headers["Authorization"] = f"Bearer {token}"
            reply = http.post("/predict", files={"text": (None, "good day")}, headers=headers)
            assert reply.status_code == status, (host, reply.text)
