"""Ray: starting one here, joining one elsewhere, and jobs on it."""

from multistill.cluster.machine import local_cpus, local_gpus
from multistill.cluster.session import Need, preflight, start

__all__ = [
    "Need",
    "local_cpus",
    "local_gpus",
    "preflight",
    "start",
]
