"""Text without the characters that show nothing, but where they matter all the same."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from multistill.config.names import NOT_DRAWN, is_invisible

_ZWSP, _ZWNJ, _ZWJ, _BRAILLE_BLANK = "\u200b", "\u200c", "\u200d", "\u2800"
_WITHOUT_SPACES = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")
_EMOJI = re.compile("[\u2190-\u2bff\U0001f000-\U0001faff]")
_ARABIC = re.compile("[\u0620-\u08ff]")
_MONGOLIAN = re.compile("[\u1800-\u18af]")


def visible(text: str, *, breaks: bool = False) -> str:
    """The text without invisible characters, but joiners that change how their script is drawn.

    Args:
        breaks: keep zero width spaces, too, where a script has no spaces between words.
    """
    if text.isprintable() and not NOT_DRAWN.search(text):
        return text
    kept: list[str] = []
    letter = ""  # the last one kept that is no combining sign
    for character, after in zip(text, _next_visible(text), strict=True):
        if character == _BRAILLE_BLANK:
            kept.append(" ")
        elif is_invisible(character):
            before = kept[-1] if kept else " "
            if not _has_meaning(character, before, after, letter or before, breaks):
                continue
            kept.append(character)
        else:
            kept.append(character)
        if not unicodedata.combining(kept[-1]):
            letter = kept[-1]
    return "".join(kept)


def _next_visible(text: str) -> list[str]:
    """Of each character, the next one that is visible; a space at the end."""
    found, following = [], " "
    for character in reversed(text):
        found.append(following)
        if not is_invisible(character):
            following = character
    return found[::-1]


def _has_meaning(character: str, before: str, after: str, letter: str, breaks: bool) -> bool:
    """Whether an invisible character matters between what was kept before it and what follows.

    Args:
        letter: the last one kept that is no combining sign.
    """
    if _MONGOLIAN.match(character):  # it chooses the variant of the letter before it
        return bool(_MONGOLIAN.match(before)) and not is_invisible(before)
    if character not in {_ZWSP, _ZWNJ, _ZWJ}:
        return False
    if character == _ZWSP:
        return breaks and bool(_WITHOUT_SPACES.match(before) and _WITHOUT_SPACES.match(after))
    if _is_virama(before):
        return character == _ZWJ or after.isalpha()
    if _is_virama(after):
        return before.isalpha()
    if character == _ZWJ:
        return bool(_EMOJI.match(before) and _EMOJI.match(after))
    return _joins(letter) and bool(_ARABIC.match(after)) and after.isalpha()


def _is_virama(character: str) -> bool:
    """Whether a sign joins consonants of an Indic script."""
    return unicodedata.combining(character) == 9


@lru_cache(1024)
def _joins(letter: str) -> bool:
    """Whether a letter of an Arabic script is joined to the next one, so that ZWNJ is seen."""
    return letter in _dual_joining() or "\u0700" <= letter <= "\u08ff"


@lru_cache(1)
def _dual_joining() -> frozenset[str]:
    """Arabic letters that have initial and medial forms."""
    forms = (unicodedata.decomposition(chr(code)).split() for code in range(0xFB50, 0xFEFD))
    return frozenset(
        chr(int(form[1], 16))
        for form in forms
        if len(form) == 2 and form[0] in {"<initial>", "<medial>"}
    )
