"""Standard output and error that print any text, whatever encoding the console has."""

from __future__ import annotations

import codecs
import io
import sys

ERRORS = "multistill.console"
"""Name of the error handler: punctuation becomes ASCII, the rest an escape such as `\\uac10`."""

_PUNCTUATION = {"…": "...", "–": "-", "—": "-", "−": "-", "×": "x", "·": "-", "“": '"', "”": '"'}


def print_any_text() -> None:
    """Let this process's standard streams print what their encoding lacks, instead of raising.

    Everything that writes to them is covered: `print`, Rich, log handlers, the libraries. File
    names whose bytes are not UTF-8 need it on a UTF-8 console too.
    """
    codecs.register_error(ERRORS, _escaped)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ERRORS)


def prints_unicode() -> bool:
    """Whether standard output prints every character as it is."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return codecs.lookup(encoding).name.startswith("utf")


def _escaped(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    text = [_PUNCTUATION.get(c) or c.encode("ascii", "backslashreplace").decode() for c in missing]
    return "".join(text), error.end
