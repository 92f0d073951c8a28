"""The jobs of a workspace and their reports: a list of all, and one that a person names."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multistill.damaged import reading
from multistill.errors import MultistillError, UsageError
from multistill.pipeline import variants
from multistill.pipeline.drivers import DriverStatus, latest_by_variant, read_drivers
from multistill.pipeline.recipes import steps_of
from multistill.pipeline.running import by, described, progress_text, state_text
from multistill.pipeline.stage_status import step_statuses
from multistill.report.files import HTML, JSON
from multistill.wording import counted
from multistill.workspace import DONE, Workspace, file_name, read_json, to_json

if TYPE_CHECKING:
    from multistill.report.compare import Run
    from multistill.report.tables import Table

WHO = ("best_student", "teacher", "probe", "majority")
MAIN = {"macro_f1": "macro F1", "uar": "UAR"}
DIMENSIONS = {"ccc": "CCC"}
"""In place of the main metrics for a job without classes."""
NEEDED = {"job", "classes", "test", "baseline", "references", "models", "floor", "protocol"}
"""Keys of a report.json that are read here."""


def list_runs(workspace: Path) -> list[dict[str, Any]]:
    """The jobs that ran in a workspace, newest first.

    Returns:
        JSON values: `job`, `variant` (fingerprint), `last_run`, `state` (`finished`, `running`,
        `failed`, `interrupted`, `killed`, `stopped`, `unknown`), `stage` (that which runs or ran,
        or the last finished), `reason` (why it failed, its state is unknown, or its report cannot
        be read), `report` (folder), of the process that runs it or ran it last `owner`, `host`
        (of a submitted job, who submitted it from where), `node`, `pid`, `submission_id`,
        `started`, `updated`, `progress` (`name`, `done`, `total`, `unit`), `seconds_left` (of
        the stage) and `links` (`mlflow`, `mlflow_ui`, `ray_dashboard`, `report`); of a finished
        job `protocol`, `test` (clips, speakers, sessions), `best_student` (its name) and
        `figures` (per model the test macro F1 and UAR).

    Raises:
        UsageError: there is no such folder.
    """
    if not workspace.is_dir():
        raise UsageError(
            f"there is no workspace `{workspace}`; give the right folder with --workspace"
        )
    found = [
        (variant, name)
        for name in variants.job_names(workspace)
        for variant in variants.find_variants(workspace, name)
    ]
    found.sort(key=lambda entry: entry[0].last_run, reverse=True)
    drivers = latest_by_variant(read_drivers(workspace))
    return [
        _describe(workspace, name, variant, drivers.get(variant.key)) for variant, name in found
    ]


def find_run(text: str, workspace: Path) -> Run:
    """The finished job that a person names.

    Args:
        text: folder of a report, its report.json, or the name of a job in the workspace, with
            `@` and the start of the fingerprint where several of that name ran.

    Raises:
        UsageError: there is no such report, or several jobs have the name.
    """
    path = Path(text).expanduser()
    if path.name == text and not (path / JSON).is_file() and path.suffix != ".json":
        return _load(_report_named(text, workspace), workspace)
    return _load(path if path.suffix == ".json" else path / JSON, workspace)


def _report_named(text: str, workspace: Path) -> Path:
    name, key = text, None
    if not variants.find_variants(workspace, text) and "@" in text:
        name, _, key = text.rpartition("@")
    variant = variants.choose(workspace, name, key, "as NAME@FINGERPRINT")
    folder = _report_of(workspace, name, variant.key)
    if folder is None:
        command = shlex.join(
            ["multistill", "run", str(variant.file), "--workspace", str(workspace)]
        )
        raise UsageError(f"`{text}` has no report; run `{command}` to finish the job")
    return folder / JSON


def _report_of(workspace: Path, name: str, key: str) -> Path | None:
    """The newest report of a job, by its name and fingerprint."""
    kind = f"reports/{file_name(name)}"
    root, found = Workspace(workspace), []
    for folder in (workspace / kind).glob("[!.]*"):
        if folder.is_symlink():  # `latest`
            continue
        artifact = root.find(kind, folder.name)
        with reading(folder / DONE):
            if artifact and variants.variant_key(artifact.meta["config"]["job"]) == key:
                found.append((str(artifact.meta["created"]), artifact.path))
    return max(found)[1] if found else None


def _read(file: Path) -> tuple[dict[str, Any], str]:
    """Content of a report.json, and what is wrong with the file, which is empty for a good one."""
    try:
        report = read_json(file)
    except FileNotFoundError:
        return {}, "does not exist"
    except (OSError, ValueError):
        return {}, "cannot be read"
    if not (isinstance(report, dict) and report.keys() >= NEEDED):
        return {}, "is no report of this version"
    return report, ""


def _load(file: Path, workspace: Path) -> Run:
    report, problem = _read(file)
    if problem:
        raise UsageError(
            f"{file} {problem}; give the folder of a report, or the name of a job that ran in "
            f"`{workspace}`"
        )
    with reading(file):
        return _run(file, report, workspace)


def _run(file: Path, report: Mapping[str, Any], workspace: Path) -> Run:
    from multistill.report.compare import Run

    folder = file.resolve().parent
    own = [*folder.parents][2:3]  # <workspace>/reports/<job>/<fingerprint>
    predictions = next(
        (file for root in (*own, workspace) for file in _predictions(report, Workspace(root))), None
    )
    if not (folder / DONE).is_file():
        return Run(str(report["job"]), None, folder, dict(report), predictions=predictions)
    meta = read_json(folder / DONE)
    return Run(
        job=str(report["job"]),
        key=variants.variant_key(meta["config"]["job"]),
        folder=folder,
        report=dict(report),
        settings=variants.settings(meta["provenance"]["job"]),
        predictions=predictions,
    )


def _predictions(report: Mapping[str, Any], workspace: Workspace) -> Iterator[Path]:
    """predictions.parquet of the stage that scored the models."""
    from multistill.evaluation.paired import PREDICTIONS

    for stage in report["stages"]:
        file = workspace.folder(stage["name"], stage["fingerprint"]) / PREDICTIONS
        if file.is_file():
            yield file


def _describe(
    workspace: Path, name: str, variant: variants.Variant, driver: DriverStatus | None
) -> dict[str, Any]:
    folder = _report_of(workspace, name, variant.key)
    last_run = datetime.fromtimestamp(variant.last_run).astimezone()
    known = described(driver)
    row: dict[str, Any] = {
        "job": name,
        "variant": variant.key,
        "last_run": last_run.isoformat(timespec="seconds"),
        "state": "finished",
        "stage": None,
        "reason": None,
        "report": str(folder) if folder else None,
        **known,
        "links": {
            **known["links"],
            "report": (folder / HTML).absolute().as_uri() if folder else None,
        },
        "protocol": None,
        "test": None,
        "best_student": None,
        "figures": {},
    }
    if folder is not None:
        report, problem = _read(folder / JSON)
        if problem:
            row |= {"reason": f"{folder / JSON} {problem}"}
        else:
            try:
                with reading(folder / JSON):
                    row |= _figures(report)
            except MultistillError as error:  # of this job alone: the others are listed
                row |= {"reason": str(error)}
    if driver is not None and driver.alive:
        return row | {"state": "running", "stage": driver.content["stage"]}
    if folder is not None:
        return row
    state = _state(workspace, variant)
    if state["state"] == "stopped" and driver is not None and driver.end != "finished":
        reason = driver.content["reason"] if driver.end == "failed" else None
        state = {"state": driver.end, "stage": driver.content["stage"], "reason": reason}
    return row | state


def _state(workspace: Path, variant: variants.Variant) -> dict[str, Any]:
    """How far a job without a report has come."""
    from multistill.pipeline.jobfile import load

    try:
        job = load(variant.file, [f"workspace={to_json(str(workspace.absolute()))}"])
        root = Workspace(job.workspace)
        statuses = step_statuses(steps_of(job, root), root)
    except (MultistillError, OSError) as error:  # its corpora are gone, or its version is another
        return {"state": "unknown", "reason": str(error)}
    for step, entry, _ in statuses:
        if entry.state == "to do" and root.is_building(step.kind, str(entry.fingerprint)):
            return {"state": "running", "stage": step.name}
    done = [entry.stage for _, entry, _ in statuses if entry.state == "done"]
    return {"state": "stopped", "stage": done[-1] if done else None}


def _figures(report: Mapping[str, Any]) -> dict[str, Any]:
    from multistill.evaluation.figures import over_seeds
    from multistill.report.compare import models_of

    teacher = next((m["name"] for m in report["models"] if m["role"] == "teacher"), None)
    models = {model["name"]: model for model in models_of(report)}
    names = {
        "best_student": report["floor"]["student"],
        "teacher": teacher,
        "probe": report["floor"]["probe"],
        "majority": report["baseline"]["name"],
    }
    return {
        "protocol": report["protocol"],
        "test": {key: report["test"][key] for key in ("clips", "speakers", "sessions")},
        "best_student": names["best_student"],
        "figures": {
            who: {
                metric: over_seeds(models[name], metric).get("value")
                for metric in (*MAIN, *DIMENSIONS)
                if metric in models[name]["metrics"]
            }
            for who, name in names.items()
            if name is not None
        },
    }


def _without_classes(row: Mapping[str, Any]) -> bool:
    return any("ccc" in figures for figures in (row["figures"] or {}).values())


def _metrics(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Those of the jobs in a table that has a column for each; the main ones without any job."""
    alone = [_without_classes(row) for row in rows if row["figures"]]
    return (MAIN if not all(alone) or not alone else {}) | (DIMENSIONS if any(alone) else {})


def terminal_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Three lines per job, which fit into 80 columns."""
    from multistill.report.tables import Table

    titles = [who.replace("_", "\n") for who in WHO]
    columns = ["job\nvariant\nlast run", "state\nprotocol\ntest set", "", *titles]
    shown = []
    for row in rows:
        shown_metrics = DIMENSIONS if _without_classes(row) else MAIN
        figures = [
            "\n".join(_number(row["figures"].get(who, {}).get(m)) for m in shown_metrics)
            if row["figures"]
            else ""
            for who in WHO
        ]
        shown.append(
            [
                "\n".join(_title(row)),
                "\n".join([state_text(row), *_split(row).replace(" test", "").split(", ")]),
                "\n".join(shown_metrics.values()) if row["figures"] else "",
                *figures,
            ]
        )
    return Table(columns, shown, frozenset(titles))


def _title(row: Mapping[str, Any]) -> list[str]:
    last_run = row["last_run"][:16].replace("T", " ")
    return [row["job"], _key(row), last_run, *([f"by {by(row)}"] if by(row) else [])]


def flat_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A column per figure, for CSV, Markdown and LaTeX."""
    from multistill.report.tables import Table

    metrics = _metrics(rows)
    figures = [(who, metric) for who in WHO for metric in metrics]
    titles = [f"{who.replace('_', ' ')} {metrics[metric]}" for who, metric in figures]
    who = ["state", "owner", "host", "started", "progress", "seconds left"]
    columns = ["job", "variant", "last run", *who, "protocol", "best student", *titles, "report"]
    shown = [
        [
            row["job"],
            _key(row),
            row["last_run"],
            state_text(row),
            row["owner"],
            row["host"],
            row["started"],
            progress_text(row).replace("\n", ", "),
            row["seconds_left"],
            _split(row),
            row["best_student"],
            *(_number(row["figures"].get(who, {}).get(metric), "") for who, metric in figures),
            row["report"],
        ]
        for row in rows
    ]
    return Table(columns, shown, frozenset(titles))


def page(rows: Sequence[Mapping[str, Any]], workspace: Path) -> str:
    """The list as an HTML page that opens offline, with links to the reports."""
    from multistill.report.pages import Block, Page, to_html
    from multistill.report.tables import Table

    metrics = _metrics(rows)
    figures = [(who, metric) for who in WHO for metric in metrics]
    titles = [f"{who.replace('_', ' ')}\n{metrics[metric]}" for who, metric in figures]
    columns = ["job", "last run", "test set", *titles]
    shown = [
        [
            f"{row['job']}\n@{_key(row)}",
            "\n".join([*_title(row)[2:], state_text(row)]),
            "\n".join([_split(row), *([f"best: {best}"] if (best := row["best_student"]) else [])]),
            *(_number(row["figures"].get(who, {}).get(metric), "") for who, metric in figures),
        ]
        for row in rows
    ]
    folders = [Path(row["report"]).absolute() if row["report"] else None for row in rows]
    links = [(folder / HTML).as_uri() if folder else None for folder in folders]
    lead = (
        f"{counted(len(rows), 'job')}, newest first, with test figures of "
        "the best student (on validation), the teacher, the best probe and the majority. A job's "
        "name opens its report on this machine."
    )
    reasons = [f"{row['job']} {_key(row)}: {row['reason']}" for row in rows if row["reason"]]
    blocks = [Block("Jobs", Table(columns, shown, frozenset(titles)), links=links)]
    return to_html(Page(str(workspace), "multistill runs", lead, blocks, notes=reasons))


def report_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where the pages are, a line per finished job, and what is wrong with others."""
    return [
        f"{_key(row)}  {row['reason'] or Path(row['report']) / HTML}"
        for row in rows
        if row["reason"] or row["report"]
    ]


def _key(row: Mapping[str, Any]) -> str:
    return str(row["variant"][: variants.MIN_KEY])


def _split(row: Mapping[str, Any]) -> str:
    """What was tested: `holdout by speaker, 4 test speakers`, or sessions where these are."""
    if row["protocol"] is None:
        return ""
    unit = "session" if row["protocol"]["by"] == "session" else "speaker"
    number = row["test"][f"{unit}s"]
    return f"{row['protocol']['short']}, {counted(number, f'test {unit}')}"


def _number(value: float | None, missing: str = "-") -> str:
    return missing if value is None else f"{value:.3f}"
