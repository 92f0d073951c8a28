"""What a server is told: its model, its replicas, and what it takes."""

from __future__ import annotations

from pydantic import Field

from multistill.config.base import Section

MEGABYTE = 10**6


class ServingSettings(Section):
    """Options of `multistill serve`, and `args` of the application in a Serve config file.

    The token itself is not among them: Ray shows the arguments of an application to everybody who
    sees its dashboard.
    """

    model: str = Field(description="as of `multistill predict`; read where the replicas run")
    workspace: str = Field("workspace", description="where the job ran")
    temperature: float | None = Field(
        None, gt=0, description="of the probabilities, in place of the model's own"
    )
    token_file: str | None = Field(
        None, description="file with the token that requests must bear, on the node of the API"
    )
    token_required: bool = Field(
        False,
        description="do not start without a token in `token_file` or the environment variable "
        "MULTISTILL_SERVE_TOKEN",
    )
    replicas: int = Field(1, ge=1, description="processes that hold the model")
    cpus: float = Field(1.0, gt=0, description="of Ray, and threads, per replica")
    gpus: float = Field(0.0, ge=0, description="GPUs of Ray per replica; a share is possible")
    max_batch: int = Field(16, ge=1, description="clips that are predicted together")
    batch_wait_ms: float = Field(
        5.0, ge=0, description="milliseconds for which a batch waits for more clips"
    )
    max_mb: float = Field(25.0, gt=0, description="megabytes of a request")
    max_uploads_mb: float = Field(
        500.0, gt=0, description="megabytes of all requests in progress; more are refused with 503"
    )
    max_seconds: float = Field(600.0, gt=0, description="seconds of a recording")
    max_requests: int = Field(
        256, ge=1, description="predictions in progress and waiting; more are refused with 503"
    )
    timeout_s: float = Field(60.0, gt=0, description="seconds until a prediction is given up")
    upload_timeout_s: float = Field(
        30.0, gt=0, description="seconds in which the body of a request must arrive"
    )
    max_streams: int = Field(16, ge=0, description="streams at the same time")
    max_stream_seconds: float = Field(3600.0, gt=0, description="seconds of sound of a stream")
