"""Removing credentials from messages, tags and parameters."""

from __future__ import annotations

import os

from multistill.config.notify import WEBHOOK
from multistill.config.secrets import HIDDEN, hide

_SECRET_VARIABLES = (
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "RAY_AUTH_TOKEN",
    "PGPASSWORD",
)


def redact(text: str) -> str:
    """Replace secrets in addresses, and those of the environment, by `***`."""
    redacted = hide(text)
    webhooks = [name for name in os.environ if name.startswith(WEBHOOK)]
    for name in (*_SECRET_VARIABLES, *webhooks):
        value = os.environ.get(name, "")
        if len(value) >= 4:  # shorter values would blank out ordinary words
            redacted = redacted.replace(value, HIDDEN)
    return redacted
