"""The measuring helper of the comparison with peers."""

import json
import subprocess
import sys
from pathlib import Path

PEERS = Path(__file__).resolve().parents[2] / "benchmarks" / "peers"

ORPHAN = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    block = bytearray(os.urandom(1 << 20) * 80)
    while time.process_time() < 1.0:
        sum(block[:1000])
    os._exit(0)
"""
"""Ends at once, and leaves a process of its own session that works for a second on 80 MB."""

MEASURE = """
import json, os, pathlib, sys
from measure import measure
found = measure([sys.executable, "-c", sys.argv[1]], cwd=pathlib.Path("."),
                log=pathlib.Path("log"), environment=os.environ)
print(json.dumps([found.processor_seconds, found.peak_mb, found.status]))
"""


def test_processes_that_outlive_their_parent_are_counted(tmp_path: Path) -> None:
    # A process of its own, since the helper waits for every child.
    command = [sys.executable, "-c", MEASURE, ORPHAN]
    answer = subprocess.check_output(
        command, cwd=tmp_path, env={"PYTHONPATH": str(PEERS)}, text=True
    )
    processor_seconds, peak_mb, status = json.loads(answer)
    assert status == 0
    assert processor_seconds > 0.9
    assert peak_mb > 80
