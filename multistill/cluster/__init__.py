"""Ray: starting one here, joining one elsewhere, and jobs on it."""

from multistill.cluster.jobs import Submission, logs, status, stop, submit
from multistill.cluster.session import start

__all__ = [
    "Submission",
    "logs",
    "start",
    "status",
    "stop",
    "submit",
]
