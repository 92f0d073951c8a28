"""`multistill serve` under load, and what goes wrong with it.

    python benchmarks/serving.py load [--clients 1 8 32 128] [--seconds 15]
    python benchmarks/serving.py faults
    python benchmarks/serving.py memory [--requests 20000]

The server is a local Ray with one replica of a light student with random weights (or `--model`),
on the machine of the clients, which take a share of its cores. `load`: requests per second and
latency of an upload of a clip of three seconds. `faults`: a replica that is killed and a redeploy,
both under load, must lose no accepted request; afterwards, and beside open connections that send
nothing or too much, the server must still answer. `memory`: resident memory of the two processes
of the server. Results go to benchmarks/results/serving.jsonl.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import os
import socket
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import aiohttp
import numpy as np
import psutil
import soundfile
from rows import add_row

from multistill.serving import run
from multistill.serving.settings import ServingSettings

HOST, PORT = "127.0.0.1", 8123
ADDRESS = f"http://{HOST}:{PORT}"
LABELS = ("neutral", "happy", "sad", "angry")
PERCENTILES = (50, 95, 99)


def clip(seconds: float = 3.0) -> bytes:
    stream = io.BytesIO()
    noise = 0.1 * np.random.default_rng(0).standard_normal(round(16_000 * seconds))
    soundfile.write(stream, noise, 16_000, format="WAV")
    return stream.getvalue()


def random_model(folder: Path) -> Path:
    """A light student with random weights."""
    import torch

    from multistill.config import FeaturesConfig
    from multistill.encoders import side_by_side
    from multistill.features.identity import resolved_weights
    from multistill.models.files import ModelInfo, save_model
    from multistill.models.joint import build_model
    from multistill.models.presets import resolve

    config = FeaturesConfig()
    weights = resolved_weights(config)
    speech = side_by_side.load(config.speech, weights, torch.device("cpu")).info
    torch.manual_seed(0)
    head = build_model(resolve("light-student", {"num_classes": len(LABELS)}), speech.dim, 0, {})
    described = {**speech.to_dict(), "settings": config.identity()["speech"]}
    info = ModelInfo(
        "student",
        LABELS,
        encoders={"speech": described},
        dtype=config.dtype,
        temperature=None,
        max_frames=None,
        training={"name": "random"},
        trained={},
    )
    save_model(head.eval(), folder, info)
    return folder


async def post(session: aiohttp.ClientSession, audio: bytes) -> tuple[int, float]:
    """Status and seconds of an upload; 0: the connection broke."""
    form = aiohttp.FormData()
    form.add_field("audio", audio, filename="clip.wav")
    start = time.perf_counter()
    try:
        async with session.post(f"{ADDRESS}/predict", data=form) as reply:
            await reply.read()
            return reply.status, time.perf_counter() - start
    except aiohttp.ClientError:
        return 0, time.perf_counter() - start


@contextlib.asynccontextmanager
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        connector=connector, timeout=aiohttp.ClientTimeout(total=180)
    ) as session:
        yield session


class Load:
    """Clients that each send their next request when the last is answered."""

    def __init__(self, clients: int) -> None:
        self.clients = clients
        self.answers: list[tuple[int, float]] = []
        self._stop = False

    async def run(self, seconds: float | None = None, requests: int | None = None) -> None:
        deadline = None if seconds is None else time.monotonic() + seconds
        audio = clip()

        async def one(session: aiohttp.ClientSession) -> None:
            while not self._stop and (deadline is None or time.monotonic() < deadline):
                if requests is not None and len(self.answers) >= requests:
                    return
                self.answers.append(await post(session, audio))

        async with client() as session:
            await asyncio.gather(*(one(session) for _ in range(self.clients)))

    def stop(self) -> None:
        self._stop = True

    def summary(self, seconds: float) -> dict[str, Any]:
        statuses = Counter(status for status, _ in self.answers)
        times = [1000 * taken for status, taken in self.answers if status == 200]
        found = np.percentile(times, PERCENTILES) if times else [float("nan")] * 3
        return {
            "clients": self.clients,
            "requests": len(self.answers),
            "statuses": {str(status): count for status, count in sorted(statuses.items())},
            "per_second": round(statuses[200] / seconds, 1),
            **{f"p{p}_ms": round(float(v), 1) for p, v in zip(PERCENTILES, found, strict=True)},
        }


async def load(clients: list[int], seconds: float) -> list[dict[str, Any]]:
    await warmed()
    rows = []
    for count in clients:
        each = Load(count)
        start = time.monotonic()
        await each.run(seconds)
        rows.append(each.summary(time.monotonic() - start))
        print(json.dumps(rows[-1]), flush=True)
    return rows


async def warmed() -> None:
    await Load(4).run(3.0)


def replica(kind: str) -> str:
    """The name of the actor of a replica of `Model` or `Api`."""
    import ray

    names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
    return next(name for name in names if f"#{kind}#" in name)


def processes() -> dict[str, psutil.Process]:
    """The processes of the server, children of the raylet that this process started."""
    wanted = {"ServeReplica:multistill:Model": "model", "ServeReplica:multistill:Api": "api",
              "ProxyActor": "proxy"}  # fmt: skip
    found = {}
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            line = " ".join(process.cmdline())
            for name, short in wanted.items():
                if name in line:
                    found[short] = process
    return found


async def healthy() -> bool:
    async with client() as session:
        status, _ = await post(session, clip())
        async with session.get(f"{ADDRESS}/ready") as reply:
            return status == 200 and reply.status == 200


async def disturbed(name: str, disturb: Any, *, settle: float) -> dict[str, Any]:
    """Eight clients while something happens; nothing they were promised may be lost."""
    each = Load(8)
    start = time.monotonic()
    running = asyncio.create_task(each.run())
    await asyncio.sleep(3)
    await asyncio.to_thread(disturb)
    await asyncio.sleep(settle)
    each.stop()
    await running
    row = {"fault": name, **each.summary(time.monotonic() - start), "healthy": await healthy()}
    row["slowest_ms"] = round(1000 * max(taken for _, taken in each.answers), 1)
    return row


def kill(kind: str) -> None:
    import ray

    ray.kill(ray.get_actor(replica(kind), namespace="serve"))


def redeploy(settings: ServingSettings) -> None:
    from ray import serve

    from multistill.serving.deployment import application

    changed = settings.model_copy(update={"temperature": 2.0})
    serve.run(application(changed), name=run.NAME, route_prefix="/")


def _open(count: int, content: bytes) -> tuple[list[socket.socket], float]:
    sockets = []
    start = time.monotonic()
    for _ in range(count):
        each = socket.create_connection((HOST, PORT), timeout=30)
        if content:
            each.sendall(content)
        sockets.append(each)
    return sockets, time.monotonic() - start


async def beside(name: str, count: int, content: bytes, wait: float = 0.0) -> dict[str, Any]:
    """Ordinary requests beside connections that send only the beginning of a request."""
    sockets, seconds = await asyncio.to_thread(_open, count, content)
    each = Load(4)
    start = time.monotonic()
    await each.run(5.0)
    row = {"fault": name, "connections": count, "opened_in_s": round(seconds, 1),
           **each.summary(time.monotonic() - start)}  # fmt: skip
    if wait:  # for the server to end them
        await asyncio.sleep(wait)
        row["answered"] = Counter(_status(each) for each in sockets).most_common(3)
    for each_socket in sockets:
        each_socket.close()
    row["healthy"] = await healthy()
    return row


def _status(connection: socket.socket) -> str:
    connection.settimeout(0.2)
    try:
        return connection.recv(64)[9:12].decode() or "closed"
    except TimeoutError:
        return "open"
    except OSError:
        return "reset"


async def refused(name: str, audio: bytes, count: int, wanted: int) -> dict[str, Any]:
    """Uploads that must be refused, from 32 clients."""
    async with client() as session:
        gate = asyncio.Semaphore(32)

        async def one() -> int:
            async with gate:
                return (await post(session, audio))[0]

        statuses = Counter(await asyncio.gather(*(one() for _ in range(count))))
    found = {str(status): number for status, number in statuses.items()}
    expected = statuses[wanted] + statuses[0] == count
    return {"fault": name, "statuses": found, "expected": expected, "healthy": await healthy()}


async def faults(settings: ServingSettings, connections: int) -> list[dict[str, Any]]:
    await warmed()
    head = (
        f"POST /predict HTTP/1.1\r\nHost: {HOST}:{PORT}\r\nContent-Length: 100000\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
    ).encode()
    upload_wait = settings.upload_timeout_s + 3
    steps = (
        lambda: disturbed("model replica killed", lambda: kill("Model"), settle=20),
        lambda: disturbed("redeploy", lambda: redeploy(settings), settle=5),
        lambda: disturbed("API process killed", lambda: kill("Api"), settle=20),
        lambda: beside("connections without a byte", connections, b""),
        lambda: beside("half a header", 500, head[:60]),
        lambda: beside("half a body", 500, head, upload_wait),
        lambda: refused("oversized", b"x" * 30_000_000, 64, 413),
        lambda: refused("truncated", clip()[:2000], 256, 422),
        lambda: refused("not audio", b"x" * 2000, 256, 415),
    )
    rows = []
    for step in steps:
        rows.append(await step())
        print(json.dumps(rows[-1]), flush=True)
    return rows


async def memory(requests: int) -> list[dict[str, Any]]:
    await warmed()
    await Load(8).run(requests=500)
    rows = []
    done = 0
    while done < requests:
        each = Load(8)
        start = time.monotonic()
        await each.run(requests=requests // 10)
        done += len(each.answers)
        rows.append({
            "requests": done,
            **{f"{name}_mb": round(process.memory_info().rss / 1e6, 1)
               for name, process in sorted(processes().items())},
            **{k: v for k, v in each.summary(time.monotonic() - start).items()
               if k in ("per_second", "statuses")},
        })  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    return rows


def record(name: str, arguments: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    model = "given" if arguments.model else "light-student, random weights"
    for row in rows:
        add_row("serving", {"what": name, "model": model, **row})


@contextmanager
def model_folder(given: str | None) -> Iterator[str]:
    if given:
        yield str(Path(given).absolute())
        return
    with tempfile.TemporaryDirectory() as folder:
        yield str(random_model(Path(folder) / "model"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("command", nargs="?", default="load", choices=("load", "faults", "memory"))
    parser.add_argument("--model", help="a model folder; default: a light student, untrained")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--seconds", type=float, default=15.0, help="per number of clients")
    parser.add_argument("--requests", type=int, default=20_000, help="of `memory`")
    parser.add_argument("--connections", type=int, default=1000, help="without a byte, of `faults`")
    given = parser.parse_args()
    with model_folder(given.model) as folder:
        settings = ServingSettings(model=folder, cpus=1.0, upload_timeout_s=10.0)
        with run.served(settings, HOST, PORT):
            if given.command == "load":
                rows = asyncio.run(load(given.clients, given.seconds))
            elif given.command == "faults":
                rows = asyncio.run(faults(settings, given.connections))
            else:
                rows = asyncio.run(memory(given.requests))
    record(given.command, given, rows)


if __name__ == "__main__":
    main()
