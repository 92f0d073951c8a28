"""Passwords and tokens in addresses: where they stand, and the same text without them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import unquote

HIDDEN = "***"

# A password may hold any character, so it ends at the last `@` that belongs to the address. One
# with spaces is told from a port and prose behind it: `http://host:5000 refused ann@lab`.
_BEHIND_USER = re.compile(
    r"""(?<![\w+.%-])(?!sqlite[\w+]*:///|file:)[\w+.-]+://[^:\s]*:
    (?P<hidden>\S+|(?=\S)(?!\d+(?:[/?\#\s]|$))(?:(?!://)[^\r\n])*)@""",
    re.VERBOSE,
)
_WITHOUT_SCHEME = re.compile(r"(?<![^\s=`'\"(\[])[\w.+%-]+:(?!//)(?P<hidden>\S+)@")
_IN_QUERY = re.compile(r"(?P<key>[?&;#][^=&;\s]+)=(?P<value>[^&\s]+)")
_SECRET_KEY = re.compile(r"pass|pwd|token|secret|key", re.IGNORECASE)


def hide(text: str) -> str:
    """Replace the passwords and tokens of the addresses in a text by `***`.

    Examples:
        >>> hide("https://ann:secret@mlflow.example.org")
        'https://ann:***@mlflow.example.org'
        >>> hide("postgresql://db/study?user=ann&password=secret")
        'postgresql://db/study?user=ann&password=***'
    """
    # Two may overlap where a password holds what separates the parts of an address.
    spans = sorted(
        [
            *(match.span("hidden") for match in _BEHIND_USER.finditer(text)),
            *(match.span("hidden") for match in _WITHOUT_SCHEME.finditer(text)),
            *_secret_values(text, 0, len(text)),
        ]
    )
    shown, end = [], 0
    for number, (start, stop) in enumerate(spans):
        if start > end or number == 0:
            shown.append(text[end:start])
        end = max(end, stop)
    return HIDDEN.join([*shown, text[end:]])


def _secret_values(text: str, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Where the secret values of a query are, in a part of a text."""
    for match in _IN_QUERY.finditer(text, start, stop):
        if _SECRET_KEY.search(unquote(match["key"])):
            yield match.span("value")
        else:  # some separate by semicolons, of which other values may hold one
            yield from _secret_values(text, *match.span("value"))


def has_secret(address: str) -> bool:
    """Whether an address holds a password or a token."""
    address = "".join(address.split())  # one with spaces is mistyped, and as secret
    return hide(address) != address
