"""The application on Ray Serve: equal predictions, a replica that dies, a model that is none."""

from __future__ import annotations

import io
import json
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest
import soundfile
import yaml
from helpers.paths import ROOT
from helpers.predictor_case import save_predictor, speech_like
from helpers.servers import free_ports
from helpers.serving_case import TOKEN
from websockets.sync.client import connect

from multistill import Predictor
from multistill.errors import MultistillError
from multistill.serving import run
from multistill.serving.settings import ServingSettings


def wav(seed: int) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, speech_like(0.6, seed=seed), 16_000, format="WAV")
    return stream.getvalue()


def ask(address: str, audio: bytes) -> dict[str, Any]:
    boundary = uuid.uuid4().hex
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="audio"; filename="a"\r\n\r\n'
    request = urllib.request.Request(
        f"{address}/predict",
        head.encode() + audio + f"\r\n--{boundary}--\r\n".encode(),
        {
            "Content-Type": f"multipart/form-data; boundary={boundary}",
            "Authorization": f"Bearer {TOKEN}",
        },
    )
    with urllib.request.urlopen(request, timeout=120) as reply:
        found: dict[str, Any] = json.load(reply)
        return found


def asked_again(address: str, audio: bytes) -> dict[str, Any]:
    """The answer of a client that asks again when the connection broke, or without JSON."""
    deadline = time.monotonic() + 120
    while True:
        try:
            return ask(address, audio)
        except (OSError, HTTPException, ValueError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def actors() -> list[str]:
    import ray

    return [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]


@pytest.fixture
def serve_ended(ray_session: None) -> Iterator[None]:
    from ray import serve

    yield
    serve.shutdown()


def test_a_served_model_answers_as_the_class_and_survives_dead_processes(
    tmp_path: Path, serve_ended: None
) -> None:
    import ray

    folder = save_predictor(tmp_path / "model")
    (tmp_path / "token").write_text(TOKEN + "\n")
    settings = run.with_token(
        ServingSettings(model=str(folder), token_file=str(tmp_path / "token"), cpus=0.5)
    )
    predictor = Predictor.load(folder, "cpu")
    clips = [wav(seed) for seed in range(6)]
    wanted = [predictor.predict(clip) for clip in clips]
    [port] = free_ports(1)
    with run.served(settings, "127.0.0.1", port) as address, ThreadPoolExecutor(6) as pool:
        answered = pool.map(lambda clip: ask(address, clip), clips)
        for found, each in zip(answered, wanted, strict=True):
            assert found["label"] == each.label and found["model"] == predictor.name
            assert found["distribution"] == pytest.approx(each.distribution, abs=1e-5)

        bearer = {"Authorization": f"Bearer {TOKEN}"}
        stream = f"{address.replace('http', 'ws')}/stream"
        with connect(stream, additional_headers=bearer) as socket:
            socket.send(bytes(32_000))
            socket.send("end")
            events = [json.loads(message) for message in socket]
            assert [event["event"] for event in events] == ["ready", "end"], events

        stop = threading.Event()
        answers: list[dict[str, Any]] = []

        def load() -> None:
            while not stop.is_set():
                answers.append(ask(address, clips[0]))

        loads = [pool.submit(load) for _ in range(3)]
        [name] = [name for name in actors() if "#Model#" in name]
        ray.kill(ray.get_actor(name, namespace="serve"))
        before = len(answers)
        deadline = time.monotonic() + 120
        while len(answers) < before + 6 and time.monotonic() < deadline:
            time.sleep(0.1)
        stop.set()
        for each in loads:
            each.result()  # raises if an answer was no prediction
        assert len(answers) >= before + 6
        assert all(answer["label"] == wanted[0].label for answer in answers)

        proxy = next(name for name in actors() if name.startswith("SERVE_PROXY_ACTOR"))
        for name in (proxy, next(name for name in actors() if "#Api#" in name)):
            ray.kill(ray.get_actor(name, namespace="serve"))
        assert asked_again(address, clips[0])["label"] == wanted[0].label


def test_a_model_that_cannot_be_loaded_is_one_sentence(tmp_path: Path, ray_session: None) -> None:
    folder = save_predictor(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"abc")
    [port] = free_ports(1)
    with (
        pytest.raises(MultistillError) as raised,
        run.served(ServingSettings(model=str(folder), cpus=0.5), "127.0.0.1", port),
    ):
        pass
    assert "is damaged" in str(getattr(raised.value, "cause", raised.value))


def test_the_config_file_for_a_cluster_is_valid_and_asks_for_a_token() -> None:
    from ray.serve.schema import ServeDeploySchema

    from multistill.serving import deployment

    given = yaml.safe_load((ROOT / "deploy" / "serve.yaml").read_text(encoding="utf-8"))
    [application] = ServeDeploySchema.model_validate(given).applications
    assert application.import_path == f"{deployment.__name__}:{deployment.build.__name__}"
    assert application.args["token_required"] and application.args["token_file"]
    assert "token" not in application.args
    built = deployment.build(application.args)
    assert built is not None
    with pytest.raises(ValueError, match="replicsa"):
        deployment.build({**application.args, "replicsa": 2})
