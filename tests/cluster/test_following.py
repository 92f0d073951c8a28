"""Following a log with Ray's own client, from a job server that streams a line and then nothing."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from aiohttp import web
from helpers.interrupts import heed_interrupts

JOB = {
    "type": "SUBMISSION",
    "submission_id": "multistill-x-1",
    "job_id": None,
    "status": "RUNNING",
    "entrypoint": "true",
    "message": "",
}


async def _log(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    await socket.send_str("started\n")
    await asyncio.sleep(600)
    return socket


@pytest.fixture
def job_server() -> Iterator[str]:
    """The four requests of Ray's job server that following uses."""
    version = {"version": "4", "ray_version": "2.60.0", "ray_commit": "x", "session_name": "x"}
    application = web.Application()

    def answer(path: str, value: object) -> None:
        async def handle(request: web.Request) -> web.Response:
            return web.json_response(value)

        application.router.add_get(path, handle)

    answer("/api/version", version)
    answer("/api/jobs/", [JOB])
    application.router.add_get(f"/api/jobs/{JOB['submission_id']}/logs/tail", _log)
    answer(f"/api/jobs/{JOB['submission_id']}", JOB)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> int:
        runner = web.AppRunner(application)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port: int = runner.addresses[0][1]
        return port

    port = asyncio.run_coroutine_threadsafe(start(), loop).result(60)
    yield f"http://127.0.0.1:{port}"
    for task in asyncio.all_tasks(loop):
        loop.call_soon_threadsafe(task.cancel)
    loop.call_soon_threadsafe(loop.call_later, 0.5, loop.stop)
    thread.join(10)


@pytest.mark.parametrize("waiting_s", [0.0, 2.0])
def test_the_first_ctrl_c_ends_the_following(job_server: str, waiting_s: float) -> None:
    following = subprocess.Popen(
        [
            *(sys.executable, "-m", "multistill", "logs", str(JOB["submission_id"]), "-f"),
            *("--address", job_server),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
    )
    try:
        assert following.stdout is not None
        assert following.stdout.readline() == "started\n"
        time.sleep(waiting_s)
        following.send_signal(signal.SIGINT)
        _, errors = following.communicate(timeout=60)
    finally:
        following.kill()
    assert following.returncode == 130
    assert errors.count("\n") == 1, errors
    where = re.escape(f"multistill-x-1 --address {job_server}")
    assert re.search(
        f"which goes on; follow it again with `multistill logs -f {where}`, "
        f"or end it with `multistill stop {where}`",
        errors,
    )
