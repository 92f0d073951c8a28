"""How long a command takes until its work begins.

    python benchmarks/startup.py [--rounds 3]

Three rows, seconds from the command, median of the rounds, on the packaged corpus of the demo:

- finished job: `multistill run` of a job whose stages exist, to its end;
- first clip: to the first finished shard, a minute of audio, in an empty workspace: the corpus is
  read, Ray and MLflow start, an encoder process starts and encodes;
- first step: to the first epoch of the first trial, three short steps, where all that comes before
  the search exists.

`processor_s` is of the command's own process and not of Ray's, which outlive it; of the two that
start Ray it is of the whole stage. `command_s`, `services_s` (Ray's), `data_actors_s` (Ray Data's)
and `workers_s` are processor time until the work began, by kind of process; `mlflow_s`, MLflow's
import and its new database, is part of `command_s`, measured in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from rows import add_row

JOB: dict[str, Any] = {
    "name": "startup",
    "seed": 1,
    "corpora": [{"kind": "demo"}],
    "split": {"by": "session", "test": 0.25, "valid": 0.2},
    "features": {
        "speech": {"model": "log-mel"},
        "text": {"model": "hashed-ngrams"},
        "shard_seconds": 60,
    },
    "distillation": {"targets": "in-sample"},
    "teacher": {
        "model": {"preset": "small-teacher"},
        "train": {"epochs": 1, "batch_size": 16},
    },
    "students": [
        {
            "name": "text",
            "model": {"preset": "light-text-student"},
            "train": {"epochs": 1, "batch_size": 128},
        }
    ],
    "evaluation": {"resamples": 100, "latency_clips": 1},
}
SEARCH = {"trials": 2, "epochs": 2, "grace_epochs": 1, "seeds": 1}
WAIT_SECONDS = 600.0
RAY_DATA = ("_StatsActor", "_AutoscalingCoordinatorActor", "ActorLocationTracker")
OPEN_MLFLOW = """
import logging, sys, time
logging.disable()
from mlflow import MlflowClient
MlflowClient("sqlite:///" + sys.argv[1]).search_experiments()
print(time.process_time())
"""


def run(job: Path, *options: str, until: Callable[[], bool] | None = None) -> dict[str, float]:
    """Run the job; seconds until the condition holds, or until the end where there is none."""
    parts: dict[str, float] = {}
    command = [sys.executable, "-m", "multistill", "run", str(job), *options]
    with tempfile.TemporaryFile() as output:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        seconds = None
        while until is not None and process.returncode is None:
            if until():
                seconds = time.perf_counter() - started
                parts = processor_parts(process.pid)
                break
            if time.perf_counter() - started > WAIT_SECONDS:
                process.terminate()
            time.sleep(0.02)
            if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                break
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        ended = time.perf_counter() - started
        if process.returncode or (until is not None and seconds is None):
            output.seek(0)
            raise SystemExit(output.read().decode(errors="replace")[-2000:])
    processor = usage.ru_utime + usage.ru_stime
    return {"seconds": ended if seconds is None else seconds, "processor_s": processor, **parts}


def processor_parts(pid: int) -> dict[str, float]:
    """Processor seconds so far of a command and of what it has started, by kind of process."""
    parts = dict.fromkeys(("command_s", "services_s", "data_actors_s", "workers_s"), 0.0)
    command = psutil.Process(pid)
    for process in [command, *command.children(recursive=True)]:
        try:
            name, spent = " ".join(process.cmdline()), process.cpu_times()
        except psutil.Error:  # it has ended
            continue
        if process == command:
            kind = "command_s"
        elif any(actor in name for actor in RAY_DATA):
            kind = "data_actors_s"
        elif name.startswith("ray::") and "Agent" not in name:
            kind = "workers_s"
        else:
            kind = "services_s"
        parts[kind] += spent.user + spent.system
    return parts


def mlflow_seconds(folder: Path) -> float:
    """Processor seconds of MLflow's import and of opening a new database."""
    command = [sys.executable, "-c", OPEN_MLFLOW, str(folder / "new.db")]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def one_round(folder: Path) -> dict[str, dict[str, float]]:
    """Every kind of start, in one new workspace."""
    workspace = folder / "workspace"
    job, searching = folder / "job.yaml", folder / "search.yaml"
    job.write_text(json.dumps(JOB), encoding="utf-8")
    searching.write_text(json.dumps({**JOB, "search": SEARCH}), encoding="utf-8")
    options = ("--workspace", str(workspace))

    def shard() -> bool:
        return any(workspace.glob("features/.*.partial/shards/*.json"))

    def epoch() -> bool:
        return any(workspace.glob("search/.*.partial/trials/*/**/epoch-*"))

    first_clip = run(job, *options, "--until", "features", until=shard)
    first_clip["mlflow_s"] = mlflow_seconds(folder)
    run(job, *options)
    finished = run(job, *options)
    first_step = run(searching, *options, "--until", "search", until=epoch)
    return {"finished job": finished, "first clip": first_clip, "first step": first_step}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", type=Path, help="file of the rows")
    given = parser.parse_args()
    rounds = []
    for _ in range(given.rounds):
        with tempfile.TemporaryDirectory() as folder:
            rounds.append(one_round(Path(folder)))
            print(json.dumps(rounds[-1]), flush=True)
    for what in rounds[0]:
        figures = {
            name: round(statistics.median(each[what][name] for each in rounds), 3)
            for name in rounds[0][what]
        }
        row = {"what": what, "rounds": given.rounds, **figures}
        print(json.dumps(add_row("startup", row, seed=JOB["seed"], file=given.results)))


if __name__ == "__main__":
    main()
