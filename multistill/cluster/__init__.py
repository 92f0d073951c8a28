"""Ray: start a local instance, connect to a cluster, submit jobs to a cluster."""

from multistill.cluster.jobs import Submission, following, logs, status, stop, submit
from multistill.cluster.session import start

__all__ = [
    "Submission",
    "following",
    "logs",
    "start",
    "status",
    "stop",
    "submit",
]
