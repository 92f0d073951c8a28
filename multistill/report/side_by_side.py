"""What `multistill compare` prints of `multistill.report.compare`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from multistill.evaluation.figures import METRIC_TITLES
from multistill.report.compare import METRICS
from multistill.report.compare_costs import cost_table, flat_cells, flat_titles
from multistill.report.differences import signed, stacked
from multistill.report.tables import FORMATS, Cell, Format, Table, to_terminal
from multistill.report.terminal import cell, score
from multistill.wording import counted

if TYPE_CHECKING:
    from rich.console import Console

P_VALUES = ("_p", "_p_holm")
TITLES = frozenset(METRIC_TITLES[metric] for metric in METRICS)
UNITS = {"utterance": "clip"}


def text(facts: Mapping[str, Any], kind: Format) -> str:
    """The comparison as one CSV table, as tables of Markdown or LaTeX, or as an HTML page.

    CSV has a column per figure and bound; a difference is on the row of the other run's model.
    """
    if kind == "html":
        return page(facts)
    if kind == "csv":
        return FORMATS[kind](_flat(facts))
    tables = [_models(facts, _one_line), cost_table(facts)]
    if facts["differences"]:
        tables.append(_differences(facts, signed))
    if facts["settings"]:
        tables.append(_settings(facts))
    mark = "% " if kind == "latex" else ""
    notes = [f"{mark}{line}\n" for line in _notes(facts)]
    between = "" if kind == "latex" else "\n"  # a paragraph each in Markdown
    return "\n".join([*map(FORMATS[kind], tables), between.join(notes)])


def page(facts: Mapping[str, Any]) -> str:
    """The comparison as an HTML page that opens offline."""
    from multistill.report.pages import Block, Page, to_html

    names = [run["run"] for run in facts["runs"]]
    blocks = [
        Block("Figures", _models(facts, _one_line), grouped=True),
        Block("Costs, and the best linear probe", cost_table(facts), grouped=True),
    ]
    if facts["differences"]:
        title = f"Differences to {names[0]}"
        blocks.append(Block(title, _differences(facts, signed), grouped=True))
    if facts["settings"]:
        blocks.append(Block("Settings that differ", _settings(facts)))
    lead = (
        f"{counted(len(names), 'finished job')}, with the majority "
        "baseline and the linear probes of each; intervals in brackets."
    )
    warnings = [("NOT PAIRED", f"{line}.") for line in facts["not_paired"]]
    notes = [line for line in _notes(facts) if line not in facts["not_paired"]]
    title = " and ".join(names) if len(names) < 3 else f"{', '.join(names[:-1])} and {names[-1]}"
    return to_html(Page(title, "multistill compare", lead, blocks, warnings, notes))


def show(facts: Mapping[str, Any], console: Console) -> None:
    """Print the comparison: models, costs, differences, settings, and what runs were tested on."""
    console.print(to_terminal(_models(facts, cell), grouped=True))
    console.print()
    console.print(to_terminal(cost_table(facts, narrow=True), grouped=True))
    if facts["differences"]:
        console.print()
        console.print(to_terminal(_differences(facts, stacked), grouped=True))
    if facts["settings"]:
        console.print()
        console.print(to_terminal(_settings(facts)))
    console.print()
    for line in _notes(facts):
        console.print(line)


def _models(facts: Mapping[str, Any], figure: Callable[[Mapping[str, Any]], str]) -> Table:
    rows: list[list[Cell]] = []
    for row in facts["models"]:
        notes = [f"{row['seeds']} seeds"] if row["seeds"] > 1 else []
        notes += ["NOT TRAINED"] if row["not_trained"] else []
        name = row["model"] + (f" ({', '.join(notes)})" if notes else "")
        rows.append([row["run"], name, *(figure(row["metrics"][metric]) for metric in METRICS)])
    return Table(["run", "model", *(METRIC_TITLES[m] for m in METRICS)], rows, TITLES)


def _differences(facts: Mapping[str, Any], figure: Callable[[Mapping[str, Any]], str]) -> Table:
    rows: list[list[Cell]] = []
    for row in facts["differences"]:
        name = row["model"]
        if row["role"] == "best student":
            name = f"best student: {name}"
            name += "" if row["model"] == row["against"] else f" - {row['against']}"
        rows.append([row["run"], name, *(figure(row["metrics"][metric]) for metric in METRICS)])
    first = facts["runs"][0]["run"]
    head = [f"minus {first}", "model", *(METRIC_TITLES[m] for m in METRICS)]
    return Table(head, rows, TITLES)


def _settings(facts: Mapping[str, Any]) -> Table:
    names = [run["run"] for run in facts["runs"]]
    rows = [
        [row["setting"], *("-" if value is None else str(value) for value in row["values"])]
        for row in facts["settings"]
    ]
    return Table(["setting", *names], rows)


def _notes(facts: Mapping[str, Any]) -> Iterator[str]:
    """Sentences below the tables."""
    yield from facts["warnings"].values()
    probes = {run["run"]: run["probe"] for run in facts["runs"] if run["probe"]}
    if any(row["to_probe"] for row in facts["models"]):
        named = ", ".join(f"{probe} ({name})" for name, probe in probes.items())
        yield (
            "to probe: paired difference to the probe of the same run that is best on validation, "
            f"{named}, p by Holm over the trained models of the run; train s: of one training, "
            "without models that it starts from; ms a clip: median, from the file"
        )
    if resampled := facts["resampled"]:
        unit = UNITS.get(resampled["unit"], resampled["unit"])
        yield (
            f"differences are to {facts['runs'][0]['run']}, with paired "
            f"{100 * resampled['confidence']:g} % intervals over "
            f"{counted(resampled['count'], unit)}, "
            "each of its own"
            + (
                f"; p is corrected for the {facts['family']} pairs tested (Holm), per metric"
                if facts["family"] > 1
                else ""
            )
        )
    yield from facts["not_paired"]
    for run in facts["runs"]:
        test = run["test"]
        warnings = f"; {', '.join(run['warnings'])}" if run["warnings"] else ""
        yield (
            f"{run['run']}: {run['protocol']['short']}, "
            f"{counted(test['clips'], 'test clip')} of {counted(test['speakers'], 'speaker')} in "
            f"{counted(test['sessions'], 'session')}, "
            f"{100 * run['confidence']:g} % intervals{warnings}"
        )


def _flat(facts: Mapping[str, Any]) -> Table:
    ends = ("", "_low", "_high")
    columns = ["run", "model", "role", "seeds", "not_trained"]
    columns += [f"{metric}{end}" for metric in METRICS for end in (*ends, "_sd")]
    columns += ["against_run", "against"]
    columns += [f"{metric}_difference{end}" for metric in METRICS for end in (*ends, *P_VALUES)]
    columns += [*flat_titles(facts), "protocol", "warning"]
    protocols = {run["run"]: run["protocol"]["short"] for run in facts["runs"]}
    scored = {(row["run"], row["model"]): row for row in facts["models"]}
    differences = {
        (row["run"], row["model"]): row
        for row in facts["differences"]
        if row["role"] != "best student"
    }
    best = [row for row in facts["differences"] if row["role"] == "best student"]
    rows = [_row(row, row["role"], differences.get(key)) for key, row in scored.items()]
    rows += [_row(scored[row["run"], row["model"]], row["role"], row) for row in best]
    warnings = facts["warnings"]
    rows = [
        [*row, *flat_cells(facts, scored[row[0], row[1]]), protocols[row[0]], warnings.get(row[0])]
        for row in rows
    ]
    return Table(columns, rows)


def _row(
    scored: Mapping[str, Any], role: str, difference: Mapping[str, Any] | None
) -> Sequence[Cell]:
    row: list[Cell] = [scored["run"], scored["model"], role, scored["seeds"], scored["not_trained"]]
    for metric in METRICS:
        row += [scored["metrics"][metric][key] for key in ("value", "low", "high", "sd")]
    found = difference or {"against_run": None, "against": None, "metrics": {}}
    row += [found["against_run"], found["against"]]
    for metric in METRICS:
        measured = found["metrics"].get(metric, {})
        row += [measured.get(key) for key in ("value", "low", "high", "p", "p_holm")]
    return row


def _one_line(metric: Mapping[str, Any]) -> str:
    spread = metric["sd"]
    return score(metric) + ("" if spread is None else f" SD {spread:.3f}")
