"""multistill beside its peers: the same recordings, cores and budget, in alternating rounds.

    benchmarks/peers/environments.sh ENVIRONMENTS
    ENVIRONMENTS/multistill/bin/python benchmarks/peers/compare.py TASK --environments ENVIRONMENTS
        --emodb FOLDER --work FOLDER [--rounds 5] [--only PEER,...] [--tiny]
        [--results benchmarks/results/peers.json]

TASK is `extract` (hidden states of a wav2vec2), `head` (a head on stored states), `search` (48
trials of a small student) or `opensmile` (eGeMAPS and a linear SVM, leaving one speaker out);
`table` prints the medians of what was measured. `spec.py` has all settings.

Every round of a peer is a fresh process with an empty folder, on the same two cores. Inputs (the
encoder, stored states, the workspace of a job up to the measured stage) are made once and kept in
`--work`. A round is a row of RESULTS: seconds, processor time and peak memory of the whole process
tree, what was reached, versions and the load of the machine. `--tiny` checks that everything runs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[1:1] = [str(HERE / "drivers"), str(ROOT)]

import ours  # noqa: E402
import spec  # noqa: E402
from measure import measure  # noqa: E402
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
CHECKED = {"extract": "cosine", "head": "test_uar", "search": "test_uar", "opensmile": "test_uar"}
"""What was reached, by task."""


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
    measured = measure(command, cwd=folder, log=log, environment=environment())
    if measured.status:
        raise SystemExit(f"{name} exited with {measured.status}; its output is in {log}")
    reached = peer.score(inputs, folder)
    shutil.rmtree(folder)
    return {
        "task": task,
        "peer": name,
        "seconds": round(measured.seconds, 2),
        "processor_seconds": round(measured.processor_seconds, 2),
        "peak_mb": round(measured.peak_mb),
        **reached,
        "load_average_before": round(load, 1),
    }


def append(path: Path, row: dict[str, Any]) -> None:
    rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([*rows, row], indent=1) + "\n", encoding="utf-8")


def table(path: Path) -> None:
    """Medians over the rounds of full size, and ratios to multistill's."""
    rows = [row for row in json.loads(path.read_text(encoding="utf-8")) if not row["tiny"]]
    for task in TASKS:
        medians: dict[str, dict[str, float]] = {}
        for name in TASKS[task]:
            own = [row for row in rows if (row["task"], row["peer"]) == (task, name)]
            if own:
                keys = ("seconds", "processor_seconds", "peak_mb", CHECKED[task])
                medians[name] = {key: statistics.median(row[key] for row in own) for key in keys}
                medians[name]["rounds"] = len(own)
        if not medians:
            continue
        print(f"\n| {task} | s | times ours | processor s | peak MB | {CHECKED[task]} | rounds |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        ours_s = medians.get("multistill", {}).get("seconds", float("nan"))
        for name, found in medians.items():
            print(
                f"| {name} | {found['seconds']:.1f} | {found['seconds'] / ours_s:.2f} "
                f"| {found['processor_seconds']:.1f} | {found['peak_mb']:.0f} "
                f"| {found[CHECKED[task]]:.4f} | {found['rounds']:.0f} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=[*TASKS, "table"])
    parser.add_argument("--environments", type=Path)
    parser.add_argument("--emodb", type=Path)
    parser.add_argument("--work", type=Path, default=Path("peers-benchmark"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", help="names of peers, separated by `;`")
    parser.add_argument("--tiny", action="store_true")
    default = ROOT / "benchmarks" / "results" / "peers.json"
    parser.add_argument("--results", type=Path, default=default)
    given = parser.parse_args()
    if given.task == "table":
        table(given.results)
        return
    if given.environments is None or given.emodb is None:
        parser.error("give --environments and --emodb")
    size = TINY if given.tiny else FULL
    work = given.work.resolve() / ("tiny" if given.tiny else "full")
    # Not resolved: a virtual environment is known by the path of its interpreter.
    inputs = Inputs(given.environments.absolute(), work, **size)
    chosen = given.only.split(";") if given.only else list(TASKS[given.task])
    peers = {name: TASKS[given.task][name] for name in chosen}
    cores = sorted(os.sched_getaffinity(0))[:CORES]
    os.sched_setaffinity(0, cores)
    prepare(given.task, inputs, given.emodb.resolve(), peers)
    packages = {name: versions(peer, inputs) for name, peer in peers.items()}
    names = list(peers)
    for number in range(given.rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            row = one_round(given.task, name, peers[name], inputs)
            row |= {
                "round": number + 1,
                "tiny": given.tiny,
                "cores": len(cores),
                "versions": packages[name],
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "command": f"benchmarks/peers/compare.py {given.task}",
            }
            append(given.results, row)
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
