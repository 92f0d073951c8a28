"""Numbers with their nouns, lists, and backticks of sentences as HTML."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

_PLURALS = {"class": "classes", "corpus": "corpora"}


def counted(number: int, noun: str) -> str:
    """A number with its noun, in the singular for one.

    Args:
        noun: in the singular; it may have words before it.

    Examples:
        >>> counted(1, "test speaker"), counted(1200, "clip"), counted(2, "class")
        ('1 test speaker', '1,200 clips', '2 classes')
    """
    before, space, last = noun.rpartition(" ")
    plural = before + space + _PLURALS.get(last, f"{last}s")
    return f"{number:,} {noun if number == 1 else plural}"


def listed(texts: Sequence[str], most: int = 4) -> str:
    """The first of some texts, and how many more there are.

    Examples:
        >>> listed(["a", "b", "c"], most=2)
        'a, b, 1 more'
    """
    more = [f"{len(texts) - most} more"] if len(texts) > most else []
    return ", ".join([*texts[:most], *more])


def with_code(text: str) -> str:
    """A sentence as HTML, in which what stands between backticks is code.

    Examples:
        >>> with_code("set `a < b`, or <nothing>")
        'set <code>a &lt; b</code>, or &lt;nothing&gt;'
    """
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))
