"""The jobs of a Ray job server: which there are, who submitted them, and where they are shown."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from multistill import provenance
from multistill.cluster.address import job_server
from multistill.config import JobConfig
from multistill.tracking.owner import account_at_host


def submission_metadata(job: JobConfig) -> dict[str, str]:
    """What a submission says of itself. Ray shows it to everyone, so it has no secrets."""
    owner, _, host = account_at_host().partition("@")
    return {
        "job": job.name,
        "multistill": provenance.version(),
        "owner": owner,
        "host": host,
        "workspace": str(job.workspace),
    }


def job_page(address: str, submission_id: str) -> str:
    """Where Ray's dashboard shows a submitted job."""
    return f"{job_server(address)}/#/jobs/{submission_id}"


def rows(infos: Iterable[Any], address: str) -> list[dict[str, Any]]:
    """The jobs that `submit` sent, newest first, of Ray's details of all jobs of a job server.

    Returns:
        `submission_id`, `job`, `owner`, `host` (where it was submitted; both None for one of an
        earlier version), `workspace`, `status` (Ray's), `message`, `started`, `ended` (ISO),
        `ray_dashboard`.
    """
    found = [_row(info, address) for info in infos if _is_ours(info)]
    return sorted(found, key=lambda row: row["started"] or "~", reverse=True)


def _is_ours(info: Any) -> bool:
    return bool(info.submission_id) and "multistill" in (info.metadata or {})


def _row(info: Any, address: str) -> dict[str, Any]:
    said = info.metadata
    return {
        "submission_id": info.submission_id,
        "job": said.get("job", info.submission_id),
        **{name: said.get(name) for name in ("owner", "host", "workspace")},
        "status": str(info.status.value),
        "message": info.message,
        "started": _iso(info.start_time),
        "ended": _iso(info.end_time),
        "ray_dashboard": job_page(address, info.submission_id),
    }


def _iso(milliseconds: int | None) -> str | None:
    if not milliseconds:
        return None
    return datetime.fromtimestamp(milliseconds / 1000).astimezone().isoformat(timespec="seconds")
