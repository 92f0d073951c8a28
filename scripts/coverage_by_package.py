"""Print the statement coverage of each package of multistill, from `.coverage`."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path

import coverage


def main() -> None:
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        measured = coverage.Coverage()
        measured.load()
        measured.json_report(outfile=file.name)
        files = json.loads(Path(file.name).read_text(encoding="utf-8"))["files"]
    statements: Counter[str] = Counter()
    covered: Counter[str] = Counter()
    for name, facts in files.items():
        package = Path(name).parts[1]
        for key in (package, "total"):
            statements[key] += facts["summary"]["num_statements"]
            covered[key] += facts["summary"]["covered_lines"]
    print("coverage of statements, without Ray's workers and subprocesses")
    for package in [*sorted(key for key in statements if key != "total"), "total"]:
        share = covered[package] / max(1, statements[package])
        print(f"  {package:<14} {share:6.1%} of {statements[package]}")


if __name__ == "__main__":
    main()
