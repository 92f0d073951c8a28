"""What `plan --measure` forecasts for three jobs beside what they take.

    python benchmarks/forecast.py [--jobs distill,search,light] [--folder DIR]

Each job runs in an empty workspace on the packaged corpus of the demo: a teacher and a student
that reads audio, a search over a student that reads text, and a light student. On two idle cores
all of it takes about six minutes. With `--folder`, workspaces stay there, and a job that has run
in one is not repeated, only its row is written.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rows import add_row

BASE: dict[str, Any] = {
    "seed": 1,
    "corpora": [{"kind": "demo"}],
    "split": {"by": "session", "test": 0.25, "valid": 0.2},
    "features": {"speech": {"model": "log-mel"}, "text": {"model": "hashed-ngrams"}},
    "distillation": {"targets": "in-sample"},
    "teacher": {"model": {"preset": "small-teacher"}, "train": {"epochs": 5, "batch_size": 16}},
    "evaluation": {"resamples": 200, "latency_clips": 3},
}


def student(name: str, preset: str, epochs: int) -> dict[str, Any]:
    return {"name": name, "model": {"preset": preset}, "train": {"epochs": epochs}}


JOBS: dict[str, dict[str, Any]] = {
    "distill": {"students": [student("audio", "small-audio-student", 12)]},
    "search": {
        "students": [student("text", "light-text-student", 10)],
        "search": {"trials": 6, "epochs": 10, "grace_epochs": 3, "seeds": 1},
    },
    "light": {"students": [student("light", "light-student-s", 6)]},
}


def multistill(*arguments: str) -> str:
    command = [sys.executable, "-m", "multistill", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def measure(name: str, folder: Path) -> dict[str, Any]:
    """The figures of a job: forecast and truth, in total and by stage."""
    job = folder / f"fc-{name}.yaml"
    job.write_text(json.dumps({"name": f"fc-{name}", **BASE, **JOBS[name]}), encoding="utf-8")
    options = [str(job), "--workspace", str(folder / f"w-fc-{name}")]
    facts = json.loads(multistill("plan", *options, "--json"))
    if facts["forecast_and_truth"] is None:
        multistill("plan", *options, "--measure")
        multistill("run", *options)
        facts = json.loads(multistill("plan", *options, "--json"))
    both = facts["forecast_and_truth"]
    total = both["total"]
    return {
        "job": name,
        "forecast_s": total["forecast"]["value"],
        "low_s": total["forecast"]["low"],
        "high_s": total["forecast"]["high"],
        "took_s": total["seconds"],
        "stages": {
            each["stage"]: [round(each["forecast"]["value"], 2), each["seconds"]]
            for each in both["stages"]
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", default=",".join(JOBS))
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        for name in given.jobs.split(","):
            print(json.dumps(add_row("forecast", measure(name, folder))), flush=True)


if __name__ == "__main__":
    main()
