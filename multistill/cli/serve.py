"""`multistill serve`: a trained model behind HTTP."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from multistill.cli.options import JobWorkspace, Json, Model, Temperature, print_json
from multistill.errors import UsageError


def serve(
    model: Model,
    host: Annotated[
        str, typer.Option("--host", help="address to listen at; 0.0.0.0: all of this machine")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file",
            metavar="FILE",
            help="token that requests must bear; default: MULTISTILL_SERVE_TOKEN, if it is set",
        ),
    ] = None,
    replicas: Annotated[
        int, typer.Option("--replicas", min=1, help="processes that hold the model")
    ] = 1,
    cpus: Annotated[
        float, typer.Option("--cpus", min=0.1, help="CPUs of Ray, and threads, per replica")
    ] = 1.0,
    gpus: Annotated[
        float, typer.Option("--gpus", min=0.0, help="GPUs per replica; a share is possible")
    ] = 0.0,
    max_batch: Annotated[
        int, typer.Option("--max-batch", min=1, help="clips that are predicted together")
    ] = 16,
    max_mb: Annotated[
        float, typer.Option("--max-mb", min=0.001, help="megabytes of a request")
    ] = 25.0,
    max_uploads_mb: Annotated[
        float,
        typer.Option(
            "--max-uploads-mb", min=0.001, help="of all requests at a time; others get 503"
        ),
    ] = 500.0,
    max_seconds: Annotated[
        float, typer.Option("--max-seconds", min=0.1, help="seconds of a recording")
    ] = 600.0,
    max_requests: Annotated[
        int,
        typer.Option("--max-requests", min=1, help="predictions at a time; others get 503"),
    ] = 256,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, help="seconds until a prediction is given up")
    ] = 60.0,
    max_streams: Annotated[
        int, typer.Option("--max-streams", min=0, help="streams at a time; others get 503")
    ] = 16,
    temperature: Temperature = None,
    workspace: JobWorkspace = Path("workspace"),
    as_json: Json = False,
) -> None:
    """Serve a trained model over HTTP: a page, /predict, /stream, /health, /ready, /metrics."""
    from multistill.inference.source import check_temperature
    from multistill.serving import run
    from multistill.serving.settings import ServingSettings

    check_temperature(temperature)
    for option, value in {
        "--cpus": cpus,
        "--gpus": gpus,
        "--max-mb": max_mb,
        "--max-uploads-mb": max_uploads_mb,
        "--max-seconds": max_seconds,
        "--timeout": timeout,
    }.items():
        if not math.isfinite(value):
            raise UsageError(f"{option}: {value} is no limit; write a number")
    path = os.path.expanduser(model)  # noqa: PTH111, Path's raises for an unknown user
    settings = run.with_token(
        ServingSettings(
            # Replicas run in folders of their own.
            model=os.path.abspath(path) if os.path.exists(path) else model,  # noqa: PTH100, PTH110
            workspace=str(workspace.expanduser().absolute()),
            temperature=temperature,
            token_file=None if token_file is None else str(token_file.expanduser().absolute()),
            replicas=replicas,
            cpus=cpus,
            gpus=gpus,
            max_batch=max_batch,
            max_mb=max_mb,
            max_uploads_mb=max_uploads_mb,
            max_seconds=max_seconds,
            max_requests=max_requests,
            timeout_s=timeout,
            max_streams=max_streams,
        )
    )
    if sentence := run.warning(host, settings):
        print(f"multistill: {sentence}", file=sys.stderr)
    print(f"multistill: starting Ray and loading {model}", file=sys.stderr)
    with run.served(settings, host, port) as address:
        if as_json:
            print_json({"model": model, "address": address})
        else:
            print(f"serving {model} at {address} (page, /docs, /predict, /stream); Ctrl-C ends it")
        sys.stdout.flush()
        run.until_stopped()
