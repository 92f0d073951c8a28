"""Ray: start a local instance, connect to a cluster, submit jobs to a cluster."""

from multistill.cluster.jobs import Submission, follow, logs, status, stop, submit, write_out
from multistill.cluster.session import start

__all__ = [
    "Submission",
    "follow",
    "logs",
    "start",
    "status",
    "stop",
    "submit",
    "write_out",
]
