"""MLflow tracking that never raises into a run and never waits for the network."""

from multistill.tracking.redaction import redact
from multistill.tracking.tracker import Tracker, open_tracker, tracking_uri

__all__ = ["Tracker", "open_tracker", "redact", "tracking_uri"]
