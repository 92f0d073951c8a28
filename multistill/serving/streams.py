"""`/stream`: samples in over a WebSocket, events of a `StreamingPredictor` out."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from starlette.websockets import WebSocket, WebSocketDisconnect

from multistill.audio import SAMPLE_RATE
from multistill.audio.errors import UnusableClipError
from multistill.errors import MissingPackageError, MultistillError, UsageError
from multistill.inference.predictor import Prediction, check_options
from multistill.inference.stream_settings import StreamSettings
from multistill.inference.streaming import NoRoomError, SamplesPredictor, StreamingPredictor
from multistill.serving.backend import Served
from multistill.serving.clips import Clip
from multistill.serving.refusals import Refusal, RefusedError, of_clip
from multistill.serving.settings import MEGABYTE
from multistill.serving.tokens import PROTOCOL

if TYPE_CHECKING:
    from fastapi import FastAPI

    from multistill.serving.service import Service
    from multistill.typing import FloatArray

_T = TypeVar("_T")

IDLE_SECONDS = 60.0
"""Without a message, after which a stream is closed."""
PUSH_SECONDS = 0.5
"""Most sound that is judged before the events are sent."""
_BYTES = 2  # of a sample
_CLOSE = {401: 1008, 403: 1008, 413: 1009, 415: 1003, 422: 1007, 503: 1013}
_OPTIONS = ("rate", "only", "unsure_below", "interval", "window", "keep_up")


class _NoRoomError(RefusedError, NoRoomError):
    """The server has no room for a prediction of a stream now."""


class RemotePredictor:
    """A `SamplesPredictor` that the backend answers.

    `predict_samples` is called in a thread that is not the event loop's.
    """

    def __init__(self, service: Service, served: Served, loop: asyncio.AbstractEventLoop) -> None:
        self.name = served.model
        self.labels = served.labels
        self.modality = served.modality
        self.minimum_samples = served.minimum_samples
        self.features = served.features
        self._service = service
        self._loop = loop

    def check(self, only: Sequence[str] | None, unsure_below: float | None) -> None:
        check_options(self.labels, only, unsure_below)

    def predict_samples(
        self,
        samples: FloatArray,
        text: str | None = None,
        *,
        only: Sequence[str] | None = None,
        unsure_below: float | None = None,
    ) -> Prediction:
        clip = Clip(samples.copy(), text, tuple(only) if only else None, unsure_below)
        predicted = asyncio.run_coroutine_threadsafe(self._service.predict(clip), self._loop)
        try:
            answer = predicted.result()
        except RefusedError as error:
            if error.refusal.status != 503:
                raise
            refusal = error.refusal
            raise _NoRoomError(refusal.status, refusal.reason, refusal.sentence) from error
        if isinstance(answer, Refusal):
            raise RefusedError(answer.status, answer.reason, answer.sentence)
        return Prediction(**answer)


def add_stream(app: FastAPI, service: Service) -> None:
    threads = ThreadPoolExecutor(max(1, service.settings.max_streams), "stream")
    open_streams: set[WebSocket] = set()

    @app.websocket("/stream")
    async def stream(socket: WebSocket) -> None:
        offered = socket.scope.get("subprotocols", ())
        await socket.accept(PROTOCOL if PROTOCOL in offered else None)
        refusal: Refusal | None = None
        try:
            service.check_caller(socket)
            if len(open_streams) >= service.settings.max_streams:
                raise RefusedError(
                    503,
                    "overloaded",
                    f"{len(open_streams)} streams are open, the most that this server takes; try "
                    "again later",
                )
            open_streams.add(socket)
            service.metrics.streams.inc()
            try:
                await _Stream(socket, service, threads).run()
            finally:
                open_streams.discard(socket)
                service.metrics.streams.dec()
        except WebSocketDisconnect:
            return
        except RefusedError as error:
            refusal = error.refusal
        except UnusableClipError as error:
            refusal = of_clip(error)
        except MissingPackageError as error:
            refusal = Refusal(503, "not possible", str(error))
        except UsageError as error:
            refusal = Refusal(422, "invalid options", str(error))
        except MultistillError as error:
            refusal = Refusal(503, "not possible", str(error))
        with suppress(RuntimeError, WebSocketDisconnect):  # the client has left
            if refusal is not None:
                service.metrics.refused.labels(refusal.reason).inc()
                await socket.send_json({"event": "error", **refusal.to_json()})
            await socket.close(1000 if refusal is None else _CLOSE.get(refusal.status, 1011))


class _Stream:
    """One connection: a task reads messages, another judges them."""

    def __init__(self, socket: WebSocket, service: Service, threads: ThreadPoolExecutor) -> None:
        self._socket = socket
        self._service = service
        self._threads = threads
        self._waiting: deque[bytes] = deque()
        self._bytes_waiting = 0
        self._ended = False
        self._arrived = asyncio.Event()
        self._reader: asyncio.Task[None]

    async def run(self) -> None:
        """Answer until the client ends the stream.

        Raises:
            RefusedError, MultistillError: it asks for or sends something that is not possible.
            WebSocketDisconnect: it left.
        """
        options = _Options(self._socket)
        loop = asyncio.get_running_loop()
        self._reader = asyncio.create_task(self._read(options.rate))
        try:
            served = await self._unless_refused(self._service.served())
            predictor = RemotePredictor(self._service, served, loop)
            streaming = await self._in_thread(partial(options.start, predictor))
            await self._socket.send_json(
                {"event": "ready", "model": served.model, "notes": list(streaming.notes)}
            )
            await self._judge(streaming, options)
        finally:
            self._reader.cancel()
        await self._socket.send_json({"event": "end", "at": streaming.position})

    async def _in_thread(self, call: Callable[[], _T]) -> _T:
        loop = asyncio.get_running_loop()
        return await self._unless_refused(loop.run_in_executor(self._threads, call))

    async def _unless_refused(self, awaitable: Awaitable[_T]) -> _T:
        """The result, or at once the reason for which nobody reads the socket any more."""
        future = asyncio.ensure_future(awaitable)
        await asyncio.wait({future, self._reader}, return_when=asyncio.FIRST_COMPLETED)
        if self._reader.done():
            future.cancel()
            self._reader.result()
        return await future

    async def _judge(self, streaming: StreamingPredictor, options: _Options) -> None:
        per_second = _BYTES * options.rate
        while True:
            await self._arrived.wait()
            if self._reader.done():
                self._reader.result()
            chunk = self._next(int(PUSH_SECONDS * options.rate) * _BYTES)
            if chunk:
                samples = np.frombuffer(chunk, "<i2")
                waiting = self._bytes_waiting / per_second if options.keep_up else 0.0
                push = partial(streaming.push, samples, waiting=waiting)
                events = await self._in_thread(push)
            elif self._ended:
                events = await self._in_thread(streaming.finish)
            else:
                self._arrived.clear()
                continue
            for event in events:
                await self._socket.send_json(event.to_json())
            if not chunk:
                return

    def _next(self, most: int) -> bytes:
        """The bytes that wait, up to so many."""
        parts: list[bytes] = []
        while self._waiting and most > 0:
            part = self._waiting.popleft()
            if len(part) > most:
                self._waiting.appendleft(part[most:])
                part = part[:most]
            most -= len(part)
            parts.append(part)
        chunk = b"".join(parts)
        self._bytes_waiting -= len(chunk)
        return chunk

    async def _read(self, rate: int) -> None:
        """Take messages as they come until cancelled: Serve's proxy would keep any number of them.

        Raises:
            RefusedError: too much is sent, for too long, or nothing for too long.
            WebSocketDisconnect: the client left.
        """
        settings = self._service.settings
        per_second = rate * _BYTES
        most = min(settings.max_seconds * per_second, settings.max_mb * MEGABYTE)
        loop = asyncio.get_running_loop()
        closed = loop.time() + settings.max_stream_seconds + IDLE_SECONDS
        total = 0
        try:
            while True:
                data = await self._message()
                if len(data) % _BYTES:
                    raise RefusedError(
                        422,
                        "not samples",
                        f"a message has {len(data)} bytes; send samples of two bytes each, s16le",
                    )
                total += len(data)
                self._bytes_waiting += len(data)
                self._waiting.append(data)
                self._arrived.set()
                late = not self._ended and loop.time() > closed
                if late or total > settings.max_stream_seconds * per_second:
                    raise RefusedError(
                        413,
                        "too long",
                        f"the stream is longer than the {settings.max_stream_seconds:g} s that "
                        "this server reads; open another",
                    )
                if self._bytes_waiting > most:
                    raise RefusedError(
                        413,
                        "too fast",
                        f"more than {most / per_second:g} s of sound wait to be judged; send it "
                        "more slowly",
                    )
        finally:
            self._ended = True
            self._arrived.set()

    async def _message(self) -> bytes:
        """The samples of the next message; the text `end` ends the stream.

        Raises:
            RefusedError: there is none for long, or another text.
            WebSocketDisconnect: the client left.
        """
        try:
            limit = None if self._ended else IDLE_SECONDS
            message = await asyncio.wait_for(self._socket.receive(), limit)
        except TimeoutError:
            raise RefusedError(
                408,
                "idle stream",
                f"nothing arrived for {IDLE_SECONDS:g} s; open the stream again when there is "
                "sound",
            ) from None
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005))
        if self._ended:
            raise RefusedError(422, "not samples", "a message came after `end`; open a new stream")
        if (text := message.get("text")) is not None:
            if text != "end":
                raise RefusedError(
                    422,
                    "not samples",
                    "a message is text; send samples as binary messages, and `end` at the end",
                )
            self._ended = True
            return b""
        return cast("bytes", message["bytes"])


class _Options:
    """The query of a stream's address.

    Raises:
        RefusedError: an option is unknown or no number.
    """

    def __init__(self, socket: WebSocket) -> None:
        query = socket.query_params
        for name in query:
            if name not in _OPTIONS:
                raise RefusedError(
                    422,
                    "invalid options",
                    f"there is no option `{name}`; use some of {', '.join(_OPTIONS)}",
                )
        self.rate = round(_number(query, "rate", SAMPLE_RATE))
        self.only = query.getlist("only") or None
        self.unsure_below = _number(query, "unsure_below", None)
        if query.get("keep_up", "true") not in ("true", "false"):
            raise RefusedError(
                422,
                "invalid options",
                f"keep_up: `{query['keep_up'][:40]}` is neither; write true or false",
            )
        self.keep_up = query.get("keep_up", "true") == "true"
        names = ("interval", "window")
        self.times = {name: _number(query, name, None) for name in names if name in query}

    def start(self, predictor: SamplesPredictor) -> StreamingPredictor:
        return StreamingPredictor(
            predictor,
            StreamSettings(**self.times),
            rate=self.rate,
            only=self.only,
            unsure_below=self.unsure_below,
        )


def _number(query: Any, name: str, default: Any) -> Any:
    if name not in query:
        return default
    try:
        value = float(query[name])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise RefusedError(
            422, "invalid options", f"{name}: `{query[name][:40]}` is no number; write one"
        )
    return value
