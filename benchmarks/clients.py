"""Clients of `multistill serve` that upload recordings, for benchmarks/serving.py."""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

import aiohttp
import numpy as np
import soundfile

HOST, PORT = "127.0.0.1", 8123
ADDRESS = f"http://{HOST}:{PORT}"
PERCENTILES = (50, 95, 99)
PAUSES = (0.5, 4.0, 15.0)
"""Seconds before a request whose server died is sent again."""


def clip(seconds: float = 3.0) -> bytes:
    stream = io.BytesIO()
    noise = 0.1 * np.random.default_rng(0).standard_normal(round(16_000 * seconds))
    soundfile.write(stream, noise, 16_000, format="WAV")
    return stream.getvalue()


class Reply(NamedTuple):
    """What became of an upload.

    Attributes:
        status: of the last attempt; 0: the connection broke, or there was no answer in 180 s.
        seconds: of all attempts, with the pauses between them.
        first: status of the first attempt.
    """

    status: int
    seconds: float
    first: int


async def post(session: aiohttp.ClientSession, audio: bytes, pauses: Sequence[float] = ()) -> Reply:
    """Upload a recording, again after these pauses where the server had no time for JSON."""
    start = time.monotonic()
    first: int | None = None
    for pause in (0.0, *pauses):
        await asyncio.sleep(pause)
        form = aiohttp.FormData()
        form.add_field("audio", audio, filename="clip.wav")
        try:
            async with session.post(f"{ADDRESS}/predict", data=form) as reply:
                await reply.read()
                status, whole = reply.status, reply.content_type == "application/json"
        except (aiohttp.ClientError, TimeoutError):
            status, whole = 0, False
        first = status if first is None else first
        if whole:
            break
    return Reply(status, time.monotonic() - start, first or 0)


@contextlib.asynccontextmanager
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        connector=connector, timeout=aiohttp.ClientTimeout(total=180)
    ) as session:
        yield session


class Load:
    """Clients that each send their next request when the last is answered."""

    def __init__(
        self, clients: int, audio: Sequence[bytes] = (), pauses: Sequence[float] = ()
    ) -> None:
        """Args: audio: sent in turn; default: a clip of three seconds."""
        self.clients = clients
        self._audio = itertools.cycle(audio or [clip()])
        self._pauses = pauses
        self.answers: list[Reply] = []
        self._stop = False

    async def run(self, seconds: float | None = None, requests: int | None = None) -> None:
        deadline = None if seconds is None else time.monotonic() + seconds

        async def one(session: aiohttp.ClientSession) -> None:
            while not self._stop and (deadline is None or time.monotonic() < deadline):
                if requests is not None and len(self.answers) >= requests:
                    return
                self.answers.append(await post(session, next(self._audio), self._pauses))

        async with client() as session:
            await asyncio.gather(*(one(session) for _ in range(self.clients)))

    def stop(self) -> None:
        self._stop = True

    def summary(self, seconds: float) -> dict[str, Any]:
        statuses = Counter(each.status for each in self.answers)
        times = [1000 * each.seconds for each in self.answers if each.status == 200]
        found = np.percentile(times, PERCENTILES) if times else [float("nan")] * 3
        return {
            "clients": self.clients,
            "requests": len(self.answers),
            "statuses": {str(status): count for status, count in sorted(statuses.items())},
            "per_second": round(statuses[200] / seconds, 1),
            **{f"p{p}_ms": round(float(v), 1) for p, v in zip(PERCENTILES, found, strict=True)},
        }


async def outages(seconds: list[float]) -> None:
    """Ask every 0.1 s whether the server answers, and note for how long it does not, until
    cancelled."""
    async with client() as session:
        last = time.monotonic()
        while True:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with session.get(f"{ADDRESS}/health") as reply:
                    if reply.status == 200:
                        seconds.append(time.monotonic() - last)
                        last = time.monotonic()
            await asyncio.sleep(0.1)
