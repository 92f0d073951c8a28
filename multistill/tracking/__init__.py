"""MLflow tracking that never raises into a run and never waits for the network."""

from multistill.tracking.redaction import redact
from multistill.tracking.tracker import (
    Tracker,
    open_tracker,
    shown_address,
    tracking_problem,
    tracking_uri,
)

__all__ = [
    "Tracker",
    "open_tracker",
    "redact",
    "shown_address",
    "tracking_problem",
    "tracking_uri",
]
