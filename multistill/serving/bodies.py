"""What arrives with a request: how much, for how long, and which fields of a form."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from multistill.serving.clips import Clip
from multistill.serving.refusals import RefusedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

FIELDS = ("audio", "text", "only", "unsure_below")
_MOST_FIELDS = 100  # `only` is repeated, once per class
_FIELD_BYTES = 2**20  # of a field that is no file, which is kept in memory


class BoundedBodies:
    """ASGI middleware: a body has so many bytes at most, and arrives within so many seconds.

    A body that says it is larger is refused before it is read. A route that reads too much raises
    `RefusedError` with status 413, and one that waits too long with 408. Bodies count until their
    requests are answered; one that finds no room beside the others is refused with 503.

    Args:
        max_bytes: of a body.
        max_bytes_together: of all bodies; one of `max_bytes` fits in any case.
        seconds: in which a body arrives.
    """

    def __init__(
        self, app: ASGIApp, max_bytes: int, max_bytes_together: int, seconds: float
    ) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.max_bytes_together = max(max_bytes, max_bytes_together)
        self.seconds = seconds
        self._together = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"")
        received = 0
        complete = False
        deadline = time.monotonic() + self.seconds

        async def bounded() -> Message:
            nonlocal received, complete
            if complete:  # what comes now is that the client left
                return await receive()
            if declared.isdigit() and received == 0:
                if int(declared) > self.max_bytes:
                    raise self._too_large()
                self._check_room(int(declared))
            try:
                message = await asyncio.wait_for(receive(), deadline - time.monotonic())
            except TimeoutError:
                raise RefusedError(
                    408,
                    "slow upload",
                    f"the request did not arrive within {self.seconds:g} s; send it again, or "
                    "send a shorter recording",
                ) from None
            arrived = len(message.get("body", b""))
            self._check_room(arrived)
            received += arrived
            self._together += arrived
            complete = message["type"] != "http.request" or not message.get("more_body", False)
            if received > self.max_bytes:
                raise self._too_large()
            return message

        try:
            await self.app(scope, bounded, send)
        finally:
            self._together -= received

    def _check_room(self, more: int) -> None:
        if self._together + more > self.max_bytes_together:
            raise RefusedError(
                503,
                "overloaded",
                f"the requests in progress have {self._together / 1e6:.0f} MB, and this server "
                f"takes {self.max_bytes_together / 1e6:g} MB at a time; try again later",
            )

    def _too_large(self) -> RefusedError:
        return RefusedError(
            413,
            "too large",
            f"the request is larger than the {self.max_bytes / 1e6:g} MB that this server takes; "
            "send a shorter recording, or send it as FLAC or MP3",
        )


@asynccontextmanager
async def received_form(request: Request) -> AsyncIterator[FormData]:
    """The form of a request; its files are removed when the context ends.

    Raises:
        RefusedError: the request has no form, or a broken one, or text that is not in UTF-8.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise RefusedError(
            415,
            "not a form",
            f"the request is `{kind or 'without a type'}`; send multipart/form-data with the "
            "recording in the field `audio`",
        )
    headers = request.headers.mutablecopy()
    # The parser takes what is not UTF-8 for Latin-1, in silence; so all is, and decoded here.
    headers["content-type"] += "; charset=latin-1"
    parser = MultiPartParser(
        headers,
        request.stream(),
        max_files=1,
        max_fields=_MOST_FIELDS,
        max_part_size=_FIELD_BYTES,
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise RefusedError(
            400, "broken form", f"the form cannot be read ({error.message.rstrip('.')})"
        ) from error
    try:
        yield FormData([(name, _utf8(name, each)) for name, each in form.multi_items()])
    finally:
        await form.close()


def _utf8(name: str, value: UploadFile | str) -> UploadFile | str:
    if isinstance(value, UploadFile):
        return value
    try:
        return value.encode("latin-1").decode("utf-8")
    except UnicodeError:
        raise RefusedError(
            422, "not text", f"the field `{name}` is not in UTF-8; send its text in UTF-8"
        ) from None


async def clip_of(form: FormData) -> Clip:
    """The clip of a form.

    Raises:
        RefusedError: a field is unknown or has another type.
    """
    for name in form:
        if name not in FIELDS:
            raise RefusedError(
                422,
                "invalid options",
                f"there is no field `{name}`; use audio, text, only and unsure_below",
            )
    audio, text = form.get("audio"), form.get("text")
    if isinstance(audio, str) and audio:
        raise RefusedError(
            422, "invalid options", "the field `audio` is text; send the recording as a file"
        )
    only = form.getlist("only")
    unsure_below = form.get("unsure_below")
    if any(isinstance(value, UploadFile) for value in (text, unsure_below, *only)):
        raise RefusedError(
            422, "invalid options", "a field other than `audio` is a file; send it as text"
        )
    return Clip(
        await audio.read() if isinstance(audio, UploadFile) else None,
        str(text) if text is not None else None,
        tuple(map(str, only)) or None,
        _number(str(unsure_below)) if unsure_below else None,
    )


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise RefusedError(
            422,
            "invalid options",
            f"unsure_below: `{text[:40]}` is no probability; use a value from 0 to 1",
        ) from None
