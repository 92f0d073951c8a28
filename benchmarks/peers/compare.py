"""multistill beside its peers: the same recordings, cores and budget, in alternating rounds.

    benchmarks/peers/environments.sh ENVIRONMENTS
    ENVIRONMENTS/multistill/bin/python benchmarks/peers/compare.py TASK...
        --environments ENVIRONMENTS --emodb FOLDER --work FOLDER [--rounds 5] [--only "PEER;..."]
        [--tiny] [--results benchmarks/results/peers.jsonl]

TASK is `extract` (hidden states of a wav2vec2), `head` (a head on stored states), `search` (48
trials of a small student), `opensmile` (eGeMAPS and a linear SVM, leaving one speaker out), or
`all` of them.
`spec.py` has all settings.

Every round of a peer is a fresh process with an empty folder, on the same two cores. Inputs (the
encoder, stored states, the workspace of a job up to the measured stage) are made once and kept in
`--work`. A round is a row of the results: seconds, processor time and peak memory of the whole
process tree, what was reached, versions and the load of the machine. Rounds that the results have
are not measured again, so that a comparison that was cut off goes on. A round that fails, or whose
result is not that of the task, has no row: the others go on, and the exit status is 1. `--tiny`
checks that everything runs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[1:1] = [str(HERE / "drivers"), str(HERE.parent), str(ROOT)]

import ours  # noqa: E402
import spec  # noqa: E402
from measure import measure  # noqa: E402
from rows import RESULTS, add_row  # noqa: E402
from tasks import TASKS, Inputs, Peer  # noqa: E402

CORES = 2
TINY = {"clips": 24, "epochs": 2, "trials": 2, "trial_epochs": 2}
FULL = {
    "clips": 0,
    "epochs": spec.HEAD_EPOCHS,
    "trials": spec.TRIALS,
    "trial_epochs": spec.TRIAL_EPOCHS,
}
REFERENCE_CLIPS = 12
LEAST_COSINE = 0.9999
LIMIT = 3600.0
"""Seconds that a round may take."""


class NotComparableError(Exception):
    """A round that is not comparable."""


def environment() -> dict[str, str]:
    """Of all commands: no network, no telemetry, threads as each system chooses."""
    kept = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, HERE, HERE / "drivers"))),
        "HF_HUB_OFFLINE": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


def run(command: list[str], folder: Path) -> None:
    """Makes an input, not measured."""
    subprocess.run(command, cwd=folder, env=environment(), check=True)


def prepare(task: str, inputs: Inputs, emodb: Path, peers: dict[str, Peer]) -> None:
    """Makes what the task needs and is not there yet."""
    folder = inputs.folder
    folder.mkdir(parents=True, exist_ok=True)
    rows = spec.clips(emodb, inputs.clips or None)
    if not inputs.corpus.exists():
        (folder / "audio").mkdir()
        for clip in rows:
            (folder / "audio" / Path(clip.path).name).symlink_to(clip.path)
        spec.write_corpus(rows, inputs.corpus)
    if task == "extract" and not inputs.reference.exists():
        from reference import save_encoder, save_reference

        save_encoder(inputs.encoder)
        step = max(1, len(rows) // REFERENCE_CLIPS)
        save_reference(inputs.encoder, rows[::step], inputs.reference)
    if task in ("head", "search"):
        if not inputs.states.exists():
            prepare_states(inputs)
        if task == "search" and not (inputs.workspace / "students").exists():
            run(ours.before_search(inputs), folder)
    for peer in peers.values():
        if peer.needs is not None:
            run(peer.needs(inputs), folder)


def prepare_states(inputs: Inputs) -> None:
    """multistill's store, and the same states as a file per clip for the others."""
    import numpy as np

    run(ours.store(inputs), inputs.folder)
    partial = inputs.folder / "states.partial"
    partial.mkdir(exist_ok=True)
    for name, states in ours.stored_states(inputs.workspace).items():
        np.save(partial / f"{name}.npy", states)
    partial.rename(inputs.states)


def versions(peer: Peer, inputs: Inputs) -> dict[str, str]:
    code = (
        "import json, sys; from importlib.metadata import version; "
        "print(json.dumps({name: version(name) for name in sys.argv[1:]}))"
    )
    command = [inputs.python(peer.environment), "-c", code, *peer.packages, "torch"]
    found: dict[str, str] = json.loads(subprocess.check_output(command, text=True))
    return found


def one_round(task: str, name: str, peer: Peer, inputs: Inputs) -> dict[str, Any]:
    folder = inputs.folder / "rounds" / f"{task}-{name}".replace(", ", "-").replace(" ", "-")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = peer.command(inputs, folder)
    log = folder.with_suffix(".log")
    load = os.getloadavg()[0]
    measured = measure(command, cwd=folder, log=log, environment=environment(), limit=LIMIT)
    if measured.status:
        raise NotComparableError(f"exited with {measured.status}; its output is in {log}")
    reached = peer.score(inputs, folder)
    require(task, reached, inputs)
    shutil.rmtree(folder)
    return {
        "task": task,
        "peer": name,
        "seconds": round(measured.seconds, 2),
        "processor_seconds": round(measured.processor_seconds, 2),
        "peak_mb": round(measured.peak_mb),
        **reached,
        "load": round(load, 2),
    }


def require(task: str, reached: dict[str, Any], inputs: Inputs) -> None:
    """What makes the time of a round comparable."""
    if reached.get("cosine", 1.0) < LEAST_COSINE:
        raise NotComparableError(f"states of cosine {reached['cosine']} to the reference")
    if task == "search" and (reached["trials"] < inputs.trials or reached.get("failed")):
        raise NotComparableError(f"not all {inputs.trials} trials: {reached}")


def rows_of(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def compare(task: str, given: argparse.Namespace, inputs: Inputs, peers: dict[str, Peer]) -> int:
    """Rounds of a task, each in another order of the peers; how many have failed."""
    prepare(task, inputs, given.emodb.resolve(), peers)
    packages = {name: versions(peer, inputs) for name, peer in peers.items()}
    done = {
        (row["task"], row["peer"], row["round"])
        for row in rows_of(given.results)
        if row["tiny"] == given.tiny
    }
    names, failed = list(peers), 0
    for number in range(given.rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            if (task, name, number + 1) in done:
                continue
            try:
                measured = one_round(task, name, peers[name], inputs)
            except Exception as error:  # of the output of a peer, whatever it is
                failed += 1
                print(f"{task}, round {number + 1} of {name}: {error!r}", file=sys.stderr)
                continue
            figures = {
                "command": f"python benchmarks/peers/compare.py {task}",
                **measured,
                "round": number + 1,
                "tiny": given.tiny,
                "versions": packages[name],
            }
            print(json.dumps(add_row("peers", figures, file=given.results)), flush=True)
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="+", choices=[*TASKS, "all"], metavar="TASK")
    parser.add_argument("--environments", type=Path, required=True)
    parser.add_argument("--emodb", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("peers-benchmark"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", help="names of peers, separated by `;`")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS / "peers.jsonl")
    given = parser.parse_args()
    size = TINY if given.tiny else FULL
    work = given.work.resolve() / ("tiny" if given.tiny else "full")
    # Not resolved: a virtual environment is known by the path of its interpreter.
    inputs = Inputs(given.environments.absolute(), work, **size)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    failed = 0
    for task in TASKS if "all" in given.tasks else given.tasks:
        chosen = given.only.split(";") if given.only else list(TASKS[task])
        peers = {name: TASKS[task][name] for name in chosen if name in TASKS[task]}
        failed += compare(task, given, inputs, peers)
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
