"""The application of Ray Serve: replicas with the model, and one process for HTTP.

What needs torch is imported where the deployments run, not in the process that starts them.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from multistill.serving.refusals import RefusedError
from multistill.serving.settings import ServingSettings
from multistill.serving.tokens import read_token

if TYPE_CHECKING:
    from multistill.serving.backend import Served
    from multistill.serving.clips import Answer, Clip

ATTEMPTS = 5
"""For a prediction whose replica dies: another replica, or its successor, gets it."""
HEALTH_CHECK_SECONDS = 1.0
"""Between questions whether a replica lives: a dead one has no successor before (Serve's 10 s)."""
LOGGING = {"log_level": "WARNING", "enable_access_log": False}
"""Of Serve's processes: a line per request costs time, and /metrics counts them."""
DESCRIPTIONS = 32
"""Questions for the description of the model that a replica takes beside predictions."""
CONNECTIONS = 1000
"""Requests that the HTTP process holds at a time, uploads and streams included."""


@serve.deployment
class Model:
    """A replica: one `Predictor`, whose calls are batches of what arrived meanwhile."""

    def __init__(self, settings: ServingSettings) -> None:
        from multistill.inference.predictor import Predictor

        self._max_seconds = settings.max_seconds
        self._predictor = Predictor.load(
            settings.model,
            "cuda" if settings.gpus else "cpu",
            workspace=settings.workspace,
            temperature=settings.temperature,
        )
        self._answer.set_max_batch_size(settings.max_batch)
        self._answer.set_batch_wait_timeout_s(settings.batch_wait_ms / 1000)

    async def predict(self, clip: Clip) -> Answer:
        return await self._answer(clip)

    async def served(self) -> Served:
        from multistill.serving.backend import Served

        return Served.of(self._predictor)

    @serve.batch
    async def _answer(self, clips: list[Clip]) -> list[Answer]:
        from multistill.serving.clips import answer

        # In a thread, so that clips of the next batch are taken meanwhile.
        return await asyncio.to_thread(answer, self._predictor, clips, self._max_seconds)


class Replicas:
    """The backend over a handle of `Model`."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def predict(self, clip: Clip) -> Answer:
        return await self._call("predict", clip)

    async def served(self) -> Served:
        return await self._call("served")

    async def _call(self, method: str, *arguments: Any) -> Any:
        for _ in range(ATTEMPTS):
            try:
                return await getattr(self._handle, method).remote(*arguments)
            except RayActorError:  # a prediction changes nothing, so it can be made again
                continue
            except (BackPressureError, DeploymentUnavailableError):
                break
        raise RefusedError(503, "overloaded", "no replica of the model is free; try again later")


@serve.deployment
@serve.ingress()
class Api:
    """The HTTP process: it reads requests, asks the replicas, and holds streams."""

    def __init__(self, model: Any, settings: ServingSettings) -> None:
        self._backend = Replicas(model)
        self._settings = settings
        self._token = read_token(settings.token_file, required=settings.token_required)

    def __serve_build_asgi_app__(self) -> Any:
        from multistill.serving.api import create_app

        return create_app(self._backend, self._settings, self._token)


def application(settings: ServingSettings) -> serve.Application:
    """The application with its settings."""
    model = cast("Any", Model).options(
        num_replicas=settings.replicas,
        # Predictions wait in the replicas: Serve's router asks a full one again after pauses only,
        # and with 128 clients most of the time went into these.
        # Questions for the model's description need room too while all predictions are taken.
        max_ongoing_requests=settings.max_requests + DESCRIPTIONS,
        max_queued_requests=settings.max_requests,
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
        graceful_shutdown_timeout_s=settings.timeout_s,
        health_check_period_s=HEALTH_CHECK_SECONDS,
        logging_config=LOGGING,
    )
    api = cast("Any", Api).options(
        max_ongoing_requests=CONNECTIONS,
        max_queued_requests=CONNECTIONS,
        ray_actor_options={"num_cpus": 0},  # it waits for the network
        graceful_shutdown_timeout_s=settings.timeout_s + settings.upload_timeout_s,
        health_check_period_s=HEALTH_CHECK_SECONDS,
        logging_config=LOGGING,
    )
    return api.bind(model.bind(settings), settings)


def build(arguments: dict[str, Any]) -> serve.Application:
    """The application of a Serve config file, whose `args` are those of `ServingSettings`.

    Raises:
        ValidationError: an argument is unknown or out of its range.
    """
    return application(ServingSettings.model_validate(arguments))
