"""A registered model by the doors that are programs of their own: two servers and a browser."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from helpers.browser import browser
from helpers.servers import free_ports, server_command


@dataclass(frozen=True)
class HttpServer:
    """What `Doors` uses of a test client, of a server that runs."""

    address: str

    def post(self, path: str, files: Any) -> requests.Response:
        return requests.post(f"{self.address}{path}", files=files, timeout=60)


@contextmanager
def served_twice(model: str, folder: Path) -> Iterator[tuple[HttpServer, str]]:
    """`multistill serve` and `mlflow models serve`, which start side by side.

    Yields:
        the first, and the address of the second.
    """
    own, mlflow = (f"http://127.0.0.1:{port}" for port in free_ports(2))
    ports = [address.rpartition(":")[2] for address in (own, mlflow)]
    serve = ["multistill", "serve", model, "--port", ports[0], "--cpus", "0.5"]
    models = ["mlflow", "models", "serve", "-m", model, "--port", ports[1], "--workers", "1"]
    with (
        server_command(serve, f"{own}/ready", folder) as ready,
        server_command([*models, "--env-manager", "local"], f"{mlflow}/ping", folder) as pinged,
    ):
        ready()
        pinged()
        yield HttpServer(own), mlflow


def invoked(address: str, audio: list[Path | str]) -> list[dict[str, Any]]:
    """Rows of MLflow's server for recordings, whose content is sent, and for other values."""
    rows = [
        {"audio": base64.b64encode(each.read_bytes()).decode() if isinstance(each, Path) else each}
        for each in audio
    ]
    reply = requests.post(f"{address}/invocations", json={"dataframe_records": rows}, timeout=60)
    assert "NaN" not in reply.text, "JSON has no such value"
    found: list[dict[str, Any]] = reply.json()["predictions"]
    return found


def shown_by_page(address: str, audio: Path, folder: Path) -> str:
    """What the page says of an uploaded recording: the label and its share."""
    with browser(folder) as page:
        page.open(address)
        page.choose("#file", audio)
        page.wait(f"document.getElementById('status').textContent === '{audio.name} is predicted.'")
        assert page.errors == []
        return str(page.evaluate("document.getElementById('label').textContent"))
