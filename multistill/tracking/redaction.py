"""Removing credentials from messages, tags and parameters."""

from __future__ import annotations

import os
import re

_SECRET_VARIABLES = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "RAY_AUTH_TOKEN")
_USERINFO = re.compile(
    r"(?P<scheme>[A-Za-z][\w+.\-]*://)(?P<user>[^/@\s:]*):(?P<password>[^/\s]*)@"
)
_HIDDEN = "***"


def has_password(uri: str) -> bool:
    """Return whether a URI contains a password."""
    return _USERINFO.search(uri) is not None


def redact(text: str) -> str:
    """Replace passwords in URIs, and secrets from the environment, with `***`.

    Examples:
        >>> redact("https://ann:secret@mlflow.example.org")
        'https://ann:***@mlflow.example.org'
    """
    redacted = _USERINFO.sub(rf"\g<scheme>\g<user>:{_HIDDEN}@", text)
    for name in _SECRET_VARIABLES:
        value = os.environ.get(name, "")
        if len(value) >= 4:  # shorter values would blank out ordinary words
            redacted = redacted.replace(value, _HIDDEN)
    return redacted
