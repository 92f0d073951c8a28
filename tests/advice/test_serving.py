"""What `multistill serve` and its HTTP interface tell people to do helps."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from helpers.advice import says, told
from helpers.predictor_case import save_predictor, speech_like
from helpers.servers import free_ports
from helpers.serving_case import TOKEN, client

from multistill import Predictor
from multistill.cli.app import main
from multistill.errors import UsageError
from multistill.serving import run, streams
from multistill.serving.settings import ServingSettings
from multistill.serving.tokens import VARIABLE, read_token


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return Predictor.load(save_predictor(tmp_path_factory.mktemp("m") / "model"), "cpu")


def test_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    file = tmp_path / "token"
    with told("the token file `{}` cannot be read ({}); name another with --token-file"):
        read_token(str(file))
    with told("this server needs a token, and has neither --token-file nor {}; set one"):
        read_token(None, required=True)
    for bad in ("short", "with space in the middle", "slash/slash/slash/slash", ""):
        file.write_text(bad)
        with told("is no token; write 16 to 512 letters, digits and ._~+- there", UsageError):
            read_token(str(file))
    monkeypatch.setenv(VARIABLE, "short")
    with told("is no token; write 16 to 512 letters, digits and ._~+- there"):
        run.with_token(ServingSettings(model="m"))
    file.write_text(f"{TOKEN}\n")
    assert read_token(str(file), required=True) == TOKEN
    monkeypatch.setenv(VARIABLE, TOKEN)
    settings = run.with_token(ServingSettings(model="m"))
    assert settings.token_required and TOKEN not in repr(settings)


def test_who_may_reach_it() -> None:
    settings = ServingSettings(model="m")
    for host in ("0.0.0.0", "192.168.1.5", "::", "example"):
        says(
            "everybody who reaches {} can use this server; set a token with --token-file, or leave",
            run.warning(host, settings),
        )
        assert run.warning(host, settings.model_copy(update={"token_required": True})) is None
    for host in ("127.0.0.1", "localhost", "::1", "127.8.8.8"):
        assert run.warning(host, settings) is None


def test_where_it_listens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [free] = free_ports(1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with told("the port {} of {} is taken; choose another", UsageError):
            run.check_port("127.0.0.1", port)
        with pytest.raises(SystemExit) as end:
            main(["serve", str(tmp_path), "--port", str(port)])
        assert end.value.code == 2 and "is taken" in capsys.readouterr().err
    with told("nothing can listen at {} port {} ({}); choose another --host or --port"):
        run.check_port("203.0.113.1", free)
    run.check_port("127.0.0.1", free)


def test_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for value in ("-1", "nan", "inf"):
        with pytest.raises(SystemExit) as end:
            main(["serve", str(tmp_path), "--temperature", value])
        assert end.value.code == 2
        says("temperature: {} is not above 0; use 1 for none", capsys.readouterr().err)
    with pytest.raises(SystemExit) as end:
        main(["serve", str(tmp_path), "--timeout", "inf"])
    assert end.value.code == 2
    says("{}: {} is no limit; write a number", capsys.readouterr().err)
    with monkeypatch.context() as patch:
        patch.setattr(run, "find_spec", lambda name: None)
        with told("serving needs the package {}; run `pip install 'multistill[serve]'`"):
            run.check_packages()
    run.check_packages()
    settings = ServingSettings(model="m", replicas=3)
    with told("{} replicas of {} {} need {}, and Ray has {}; lower --replicas or --{}"):
        run.check_resources(settings, {"CPU": 2.0})
    run.check_resources(settings.model_copy(update={"replicas": 2}), {"CPU": 2.0})


def test_requests(predictor: Predictor) -> None:
    with client(predictor) as (http, _):

        def error(**request: Any) -> str:
            found: str = http.post("/predict", **request).json()["error"]
            return found

        text = {"text": (None, "good day")}
        says("there is no field `{}`; use audio, text, only and unsure_below",
             error(files={"sound": (None, "x")}))  # fmt: skip
        says("unsure_below: `{}` is no probability; use a value from 0 to 1",
             error(files={**text, "unsure_below": (None, "x")}))  # fmt: skip
        assert http.post("/predict", files={**text, "unsure_below": (None, "0.1")}).is_success
        says("a page of another site may not ask; use the page of this server",
             error(files=text, headers={"Origin": "https://example.org"}))  # fmt: skip
        http.base_url = "http://127.0.0.1:8000"
        says("without a token this server answers on its own machine only, as localhost or",
             error(files=text, headers={"Host": "example.org"}))  # fmt: skip
        assert http.post("/predict", files=text, headers={"Host": "localhost:8000"}).is_success
        with client(predictor, TOKEN) as (other, _):
            other.base_url = http.base_url
            headers = {"Host": "example.org", "Authorization": f"Bearer {TOKEN}"}
            assert other.post("/predict", files=text, headers=headers).is_success
        says("there is no {} {}; see /docs", http.get("/nothing").json()["error"])
        assert http.get("/docs").is_success


def test_streams(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "IDLE_SECONDS", 0.2)
    with client(predictor, max_stream_seconds=1) as (http, backend):

        def error(query: str, *messages: bytes) -> str:
            with http.websocket_connect(f"/stream{query}") as socket:
                for message in messages:
                    socket.send_bytes(message)
                while (event := socket.receive_json())["event"] != "error":
                    pass
                found: str = event["error"]
                return found

        says("{}: `{}` is no number; write one", error("?window=x"))
        says("keep_up: `{}` is neither; write true or false", error("?keep_up=0"))
        says("there is no option `{}`; use some of {}", error("?speed=2"))
        says("the stream is longer than the {} s that this server reads; open another",
             error("", bytes(64_000)))  # fmt: skip
        says("nothing arrived for {} s; open the stream again when there is sound", error(""))
        monkeypatch.setattr(streams, "IDLE_SECONDS", 60)
        with http.websocket_connect("/stream") as socket:
            assert socket.receive_json()["event"] == "ready"
            backend.released.clear()  # the stream is open until a prediction comes
            socket.send_bytes((32767 * speech_like(0.5)).astype("<i2").tobytes())
            socket.send_text("end")
            socket.send_text("end")
            while (event := socket.receive_json())["event"] != "error":
                pass
            says("a message came after `end`; open a new stream", event["error"])
        backend.released.set()
        with http.websocket_connect("/stream?window=2&keep_up=false") as socket:
            socket.send_bytes((32767 * speech_like(0.5)).astype("<i2").tobytes())
            socket.send_text("end")
            while (event := socket.receive_json())["event"] != "end":
                assert event["event"] != "error", event
