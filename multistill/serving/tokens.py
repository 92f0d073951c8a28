"""The token that requests must bear: where it is read from, and how it is compared."""

from __future__ import annotations

import hmac
import os
import re
from pathlib import Path

from multistill.errors import UsageError

VARIABLE = "MULTISTILL_SERVE_TOKEN"
PROTOCOL = "multistill"
"""The WebSocket subprotocol that the server chooses where a client offers several."""
SUBPROTOCOL = "multistill.bearer."
"""Beginning of the WebSocket subprotocol that carries a token: browsers let pages set no header."""

_VALID = re.compile(r"[A-Za-z0-9._~+-]{16,512}")  # bearer tokens that are subprotocols too


def read_token(file: str | None, *, required: bool = False) -> str | None:
    """The token of a file, else of the environment, else None.

    Raises:
        UsageError: the file cannot be read, the token is short or has other characters, or there
            is none and it is required.
    """
    if file is not None:
        try:
            token = Path(file).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
            raise UsageError(
                f"the token file `{file}` cannot be read ({reason}); name another with --token-file"
            ) from error
    else:
        token = os.environ.get(VARIABLE, "").strip()
        if not token and required:
            raise UsageError(
                f"this server needs a token, and has neither --token-file nor {VARIABLE}; set one"
            )
        if not token:
            return None
    if not _VALID.fullmatch(token):
        where = f"the file `{file}`" if file is not None else VARIABLE
        raise UsageError(
            f"the token in {where} is no token; write 16 to 512 letters, digits and ._~+- there"
        )
    return token


def bears(token: str, authorization: str | None, subprotocols: tuple[str, ...] = ()) -> bool:
    """Whether a request bears the token, compared in constant time.

    Args:
        authorization: the header, `Bearer TOKEN`.
        subprotocols: that a WebSocket offers.
    """
    scheme, _, given = (authorization or "").partition(" ")
    candidates = [given.strip()] if scheme.lower() == "bearer" else []
    candidates += [
        name.removeprefix(SUBPROTOCOL) for name in subprotocols if name.startswith(SUBPROTOCOL)
    ]
    return any(hmac.compare_digest(token.encode(), each.encode()) for each in candidates)
