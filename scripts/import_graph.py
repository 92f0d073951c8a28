"""Draw the packages of `multistill` and the imports between them: docs/images/imports.svg.

python scripts/import_graph.py [--package-root FOLDER] [--output FILE.svg]

A box is a package or module at the top of `multistill`; an arrow says that something in the
upper box imports something in the lower one, with how many imports there are. Circles between
boxes are red. Needs the `dot` command of Graphviz; grimp comes with import-linter.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HIDDEN = {"errors", "typing", "__main__"}
"""Imported nearly everywhere, so their arrows would hide all others."""


def edges(package_root: Path) -> Counter[tuple[str, str]]:
    """Imports between the top-level boxes, counted by importing module."""
    sys.path.insert(0, str(package_root))
    import grimp

    graph = grimp.build_graph("multistill", cache_dir=None)
    found: Counter[tuple[str, str]] = Counter()
    for importer in graph.modules:
        for imported in graph.find_modules_directly_imported_by(importer):
            pair = tuple(name.split(".")[1] for name in (importer, imported) if "." in name)
            if len(pair) == 2 and pair[0] != pair[1] and not HIDDEN & set(pair):
                found[pair] += 1
    return found


def circular(found: Counter[tuple[str, str]]) -> set[tuple[str, str]]:
    """Arrows that are part of a circle."""
    below: dict[str, set[str]] = {}
    for upper, lower in found:
        below.setdefault(upper, set()).add(lower)

    def reaches(start: str, end: str) -> bool:
        seen, waiting = set(), [start]
        while waiting:
            name = waiting.pop()
            if name == end:
                return True
            if name not in seen:
                seen.add(name)
                waiting += below.get(name, ())
        return False

    return {(upper, lower) for upper, lower in found if reaches(lower, upper)}


def to_dot(found: Counter[tuple[str, str]]) -> str:
    red = circular(found)
    lines = [
        "digraph multistill {",
        '  rankdir=TB; nodesep=0.25; ranksep=0.5; bgcolor="white";',
        '  node [shape=box, style="rounded,filled", fillcolor="#eef3f8", color="#5b7083",'
        ' fontname="Helvetica", fontsize=13];',
        '  edge [color="#8a9aa8", fontname="Helvetica", fontsize=9, fontcolor="#5b7083",'
        " arrowsize=0.7];",
    ]
    for (upper, lower), count in sorted(found.items()):
        style = ', color="#c0392b", penwidth=1.6' if (upper, lower) in red else ""
        lines.append(f'  "{upper}" -> "{lower}" [label="{count}"{style}];')
    return "\n".join([*lines, "}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--package-root", type=Path, default=ROOT)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "images" / "imports.svg")
    options = parser.parse_args()
    found = edges(options.package_root)
    subprocess.run(
        ["dot", "-Tsvg", "-o", str(options.output)], input=to_dot(found), text=True, check=True
    )
    boxes = {name for pair in found for name in pair}
    print(
        f"{len(boxes)} boxes, {len(found)} arrows, {len(circular(found))} of them in circles: "
        f"{options.output}"
    )


if __name__ == "__main__":
    main()
