"""The batch program of a Slurm job with a run that needs no Ray: what happens to it is told by its
name.

    python slurm_attempts.py FOLDER KIND
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SLOW_SECONDS = 4.0


def stop(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Slurm sends it to all processes, too
    raise KeyboardInterrupt


def run(folder: Path, kind: str) -> None:
    """One attempt of the run: the first is interrupted, the second finishes."""
    state = folder / kind
    if state.exists() and state.read_text() == "saved":
        state.write_text("done")
        return
    if kind == "fails":
        raise SystemExit(3)
    (folder / f"{kind}.started").touch()
    try:
        signal.signal(signal.SIGTERM, stop)
        while True:
            time.sleep(0.2)
    except KeyboardInterrupt:
        time.sleep(SLOW_SECONDS if kind == "slow" else 0.0)
        if kind != "futile":
            state.write_text("saved")
        raise SystemExit(130) from None


def main(folder: Path, kind: str) -> int:
    from multistill.pipeline import slurm_job

    def reached(_: object) -> frozenset[str]:
        state = folder / kind
        return frozenset([state.read_text()] if state.exists() else [])

    def start_nodes(self: Any, stack: ExitStack) -> Any:
        return SimpleNamespace(address="127.0.0.1:1")

    slurm_job.reached = reached  # type: ignore[assignment]
    slurm_job.SlurmJob._start_nodes = start_nodes  # type: ignore[method-assign]
    command = [sys.executable, __file__, "run", str(folder), kind]
    allocation = slurm_job.Allocation.of(os.environ)
    return slurm_job.SlurmJob(allocation, SimpleNamespace(), command).run()  # type: ignore[arg-type]


if __name__ == "__main__":
    if sys.argv[1] == "run":
        run(Path(sys.argv[2]), sys.argv[3])
    else:
        raise SystemExit(main(Path(sys.argv[1]), sys.argv[2]))
