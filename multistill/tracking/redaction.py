"""Keeping credentials out of every message, tag and parameter."""

from __future__ import annotations

import os
import re

_SECRET_VARIABLES = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "RAY_AUTH_TOKEN")
_USERINFO = re.compile(
    r"(?P<scheme>[A-Za-z][\w+.\-]*://)(?P<user>[^/@\s:]*):(?P<password>[^/\s]*)@"
)
_HIDDEN = "***"


def has_password(uri: str) -> bool:
    """Whether an address carries a password."""
    return _USERINFO.search(uri) is not None


def redact(text: str) -> str:
    """The text with passwords inside addresses, and secrets of the environment, hidden.

    Examples:
        >>> redact("https://ann:secret@mlflow.example.org")
        'https://ann:***@mlflow.example.org'
    """
    hidden = _USERINFO.sub(rf"\g<scheme>\g<user>:{_HIDDEN}@", text)
    for name in _SECRET_VARIABLES:
        value = os.environ.get(name, "")
        if len(value) >= 4:  # shorter values would blank out ordinary words
            hidden = hidden.replace(value, _HIDDEN)
    return hidden
