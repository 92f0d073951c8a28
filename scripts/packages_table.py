"""Write the table of packages into CONTRIBUTING.md and docs/architecture.md.

The order comes from the layers contract of import-linter in pyproject.toml, the descriptions
from the first line of each module's docstring. `--check` writes nothing and fails where a table
is out of date.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib

from generated import ROOT, write_or_check

PAGES = ("CONTRIBUTING.md", "docs/architecture.md")
BEGIN = "<!-- begin: scripts/packages_table.py -->"
END = "<!-- end: scripts/packages_table.py -->"
BLOCK = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)


def layers() -> list[list[str]]:
    """Modules of each layer, from the top; modules of one layer do not import each other."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    contract = next(item for item in contracts if item["type"] == "layers")
    return [re.split(r"\s*\|\s*", layer) for layer in contract["layers"]]


def description(module: str) -> str:
    """The first sentence of a module's docstring."""
    path = ROOT / "multistill" / module
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if not docstring:
        raise SystemExit(f"{path} has no docstring; its first line belongs in the table")
    return " ".join(docstring.split("\n\n")[0].split())


def table() -> str:
    lines = [
        BEGIN,
        "| layer | module | what it is |",
        "| --- | --- | --- |",
    ]
    for number, modules in enumerate(layers(), start=1):
        for module in modules:
            name = f"{module}/" if (ROOT / "multistill" / module).is_dir() else f"{module}.py"
            lines.append(f"| {number} | `{name}` | {description(module)} |")
    lines += [
        "",
        "A module imports modules of layers with a higher number only: none above it, none of its",
        "own layer. Within a package, modules do not import each other in a circle.",
        END,
    ]
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    block, texts = table(), {}
    for name in PAGES:
        page = ROOT / name
        text = page.read_text(encoding="utf-8") if page.exists() else ""
        if BEGIN in text:
            texts[name] = BLOCK.sub(lambda _: block, text)
    return write_or_check(texts, arguments)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
