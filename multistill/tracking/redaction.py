"""Removing credentials from messages, tags and parameters."""

from __future__ import annotations

import os

from multistill.config.notify import NOTIFY_COMMAND, WEBHOOK
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
    values = [os.environ.get(name, "") for name in (*_SECRET_VARIABLES, *webhooks)]
    command = os.environ.get(NOTIFY_COMMAND, "").strip()
    if " " in command:  # a program alone is no secret, and its name may be an ordinary word
        values.append(command)
    for value in values:
        if len(value) >= 4:  # shorter values would blank out ordinary words
            redacted = redacted.replace(value, HIDDEN)
    return redacted
