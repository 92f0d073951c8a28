"""`multistill serve` under load, and what goes wrong with it.

    python benchmarks/serving.py load [--clients 1 8 32 128] [--seconds 15]
    python benchmarks/serving.py faults
    python benchmarks/serving.py memory [--requests 100000]

The server is a local Ray with one replica of a light student with random weights (or `--model`),
on the machine of the clients, which take a share of its cores. `load`: requests per second and
latency of an upload of a clip of three seconds. `faults`: a replica that is killed and a redeploy,
both under load, must lose no accepted request. The HTTP process and Serve's proxy are killed too,
which lose what they hold: counted by its status (0: a broken connection), and whether asking again
helps, as the page does. Afterwards, and beside open connections that send nothing or too much, the
server must still answer. `memory`: uploads of 0.1 to 0.5 s from 16 clients; at 20 times
resident and private memory and the proportional share (PSS) of the server's processes, and of all
of Ray's. By how much the private memory grows: the slope of its regression on the number of
requests with the standard error, over all times and over the second half (allocators fill up
first). Results go to benchmarks/results/serving.jsonl.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import psutil
from clients import ADDRESS, HOST, PAUSES, PORT, Load, client, clip, outages, post
from rows import add_row

from multistill.serving import run
from multistill.serving.settings import ServingSettings

LABELS = ("neutral", "happy", "sad", "angry")


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


def tell(what: str, model: str, row: Mapping[str, Any]) -> None:
    """Record a row at once: of a run that is cut, those until then are kept."""
    add_row("serving", {"what": what, "model": model, **row})
    print(json.dumps(row), flush=True)


async def load(clients: list[int], seconds: float, model: str) -> None:
    await warmed()
    for count in clients:
        each = Load(count)
        start = time.monotonic()
        await each.run(seconds)
        tell("load", model, each.summary(time.monotonic() - start))


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
        posted = await post(session, clip())
        async with session.get(f"{ADDRESS}/ready") as reply:
            return posted.status == 200 and reply.status == 200


async def disturbed(
    name: str, disturb: Any, *, settle: float, pauses: Sequence[float] = ()
) -> dict[str, Any]:
    """Eight clients while something happens; nothing they were promised may be lost.

    Args:
        pauses: before a request that was lost is sent again.
    """
    each = Load(8, pauses=pauses)
    start = time.monotonic()
    silences: list[float] = []
    running, asking = map(asyncio.create_task, (each.run(), outages(silences)))
    await asyncio.sleep(3)
    await asyncio.to_thread(disturb)
    await asyncio.sleep(settle)
    each.stop()
    await running
    asking.cancel()
    row = {"fault": name, **each.summary(time.monotonic() - start), "healthy": await healthy()}
    row["slowest_ms"] = round(1000 * max(reply.seconds for reply in each.answers), 1)
    if pauses:
        lost = Counter(str(reply.first) for reply in each.answers if reply.first != 200)
        row["first_attempts"] = dict(sorted(lost.items()))
        row["silent_s"] = round(max(silences), 1)
    return row


def kill(kind: str) -> None:
    import ray

    ray.kill(ray.get_actor(replica(kind), namespace="serve"))


def kill_proxy() -> None:
    processes()["proxy"].kill()


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
                return (await post(session, audio)).status

        statuses = Counter(await asyncio.gather(*(one() for _ in range(count))))
    found = {str(status): number for status, number in statuses.items()}
    expected = statuses[wanted] + statuses[0] == count
    return {"fault": name, "statuses": found, "expected": expected, "healthy": await healthy()}


async def faults(settings: ServingSettings, connections: int, model: str) -> None:
    await warmed()
    head = (
        f"POST /predict HTTP/1.1\r\nHost: {HOST}:{PORT}\r\nContent-Length: 100000\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
    ).encode()
    upload_wait = settings.upload_timeout_s + 3
    steps = (
        lambda: disturbed("model replica killed", lambda: kill("Model"), settle=20),
        lambda: disturbed("redeploy", lambda: redeploy(settings), settle=5),
        lambda: disturbed("API process killed", lambda: kill("Api"), settle=20, pauses=PAUSES),
        lambda: disturbed("proxy killed", kill_proxy, settle=30, pauses=PAUSES),
        lambda: beside("connections without a byte", connections, b""),
        lambda: beside("half a header", 500, head[:60]),
        lambda: beside("half a body", 500, head, upload_wait),
        lambda: refused("oversized", b"x" * 30_000_000, 64, 413),
        lambda: refused("truncated", clip()[:2000], 256, 422),
        lambda: refused("not audio", b"x" * 2000, 256, 415),
    )
    for step in steps:
        tell("faults", model, await step())


async def memory(requests: int, model: str) -> None:
    await warmed()
    lengths = np.random.default_rng(0).uniform(0.1, 0.5, 1000)
    audio = [clip(float(seconds)) for seconds in lengths]
    rows = []
    done = 0
    while done < requests:
        each = Load(16, audio)
        start = time.monotonic()
        await each.run(requests=max(1, requests // 20))
        done += len(each.answers)
        found = {name: each.memory_full_info() for name, each in sorted(processes().items())}
        rows.append({
            "requests": done,
            **{f"{name}_mb": round(info.rss / 1e6, 2) for name, info in found.items()},
            **{f"{name}_private_mb": round(info.uss / 1e6, 2) for name, info in found.items()},
            **{f"{name}_pss_mb": round(info.pss / 1e6, 2) for name, info in found.items()},
            "all_pss_mb": all_processes_mb(),
            **{k: v for k, v in each.summary(time.monotonic() - start).items()
               if k in ("per_second", "statuses")},
        })  # fmt: skip
        tell("memory", model, rows[-1])
    tell("memory_growth", model, {"requests": done, **growth(rows)})


def all_processes_mb() -> float:
    """Of the server and of Ray, which it needs: each page counts once."""
    found = 0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            found += process.memory_full_info().pss
    return round(found / 1e6, 1)


def growth(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Megabytes of private memory per 10,000 requests by process, with standard errors."""
    from scipy.stats import linregress

    found = {}
    for name in sorted(name for name in rows[0] if name.endswith("_private_mb")):
        for part, some in (("all", rows), ("second_half", rows[len(rows) // 2 :])):
            line = linregress([row["requests"] / 1e4 for row in some], [row[name] for row in some])
            process = name.removesuffix("_private_mb")
            found[f"{process}_{part}_mb_per_10k"] = round(float(line.slope), 3)
            found[f"{process}_{part}_standard_error"] = round(float(line.stderr), 3)
    return found


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
    parser.add_argument("--requests", type=int, default=100_000, help="of `memory`")
    parser.add_argument("--connections", type=int, default=1000, help="without a byte, of `faults`")
    given = parser.parse_args()
    model = "given" if given.model else "light-student, random weights"
    with model_folder(given.model) as folder:
        settings = ServingSettings(model=folder, cpus=1.0, upload_timeout_s=10.0)
        with run.served(settings, HOST, PORT):
            if given.command == "load":
                work = load(given.clients, given.seconds, model)
            elif given.command == "faults":
                work = faults(settings, given.connections, model)
            else:
                work = memory(given.requests, model)
            asyncio.run(work)


if __name__ == "__main__":
    main()
