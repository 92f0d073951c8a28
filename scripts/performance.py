"""Write docs/performance.md and docs/scale.md from the rows in benchmarks/results.

Their templates (benchmarks/pages/*.md, Jinja) hold the prose and name the rows; every figure comes
from a row. What has no row reads "not measured". `--check` writes nothing and fails where a page
is out of date.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import jinja2
from generated import ROOT, write_or_check

from multistill.forecast import scale

RESULTS = ROOT / "benchmarks" / "results"
PAGES = ROOT / "benchmarks" / "pages"
NOT_MEASURED = "not measured"
WHERE = frozenset(
    [
        "benchmark",
        "command",
        "date",
        "commit",
        "cores",
        "cpu",
        "memory_gb",
        "gpu",
        "load",
        "load_end",
        "seed",
    ]
)  # of a row, what is no figure


class Row(dict[str, Any]):
    """A row of a result; a template that asks for a figure that it lacks is wrong."""

    def __missing__(self, name: str) -> Any:
        raise jinja2.TemplateRuntimeError(f"no {name!r} in the row of {self.get('command')!r}")


class NotMeasured(jinja2.ChainableUndefined):
    """Stands for figures that no row has, alone and in arithmetic."""

    def __str__(self) -> str:
        return NOT_MEASURED

    def _same(self, *_: Any) -> NotMeasured:
        return self

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _same
    __truediv__ = __rtruediv__ = __getitem__ = _same


def read_rows(folder: Path) -> Iterator[Row]:
    """Rows of every file of results; of a row without `benchmark`, the file's name is it."""
    for path in sorted(folder.glob("*.json*")):
        text = path.read_text(encoding="utf-8")
        found = (
            map(json.loads, filter(str.strip, text.splitlines()))
            if path.suffix == ".jsonl"
            else json.loads(text)
        )
        for row in found:
            yield Row({"benchmark": path.stem, **row})


class Results:
    """What templates ask for rows."""

    def __init__(self, rows: Sequence[Row]) -> None:
        # Stable: of rows of one day, the later line is the newer one.
        self.all = sorted(rows, key=lambda row: str(row.get("date", "")))

    def every(self, benchmark: str, **match: Any) -> list[Row]:
        """The rows of a benchmark in which these figures have these values, oldest first."""
        return [
            row
            for row in self.all
            if row["benchmark"] == benchmark
            and all(row.get(name) == value for name, value in match.items())
        ]

    def rows(self, benchmark: str, by: str, **match: Any) -> list[Row]:
        """The newest of `every` for each value of `by`, in the order of the values."""
        newest = {row[by]: row for row in self.every(benchmark, **match) if by in row}
        try:
            return [newest[value] for value in sorted(newest)]
        except TypeError:
            return list(newest.values())

    def row(self, benchmark: str, **match: Any) -> Row | NotMeasured:
        """The newest of `every`."""
        found = self.every(benchmark, **match)
        return found[-1] if found else NotMeasured()


def measured(*sources: Any) -> str:
    """Where the figures come from: command, date, commit and machine, each once.

    Args:
        sources: rows, and lists of rows.
    """
    rows = [
        row
        for source in sources
        for row in (source if isinstance(source, list) else [source])
        if isinstance(row, Row)
    ]
    if not rows:
        return f"*{NOT_MEASURED.capitalize()}.*"
    texts: dict[str, set[str]] = {}
    for row in rows:
        texts.setdefault(_where(row), set()).add(_load(row))
    lines = []
    for where, loads in texts.items():
        known = sorted(load for load in loads if load)
        if len(known) > 2:  # of many rows: the range
            values = sorted(float(each) for each in re.findall(r"[\d.]+", " ".join(known)))
            known = [f"{values[0]} to {values[-1]}"] if values else known
        lines.append(f"*{where}{', load ' + ', '.join(known) if known else ''}.*")
    return "  \n".join(lines)


def _where(row: Mapping[str, Any]) -> str:
    command = row.get("command")
    date = str(row.get("date", "")).partition("T")[0]
    commit = f" at `{row['commit']}`" if row.get("commit") else ""
    cores = row.get("cores")
    machine = ", ".join(
        str(part)
        for part in (
            row.get("gpu"),
            f"{cores} cores" if cores else None,
            row.get("cpu"),
            f"{row['memory_gb']:.0f} GB" if row.get("memory_gb") else None,
        )
        if part
    )
    return f"`{command}`, {date}{commit}; {machine}"


def _load(row: Mapping[str, Any]) -> str:
    load, end = row.get("load"), row.get("load_end")
    if isinstance(load, list):
        return f"{load[0]} to {load[-1]}"
    if isinstance(load, str) or load is None:
        return load or ""
    return f"{load:.1f}" if end is None or round(end - load, 1) == 0 else f"{load:.1f} to {end:.1f}"


def number(value: Any, digits: int = 3) -> str:
    """Three significant digits, or all before the point.

    Examples:
        >>> number(0.04237), number(17.25), number(12444.0), number(8.3e-5)
        ('0.0424', '17.2', '12,444', '8.3e-05')
    """
    if isinstance(value, jinja2.Undefined):
        return NOT_MEASURED
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def by_size(rows: Sequence[Row], size: str, cost: str) -> list[tuple[float, float, float, str]]:
    """Forecast from the smaller sizes beside the measured cost: size, both, and the difference."""
    points = [(float(row[size]), float(row[cost])) for row in rows]
    return [
        (at, expected, truth, _difference(expected / truth - 1))
        for at, expected, truth in scale.extrapolated(points)
    ]


def best_within(curve: Sequence[tuple[int, float]], epochs: float) -> float:
    """Best value after as many epochs of training as a method may take."""
    return max(value for spent, value in curve if spent <= epochs)


def against_grid(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Searches of `benchmarks/search.py compare`: mean best value by space and method.

    Each at the epochs of its grid and at half of them, of the seeds that all methods have; the gain
    over the grid is paired by seed, with its standard error.
    """
    curves = {(row["space"], row["method"], row["seed"]): row["curve"] for row in rows}
    methods = list(dict.fromkeys(method for _, method, _ in curves))
    found = []
    for space in dict.fromkeys(space for space, _, _ in curves):
        seeds = [
            seed
            for seed in sorted({seed for _, _, seed in curves})
            if all((space, method, seed) in curves for method in methods)
        ]
        if not seeds:
            continue
        budgets = {seed: curves[space, "grid", seed][-1][0] for seed in seeds}
        best = {
            method: [best_within(curves[space, method, seed], budgets[seed]) for seed in seeds]
            for method in methods
        }
        for method, values in best.items():
            halves = (best_within(curves[space, method, seed], budgets[seed] / 2) for seed in seeds)
            gains = [value - of_grid for value, of_grid in zip(values, best["grid"], strict=True)]
            found.append(
                {
                    "space": space,
                    "method": method,
                    "seeds": len(seeds),
                    "epochs": max(budgets.values()),
                    "half": fmean(halves),
                    "best": fmean(values),
                    "gain": fmean(gains),
                    "error": stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else None,
                }
            )
    return found


def _difference(share: Any) -> str:
    if isinstance(share, jinja2.Undefined):
        return NOT_MEASURED
    return f"{100 * share:+.0f} %" + (": **beyond 20 %**" if abs(share) > 0.2 else "")


def percent(value: Any) -> str:
    return NOT_MEASURED if isinstance(value, jinja2.Undefined) else f"{number(100 * value, 2)} %"


def at_least(value: Any, target: float, unit: str = "") -> str:
    """A target's cell."""
    return _target(target, unit, not isinstance(value, jinja2.Undefined) and value < target)


def at_most(value: Any, target: float, unit: str = "") -> str:
    return _target(target, unit, not isinstance(value, jinja2.Undefined) and value > target)


def _target(target: float, unit: str, missed: bool) -> str:
    return f"{number(target)}{unit}: **missed**" if missed else f"{number(target)}{unit}"


def table(rows: Sequence[Row]) -> str:
    """All figures of rows, a column each; nothing where there are none."""
    if not rows:
        return ""
    names = list(dict.fromkeys(n for row in rows for n in row if n not in WHERE))
    names = [name for name in names if any(_plain(row.get(name)) for row in rows)]
    lines = [
        "| " + " | ".join(name.replace("_", " ") for name in names) + " |",
        "|" + " --- |" * len(names),
    ]
    for row in rows:
        lines.append("| " + " | ".join(_cell(row.get(name)) for name in names) + " |")
    return "\n".join(lines)


def _plain(value: Any) -> bool:
    return isinstance(value, str | int | float)


def _cell(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value).replace("|", "\\|") if _plain(value) else ""
    return f"{value:,}" if isinstance(value, int) else number(value)


def render(template: str, rows: Sequence[Row]) -> str:
    """A page of a template."""
    results = Results(rows)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGES),
        undefined=NotMeasured,
        autoescape=False,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        row=results.row,
        rows=results.rows,
        every=results.every,
        measured=measured,
        table=table,
        at_least=at_least,
        at_most=at_most,
        scale=scale,
        by_size=by_size,
        against_grid=against_grid,
        difference=_difference,
    )
    environment.filters.update(n=number, percent=percent)
    lines = environment.get_template(template).render().split("\n")
    # Cells that a loop wrote end in a space; two elsewhere are a line break.
    return "\n".join(line.rstrip() if line.startswith("|") else line for line in lines)


def main(arguments: list[str]) -> int:
    rows = list(read_rows(RESULTS))
    names = sorted(template.name for template in PAGES.glob("*.md"))
    return write_or_check({f"docs/{name}": render(name, rows) for name in names}, arguments)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
