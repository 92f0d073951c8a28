"""Ray: start a local instance, connect to a cluster, submit jobs to a cluster."""

from multistill.cluster.jobs import (
    Submission,
    follow,
    logs,
    status,
    stop,
    submit,
    submitted,
    write_out,
)
from multistill.cluster.nodes import dashboard_url
from multistill.cluster.session import is_private, start
from multistill.cluster.starting import starting

__all__ = [
    "Submission",
    "dashboard_url",
    "follow",
    "is_private",
    "logs",
    "start",
    "starting",
    "status",
    "stop",
    "submit",
    "submitted",
    "write_out",
]
