"""Passwords and tokens in addresses: where they stand, and the same text without them."""

from __future__ import annotations

import re
from urllib.parse import unquote

HIDDEN = "***"

# A password may hold any character, so it ends at the last `@` that belongs to the address. One
# with spaces is told from a port and prose behind it: `http://host:5000 refused ann@lab`.
_BEHIND_USER = re.compile(
    r"""(?P<shown>(?<![\w+.%-])(?!sqlite[\w+]*:///|file:)[\w+.-]+://[^:\s]*:)
    (?:\S+@|(?=\S)(?!\d+(?:[/?\#\s]|$))(?:(?!://)[^\r\n])*@)""",
    re.VERBOSE,
)
_WITHOUT_SCHEME = re.compile(r"(?P<shown>(?<![^\s=`'\"(\[])[\w.+%-]+:)(?!//)\S+@")
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
    for pattern in (_BEHIND_USER, _WITHOUT_SCHEME):
        text = pattern.sub(rf"\g<shown>{HIDDEN}@", text)

    def without_value(match: re.Match[str]) -> str:
        if _SECRET_KEY.search(unquote(match["key"])):
            return f"{match['key']}={HIDDEN}"
        # Some separate by semicolons, of which other values may hold one.
        return f"{match['key']}={_IN_QUERY.sub(without_value, match['value'])}"

    return _IN_QUERY.sub(without_value, text)


def has_secret(address: str) -> bool:
    """Whether an address holds a password or a token."""
    address = "".join(address.split())  # one with spaces is mistyped, and as secret
    return hide(address) != address
