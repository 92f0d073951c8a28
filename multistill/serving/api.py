"""The HTTP interface: a FastAPI application over a `Backend`."""

from __future__ import annotations

import base64
import hashlib
import re
import time
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from multistill.provenance import version
from multistill.serving import openapi
from multistill.serving.bodies import BoundedBodies, clip_of, received_form
from multistill.serving.metrics import TYPE, Metrics
from multistill.serving.refusals import Refusal, RefusedError
from multistill.serving.service import Service
from multistill.serving.streams import add_stream

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from multistill.serving.backend import Backend
    from multistill.serving.settings import ServingSettings

PATHS = ("/", "/docs", "/openapi.json", "/predict", "/stream", "/health", "/ready", "/metrics")


def create_app(backend: Backend, settings: ServingSettings, token: str | None) -> FastAPI:
    """The application: page, predictions, streams, health and metrics.

    Args:
        token: that `/predict`, `/stream` and `/metrics` ask for; None: none.
    """
    service = Service(backend, settings, token)
    app = FastAPI(
        title="multistill",
        version=version(),
        description=openapi.DESCRIPTION,
        docs_url=None,  # FastAPI's pages load scripts from another host
        redoc_url=None,
    )
    app.add_middleware(
        BoundedBodies,
        max_bytes=round(settings.max_mb * 1e6),
        max_bytes_together=round(settings.max_uploads_mb * 1e6),
        seconds=settings.upload_timeout_s,
    )
    app.add_middleware(_Measured, service.metrics)
    _add_error_handlers(app, service)
    _add_pages(app)
    _add_routes(app, service)
    return app


def _add_routes(app: FastAPI, service: Service) -> None:
    @app.post("/predict", openapi_extra=openapi.PREDICT, responses=openapi.REFUSALS)
    async def predict(request: Request) -> JSONResponse:
        """Predict the emotion of a recording, a transcript, or both."""
        service.check_caller(request)
        service.check_load()
        async with received_form(request) as form:
            clip = await clip_of(form)
        answer = await service.predict(clip)
        return _refused(service, answer) if isinstance(answer, Refusal) else JSONResponse(answer)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Whether this process answers; it says nothing about the model."""
        return {"healthy": True, "version": version()}

    @app.get("/ready", responses={503: openapi.REFUSED})
    async def ready() -> dict[str, Any]:
        """Whether a model is loaded, and which."""
        served = await service.served()
        return {
            "ready": True,
            **served.to_json(),
            "token": service.token is not None,
            "max_seconds": service.settings.max_seconds,
        }

    @app.get("/metrics", response_class=Response)
    async def metrics(request: Request) -> Response:
        """Metrics in the text format of Prometheus."""
        service.check_caller(request)
        return Response(service.metrics.text(), media_type=TYPE)

    add_stream(app, service)


def _add_pages(app: FastAPI) -> None:
    for path, name in (("/", "page.html"), ("/docs", "docs.html")):
        content = (files("multistill.serving") / "pages" / name).read_text(encoding="utf-8")
        app.add_api_route(path, _page(content), include_in_schema=False, methods=["GET", "HEAD"])


def _page(content: str) -> Callable[[], Awaitable[Response]]:
    """A route with a page whose own scripts and styles may run, and nothing else."""
    hashes = {
        tag: " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()}'"
            for block in re.findall(f"<{tag}>(.*?)</{tag}>", content, re.DOTALL)
        )
        for tag in ("script", "style")
    }
    headers = {
        "Content-Security-Policy": (
            # blob: is the processor of the microphone's samples.
            f"default-src 'none'; script-src {hashes['script']} blob:; "
            f"style-src {hashes['style']}; connect-src 'self'; img-src data:; media-src blob:; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        ),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }

    async def page() -> Response:
        return HTMLResponse(content, headers=headers)

    return page


def _add_error_handlers(app: FastAPI, service: Service) -> None:
    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> JSONResponse:
        return _refused(service, error.refusal)

    @app.exception_handler(ClientDisconnect)
    async def left(request: Request, error: ClientDisconnect) -> Response:
        return _refused(service, Refusal(499, "client left", "the client left"))  # nobody reads it

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        sentence = f"unexpected {type(error).__name__}; the log of the server has the traceback"
        return _refused(service, Refusal(500, "unexpected", sentence))

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> JSONResponse:
        sentence = (
            f"there is no {request.method} {request.url.path}; see /docs"
            if error.status_code in (404, 405)
            else str(error.detail)
        )
        return _refused(service, Refusal(error.status_code, "no such path", sentence))


def _refused(service: Service, refusal: Refusal) -> JSONResponse:
    service.metrics.refused.labels(refusal.reason).inc()
    return JSONResponse(refusal.to_json(), refusal.status, refusal.headers)


class _Measured:
    """ASGI middleware that counts requests and their time."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in PATHS else "other"
        status = "none"  # the client left before there was an answer
        start = time.perf_counter()

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self.app(scope, receive, observed)
        except Exception:  # answered by what is around this middleware
            status = "500"
            raise
        finally:
            self.metrics.requests.labels(path, status).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - start)
