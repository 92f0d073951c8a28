"""Run the whole suite as two processes of pytest that share the machine.

    python scripts/run_tests.py [--coverage]

Tests that use Ray or a server mostly wait for processes to start, so the other tests run beside
them. The first process prints as it goes, the second one when it is done. With `--coverage`, both
are measured and the packages' shares are printed; on Python 3.11, which lacks the cheap way of
measuring, that takes half as long again.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import coverage

PARTS = {"cluster": "ray or server", "local": "not ray and not server"}


def start(part: str, measured: bool, output: int | None) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pytest", "-m", PARTS[part]]
    command += ["-o", f"cache_dir=.pytest_cache/{part}"]
    if measured:
        command += ["--cov", "--cov-report="]
    environment = {**os.environ, "COVERAGE_FILE": f".coverage.{part}"}
    return subprocess.Popen(command, stdout=output, stderr=output, env=environment)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--coverage", action="store_true")
    measured = parser.parse_args().coverage
    with tempfile.TemporaryFile() as output:
        beside = start("local", measured, output.fileno())
        first = start("cluster", measured, None)
        try:
            codes = [process.wait() for process in (first, beside)]
        finally:
            for process in (first, beside):
                process.kill()  # does nothing to one that has ended
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
