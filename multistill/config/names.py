"""Names in the job file that become names of folders, and characters that show nothing.

Unicode decides what is shown: its categories, and its property Default_Ignorable_Code_Point for
characters of other categories, which `unicodedata` lacks.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Annotated

from pydantic import AfterValidator

# Characters of category Cf that are drawn: signs that enclose the digits or letters behind them.
_DRAWN = frozenset(
    "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd"
)
# Not of category Cf: the default-ignorable code points (fillers, variation selectors, tags), the
# empty Braille pattern, and the place of an object that was not copied.
NOT_DRAWN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\ufff0-\ufff8\ufffc\U000e0000-\U000e0fff]"
)


def is_invisible(character: str) -> bool:
    """Whether a character shows nothing, or a blank that is no white space."""
    category = unicodedata.category(character)
    return (category == "Cf" and character not in _DRAWN) or bool(NOT_DRAWN.match(character))


def _folder_name(value: str) -> str:
    if not value or value in {".", ".."} or any(c in value for c in '/\\\0:*?"<>|'):
        raise ValueError('must be usable as a folder name: no slashes and none of : * ? " < > |')
    # Of all white space, only the space is printable.
    hidden = next((c for c in value if not c.isprintable() or is_invisible(c)), None)
    if hidden is not None:
        raise ValueError(
            f"has the character U+{ord(hidden):04X}, which cannot be seen in a name; remove it"
        )
    if value != value.strip():
        raise ValueError("starts or ends with a space; remove it")
    if value.casefold() == "latest":
        raise ValueError("`latest` is the link to the newest report; choose another name")
    return value


FolderName = Annotated[str, AfterValidator(_folder_name)]
