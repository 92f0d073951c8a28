"""Who runs what now, and how far it is: from the drivers of a workspace and a cluster's jobs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multistill.pipeline.drivers import LINKS, DriverStatus, read_drivers

if TYPE_CHECKING:
    from multistill.cluster import Submission
    from multistill.config import JobConfig
    from multistill.report.tables import Table

SAID = (
    "owner",
    "host",
    "node",
    "pid",
    "submission_id",
    "started",
    "updated",
    "progress",
    "seconds_left",
)
_RAY_STATES = {"SUCCEEDED": "finished", "PENDING": "waiting"}


def described(driver: DriverStatus | None) -> dict[str, Any]:
    """What a list says of the process that runs a job, or that ran it last; None is unknown."""
    said: Mapping[str, Any] = {} if driver is None else driver.content
    row = {name: said.get(name) for name in SAID}
    if driver is None or not driver.alive:
        row |= {"progress": None, "seconds_left": None}
    links = said.get("links", {})
    return {**row, "links": {name: links.get(name) for name in LINKS}}


def on_cluster(address: str, workspace: Path) -> list[dict[str, Any]]:
    """The jobs of a Ray job server, newest first, with what their workspaces know of them.

    Args:
        workspace: looked into as well as the workspace that each job names, as far as these
            folders can be read from here.

    Returns:
        `job`, `submission_id`, `owner` and `host` (who submitted it from where), `workspace`,
        `state` (`waiting`, `running`, `finished`, `failed`, `stopped`), `reason`, `stage`,
        `progress`, `seconds_left`, `started`, `ended`, `node`, `pid`, `variant`, `links`.
    """
    from multistill import cluster

    jobs = cluster.submitted(address)
    places = {workspace, *(Path(job["workspace"]) for job in jobs if job["workspace"])}
    drivers = {
        driver.content["submission_id"]: driver
        for place in places
        for driver in reversed(read_drivers(place))
    }
    return [_joined(job, drivers.get(job["submission_id"])) for job in jobs]


def submitted_links(job: JobConfig, submission: Submission) -> dict[str, str | None]:
    """Where people look at a submitted job: `mlflow`, `mlflow_ui` and `ray_dashboard`.

    `mlflow` is the page of its run where the workspace can be read from here and the job has
    begun, else the address that the job file or the environment names.
    """
    from multistill.tracking import shown_address
    from multistill.tracking.addresses import run_page, ui_command

    drivers = read_drivers(Path(job.workspace))
    own = [d for d in drivers if d.content["submission_id"] == submission.submission_id]
    links = described(own[0])["links"] if own else {}
    address = shown_address(job.tracking, Path(job.workspace))
    return {
        "mlflow": links.get("mlflow") or run_page(address, None, None),
        "mlflow_ui": links.get("mlflow_ui") or ui_command(address),
        "ray_dashboard": submission.page,
    }


def _joined(job: Mapping[str, Any], driver: DriverStatus | None) -> dict[str, Any]:
    known = described(driver)
    status = str(job["status"])
    state = _RAY_STATES.get(status, status.lower())
    reason = None if driver is None else driver.content["reason"]
    return {
        "job": job["job"],
        "submission_id": job["submission_id"],
        "owner": job["owner"] or known["owner"],
        "host": job["host"] or known["host"],
        "workspace": job["workspace"],
        "state": state,
        "reason": (reason or job["message"]) if state == "failed" else None,
        "stage": None if driver is None else driver.content["stage"],
        "progress": known["progress"] if state == "running" else None,
        "seconds_left": known["seconds_left"] if state == "running" else None,
        "started": job["started"],
        "ended": job["ended"],
        "node": known["node"],
        "pid": known["pid"],
        "variant": None if driver is None else driver.variant,
        "links": {**known["links"], "ray_dashboard": job["ray_dashboard"]},
    }


def by(row: Mapping[str, Any], between: str = "@") -> str:
    """`kim@node3`; empty where nobody knows."""
    return between.join(str(row[name]) for name in ("owner", "host") if row[name])


def progress_text(row: Mapping[str, Any]) -> str:
    """`audio 4/15 epochs`, the name only where it is not the job's or the stage's.

    Of several that run at the same time, a second line names them.
    """
    progress = row["progress"]
    if not progress:
        return ""
    figures = f"{progress['done']:g}/{progress['total']:g} {progress['unit']}"
    name = progress["name"]
    text = figures if name in (row["job"], row["stage"]) else f"{name} {figures}"
    return f"{text}\n{progress['running']}" if progress["running"] else text


def left_text(row: Mapping[str, Any]) -> str:
    seconds = row["seconds_left"]
    return "" if seconds is None else f"{timedelta(seconds=round(seconds))} left"


def since_text(row: Mapping[str, Any]) -> str:
    """When it started: `since 14:05`, with the day unless it is today."""
    if not row["started"]:
        return ""
    started = datetime.fromisoformat(row["started"]).astimezone()
    today = started.date() == datetime.now().astimezone().date()
    return f"since {started:%H:%M}" if today else f"since {started:%Y-%m-%d %H:%M}"


def running_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Two lines per job, which fit into 80 columns."""
    from multistill.report.tables import Table

    columns = ["job", "owner\nhost", "state: stage\nprogress", "left in the stage\nsince"]
    shown = [
        [
            str(row["job"]),
            by(row, "\n"),
            "\n".join(filter(None, [state_text(row), progress_text(row)])),
            "\n".join(filter(None, [left_text(row), since_text(row)])),
        ]
        for row in rows
    ]
    return Table(columns, shown)


def state_text(row: Mapping[str, Any]) -> str:
    """`running: students`, `killed: search`, `teacher done`."""
    state, stage = str(row["state"]), row["stage"]
    if state == "stopped" and not row.get("submission_id"):
        return f"{stage} done" if stage else "nothing done"
    return f"{state}: {stage}" if stage and state != "finished" else state


def link_lines(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line per address of each job, under the id or the start of the fingerprint."""
    return [
        f"{row['submission_id'] or row['variant'][:6]}  {title:<7}  {row['links'][name]}"
        for row in rows
        for name, title in LINKS.items()
        if row["links"][name]
    ]
