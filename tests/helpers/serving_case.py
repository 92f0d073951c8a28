"""The HTTP interface with a model in the same process, without Ray."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import uvicorn
from starlette.testclient import TestClient

from helpers.servers import free_ports
from multistill import Predictor
from multistill.serving.api import create_app
from multistill.serving.backend import Served
from multistill.serving.clips import Answer, Clip, answer
from multistill.serving.refusals import RefusedError
from multistill.serving.settings import ServingSettings

TOKEN = "0123456789abcdef-token"


class InProcess:
    """A backend without replicas; predictions wait unless `released` is set."""

    def __init__(self, predictor: Predictor, settings: ServingSettings) -> None:
        self.predictor = predictor
        self.settings = settings
        self.released = threading.Event()
        self.released.set()
        self.arrived = threading.Semaphore(0)

    async def predict(self, clip: Clip) -> Answer:
        self.arrived.release()
        while not self.released.is_set():
            await asyncio.sleep(0.005)
        [found] = answer(self.predictor, [clip], self.settings.max_seconds)
        return found

    async def served(self) -> Served:
        if not self.released.is_set():
            raise RefusedError(503, "overloaded", "no replica")
        return Served.of(self.predictor)


class LoudIsSpeech:
    """Voice activity by level, for signals that are no voice."""

    def __call__(self, frame: np.ndarray) -> float:
        return float(np.abs(frame).max() > 0.1)


@contextmanager
def client(
    predictor: Predictor,
    token: str | None = None,
    *,
    raise_server_exceptions: bool = True,
    **settings: Any,
) -> Iterator[tuple[TestClient, InProcess]]:
    given = ServingSettings(model="m", **settings)
    backend = InProcess(predictor, given)
    app = create_app(backend, given, token)
    with TestClient(app, raise_server_exceptions=raise_server_exceptions) as made:
        yield made, backend


@contextmanager
def http_server(predictor: Predictor, token: str | None = None, **settings: Any) -> Iterator[str]:
    """The interface at a port of this machine, in a thread."""
    given = ServingSettings(model="m", **settings)
    app = create_app(InProcess(predictor, given), given, token)
    [port] = free_ports(1)
    server = uvicorn.Server(
        uvicorn.Config(app, port=port, log_level="warning", ws="websockets-sansio")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()
