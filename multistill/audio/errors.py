"""Why a recording cannot be used."""

from __future__ import annotations

from multistill.errors import MultistillError


class UnusableClipError(MultistillError):
    """A clip cannot be used; the message becomes the reason for which it is left out.

    Args:
        kind: a few words that similar cases share, e.g. `truncated`; cases are counted by it.
        detail: what was found in this file.
    """

    def __init__(self, kind: str, detail: str = "") -> None:
        self.kind = kind
        super().__init__(f"{kind}: {detail}" if detail else kind)


def describe(error: BaseException) -> str:
    """The first line of an error's message, or its type if it has none, as valid UTF-8."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200].encode("utf-8", "backslashreplace").decode("utf-8").rstrip(".: ")
