"""Records of many trials at once against the team's MLflow server on PostgreSQL.

    python benchmarks/tracking.py load [--trials 50] [--seconds 120] [--outage 0] [--workers 2]
    python benchmarks/tracking.py search [--trials 2000]

Both set up a server as `deploy/mlflow/README.md` does, on this machine, which must have the
programs of PostgreSQL and `mlflow[auth]`. `load`: every trial has a thread that logs two metrics
once a second; the table has the duration of that call and its processor time, which other work on
the machine does not change, and what the database holds afterwards against what was logged. With
`--outage S`, PostgreSQL is stopped for S seconds in the middle. `search`: records a search of many
trials, five epochs each, then times the questions that are asked of it: all trials (as a resumed
run does), and a page of MLflow's table. Results go to benchmarks/results/tracking.jsonl, one line
per command.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from helpers.postgres import running_postgres
from helpers.team_mlflow import TeamServer
from rows import add_row

from multistill.config import TrackingConfig
from multistill.tracking import Tracker, open_tracker
from multistill.tracking.server import Server

METRICS = ("loss", "f1")
EPOCHS = 5


@contextmanager
def team_server(workers: int) -> Iterator[TeamServer]:
    with running_postgres() as postgres, tempfile.TemporaryDirectory() as folder:
        server = TeamServer(Path(folder), postgres, workers)
        server.start()
        os.environ.update(server.admin)
        try:
            yield server
        finally:
            server.kill()


def opened(server: TeamServer, workspace: str, job: str) -> Tracker:
    return open_tracker(TrackingConfig(uri=server.uri), Path(workspace), job, job, {})


def delivered(top: Tracker, seconds: float) -> float | None:
    """Seconds until all is on the server; None if it is not within `seconds`."""
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        if top._recorder.flush(5):
            return time.monotonic() - started
    return None


def load(arguments: argparse.Namespace) -> dict[str, Any]:
    calls: list[list[tuple[float, float]]] = [[] for _ in range(arguments.trials)]

    def train(trial: Tracker, number: int, start: float) -> None:
        for step in range(arguments.seconds):
            due = start + step + number / arguments.trials
            time.sleep(max(0.0, due - time.monotonic()))
            before, used = time.perf_counter(), time.thread_time()
            trial.metrics(dict.fromkeys(METRICS, step + number / 100), step=step)
            calls[number].append((time.perf_counter() - before, time.thread_time() - used))
        trial.close()

    with team_server(arguments.workers) as server, tempfile.TemporaryDirectory() as workspace:
        top = opened(server, workspace, "load")
        trials = [top.child(f"trial {n}", f"t{n}", "trial") for n in range(arguments.trials)]
        start = time.monotonic() + 1
        threads = [
            threading.Thread(target=train, args=(trial, number, start))
            for number, trial in enumerate(trials)
        ]
        for thread in threads:
            thread.start()
        if arguments.outage:
            time.sleep(arguments.seconds / 3)
            server.postgres.stop()
            time.sleep(arguments.outage)
            server.postgres.start()
        for thread in threads:
            thread.join()
        seconds = delivered(top, 600)
        top.close()
        counts = server.postgres.query(
            "SELECT count(*), count(DISTINCT (m.run_uuid, m.key, m.step)), "
            "count(DISTINCT m.run_uuid) FROM metrics m JOIN runs r ON r.run_uuid = m.run_uuid "
            "AND r.status = 'FINISHED' AND r.name LIKE 'trial %'",
            "mlflow",
        )
    stored, distinct, runs = map(int, counts.split("|"))
    logged = arguments.trials * arguments.seconds * len(METRICS)
    wall, processor = 1000 * np.concatenate([np.array(times) for times in calls]).T
    return {
        "calls": len(wall),
        "call_ms_p50": round(float(np.percentile(wall, 50)), 3),
        "call_ms_p99": round(float(np.percentile(wall, 99)), 3),
        "call_ms_max": round(float(wall.max()), 3),
        "call_processor_ms_p99": round(float(np.percentile(processor, 99)), 3),
        "logged": logged,
        "lost": logged - distinct,
        "doubled": stored - distinct,
        "finished_runs": runs,
        "seconds_until_all_was_sent": None if seconds is None else round(seconds, 1),
    }


def search(arguments: argparse.Namespace) -> dict[str, Any]:
    with team_server(arguments.workers) as server, tempfile.TemporaryDirectory() as workspace:
        top = opened(server, workspace, "search")
        stage = top.child("search", "search", "stage")
        started = time.monotonic()
        for number in range(arguments.trials):
            trial = stage.child(f"trial {number}", f"t{number}", "trial")
            trial.params({"temperature": number / 100, "weight": 0.5, "learning_rate": 1e-4})
            for epoch in range(1, EPOCHS + 1):
                trial.metrics(dict.fromkeys(METRICS, epoch / 10), step=epoch)
            trial.metrics({"value": number / arguments.trials, "trained_epochs": EPOCHS})
            trial.tags({"reason": "ran its budget"})
            trial.close()
        appended = time.monotonic() - started
        delivered(top, 3600)
        sent = time.monotonic() - started
        stage_id = stage.record_id
        client = Server(server.uri, "search", Path(workspace))
        children, all_seconds = timed(lambda: client.child_runs("search", str(stage_id)))
        experiment = client.connect()
        body, page_seconds = timed(lambda: page_of_table(server, experiment))
        top.close()
    return {
        "trials": len(children),
        "seconds_to_append": round(appended, 2),
        "seconds_to_send": round(sent, 1),
        "seconds_for_all_trials": round(all_seconds, 2),
        "seconds_for_a_page": round(page_seconds, 3),
        "page_kb": round(len(body) / 1024),
        "columns": len(columns(body)),
    }


def timed(call: Any) -> tuple[Any, float]:
    """The result of a call and the median of three durations in seconds."""
    durations = []
    for _ in range(3):
        started = time.perf_counter()
        result = call()
        durations.append(time.perf_counter() - started)
    return result, float(np.median(durations))


def page_of_table(server: TeamServer, experiment: str) -> bytes:
    """What MLflow's page asks for to show the first 100 runs of an experiment."""
    question = {
        "experiment_ids": [experiment],
        "order_by": ["metrics.`value` DESC"],
        "run_view_type": "ACTIVE_ONLY",
        "max_results": 100,
    }
    login = ":".join(server.admin.values())
    request = urllib.request.Request(
        f"{server.uri}/ajax-api/2.0/mlflow/runs/search",
        json.dumps(question).encode(),
        {
            "Content-Type": "application/json",
            "Authorization": f"Basic {b64encode(login.encode()).decode()}",
        },
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return bytes(answer.read())


def columns(body: bytes) -> set[str]:
    """Names of the parameters and metrics in a page."""
    return {
        f"{kind}.{entry['key']}"
        for run in json.loads(body)["runs"]
        for kind in ("params", "metrics")
        for entry in run["data"].get(kind, [])
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command")
    for name, function, trials in (("load", load, 50), ("search", search, 2000)):
        command = commands.add_parser(name)
        command.set_defaults(function=function)
        command.add_argument("--trials", type=int, default=trials)
        command.add_argument("--workers", type=int, default=2, help="of the server")
    commands.choices["load"].add_argument("--seconds", type=int, default=120)
    commands.choices["load"].add_argument("--outage", type=float, default=0.0)
    arguments = parser.parse_args()
    if arguments.command is None:
        arguments = parser.parse_args(["load"])
    settings = {k: v for k, v in vars(arguments).items() if k not in ("function", "command")}
    row = {"what": arguments.command, **settings, **arguments.function(arguments)}
    for name, value in row.items():
        print(f"{name:28} {value}")
    add_row("tracking", row)


if __name__ == "__main__":
    main()
