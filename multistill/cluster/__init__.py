"""Ray: starting one here, joining one elsewhere, and jobs on it."""

from multistill.cluster.jobs import Submission, logs, status, stop, submit
from multistill.cluster.machine import local_cpus, local_gpus
from multistill.cluster.session import start

__all__ = [
    "Submission",
    "local_cpus",
    "local_gpus",
    "logs",
    "start",
    "status",
    "stop",
    "submit",
]
