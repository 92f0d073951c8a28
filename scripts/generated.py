"""What scripts that write tracked files share: write them, or check that they are up to date."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def write_or_check(texts: Mapping[str, str], arguments: list[str]) -> int:
    """Write the files that differ; with `--check`, name them instead.

    Args:
        texts: by path below the repository's root.
        arguments: of the command line.

    Returns:
        the exit status.
    """
    outdated = []
    for name, text in texts.items():
        path = ROOT / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            outdated.append(name)
            if "--check" not in arguments:
                path.write_text(text, encoding="utf-8")
    if outdated and "--check" in arguments:
        print(f"out of date: {', '.join(outdated)}; run `make format`", file=sys.stderr)
        return 1
    return 0
