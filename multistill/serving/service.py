"""Predictions within the limits of a server, for who may ask."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from multistill.serving.metrics import Metrics
from multistill.serving.refusals import RefusedError
from multistill.serving.tokens import bears

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.requests import HTTPConnection

    from multistill.serving.backend import Backend, Served
    from multistill.serving.clips import Answer, Clip
    from multistill.serving.settings import ServingSettings

READY_SECONDS = 5.0
"""In which a replica must answer for the server to be ready."""


class Service:
    """What the routes share.

    Attributes:
        backend: predicts.
        settings: limits.
        token: that requests must bear; None: none.
        metrics: of this process.
    """

    def __init__(self, backend: Backend, settings: ServingSettings, token: str | None) -> None:
        self.backend = backend
        self.settings = settings
        self.token = token
        self.metrics = Metrics()
        self._predictions = 0

    async def predict(self, clip: Clip) -> Answer:
        """Predict a clip within the server's limits.

        Raises:
            RefusedError: too many predictions are in progress, or this one takes too long.
        """
        with self._admitted():
            try:
                answer = await asyncio.wait_for(self.backend.predict(clip), self.settings.timeout_s)
            except TimeoutError:
                raise RefusedError(
                    503,
                    "timeout",
                    f"there was no prediction within {self.settings.timeout_s:g} s; try again "
                    "later, or send a shorter recording",
                ) from None
        if isinstance(answer, dict):
            self.metrics.observe_stages(answer["milliseconds"])
        return answer

    async def served(self) -> Served:
        """Describe the model.

        Raises:
            RefusedError: no replica has loaded it within `READY_SECONDS`.
        """
        try:
            return await asyncio.wait_for(self.backend.served(), READY_SECONDS)
        except TimeoutError:
            raise RefusedError(
                503, "not ready", "no replica has loaded the model yet; try again later"
            ) from None

    def check_load(self) -> None:
        """Refuse a request before it is read.

        Raises:
            RefusedError: too many predictions are in progress.
        """
        if self._predictions >= self.settings.max_requests:
            raise RefusedError(
                503,
                "overloaded",
                f"{self._predictions} predictions are in progress, the most that this server "
                "takes; try again later",
            )

    def check_caller(self, connection: HTTPConnection) -> None:
        """Refuse who may not ask: without the token, or a page of another site.

        A browser takes a page of another site for one of this server where the site's name
        resolves to this machine by now (DNS rebinding): its `Origin` is the `Host`, so without a
        token a server that only this machine reaches answers to the names of this machine alone.

        Raises:
            RefusedError: see there.
        """
        address, _ = connection.scope.get("server") or ("", None)
        host = urlsplit(f"//{connection.headers.get('host', '')}").hostname
        if self.token is None and _is_loopback(address) and not _is_loopback(host):
            raise RefusedError(
                403,
                "other host",
                "without a token this server answers on its own machine only, as localhost or "
                "127.0.0.1; start it with --token-file to reach it by another name",
            )
        origin = connection.headers.get("origin")
        if origin and _netloc(origin) != connection.headers.get("host"):
            raise RefusedError(
                403, "other site", "a page of another site may not ask; use the page of this server"
            )
        offered = tuple(connection.scope.get("subprotocols", ()))
        given = connection.headers.get("authorization")
        if self.token is not None and not bears(self.token, given, offered):
            raise RefusedError(
                401,
                "no token",
                "this server wants a token; send the header `Authorization: Bearer TOKEN`",
            )

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        self.check_load()
        self._predictions += 1
        self.metrics.predictions.inc()
        try:
            yield
        finally:
            self._predictions -= 1
            self.metrics.predictions.dec()


def _is_loopback(host: str | None) -> bool:
    try:
        return host == "localhost" or (host is not None and ip_address(host).is_loopback)
    except ValueError:
        return False


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""
