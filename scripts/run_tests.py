"""Run the whole suite as three processes of pytest that share the machine.

    python scripts/run_tests.py [--coverage]

Tests that use Ray or a server mostly wait for processes to start, so two of the processes run
these, each with a Ray of its own, and the third one all others. The first process prints as it
goes, the others when all are done; each ends with its slowest tests. With `--coverage`, all are
measured and the packages' shares are printed; on Python 3.11, which lacks the cheap way of
measuring, that takes half as long again.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import coverage

JOBS = ("tests/pipeline", "tests/search")
"""Folders whose tests of whole jobs and searches take as long as all other ones with Ray."""

PARTS = {
    "cluster": ["-m", "ray or server", *(f"--ignore={folder}" for folder in JOBS)],
    "jobs": ["-m", "ray or server", *JOBS],
    "local": ["-m", "not ray and not server"],
}


def start(part: str, measured: bool, output: int | None) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pytest", *PARTS[part]]
    command += ["-o", f"cache_dir=.pytest_cache/{part}", "--durations=15", "--durations-min=5"]
    if measured:
        command += ["--cov", "--cov-report="]
    environment = {**os.environ, "COVERAGE_FILE": f".coverage.{part}"}
    return subprocess.Popen(command, stdout=output, stderr=output, env=environment)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--coverage", action="store_true")
    measured = parser.parse_args().coverage
    first, *beside = PARTS
    with ExitStack() as stack:
        outputs = {part: stack.enter_context(tempfile.TemporaryFile()) for part in beside}
        processes = [start(part, measured, output.fileno()) for part, output in outputs.items()]
        processes.append(start(first, measured, None))
        try:
            codes = [process.wait() for process in processes]
        finally:
            for process in processes:
                process.kill()  # does nothing to one that has ended
        for output in outputs.values():
            output.seek(0)
            sys.stdout.write(output.read().decode(errors="replace"))
        sys.stdout.flush()
    if measured:
        data = coverage.Coverage()
        data.combine([f".coverage.{part}" for part in PARTS])
        data.save()
        script = Path(__file__).with_name("coverage_by_package.py")
        subprocess.run([sys.executable, str(script)], check=True)
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
