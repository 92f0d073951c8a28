"""Rows of the benchmarks' results, from which scripts/performance.py makes docs/performance.md.

    benchmarks/results/<benchmark>.jsonl    one JSON object a line, the newest last

A row has `benchmark`, `command`, `date` (UTC), `commit`, the machine (`cores`, `cpu`, `memory_gb`,
`gpu` where one is used), its load average as the benchmark began and as it ended (`load`,
`load_end`), `seed`, and the figures of one measurement, units in their names.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from multistill.forecast.rates import processor_name

RESULTS = Path(__file__).parent / "results"


def add_row(
    benchmark: str, figures: Mapping[str, Any], *, seed: int | None = None, file: Path | None = None
) -> dict[str, Any]:
    """Append a measurement to the benchmark's results, and return its row.

    Args:
        file: instead of the benchmark's own.
    """
    row = {"benchmark": benchmark, "command": command(), **machine(), "seed": seed, **figures}
    path = file or RESULTS / f"{benchmark}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    return row


def command() -> str:
    """The command of this process; of a path outside the working folder only its last part."""
    parts = [Path(each).name if Path(each).is_absolute() else each for each in sys.argv[1:]]
    script = Path(sys.argv[0])
    return shlex.join(["python", f"benchmarks/{script.name}", *parts])


def machine() -> dict[str, Any]:
    """Where and when this process measures."""
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    found: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": len(os.sched_getaffinity(0)),
        "cpu": processor_name(),
        "memory_gb": round(pages * size / 1e9, 1),
        **_AT_START,
        "load_end": round(os.getloadavg()[0], 2),
    }
    if (torch := sys.modules.get("torch")) and torch.cuda.is_initialized():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def _commit() -> str | None:
    """Of the working tree, marked where more than results has changed; None outside a clone."""
    commit = _git("rev-parse", "--short=7", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":!results")
    return f"{commit}-dirty" if changed else commit or None


_AT_START = {"commit": _commit(), "load": round(os.getloadavg()[0], 2)}
"""Before the benchmark's own work, which changes both."""
