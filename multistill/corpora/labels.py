"""From raters' votes to targets: counts, shares, winners, ties and the names of classes.

Everything follows the class order of `multistill.config.CLASSES`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from multistill.config import CLASSES

TiePolicy = Literal["soft", "drop", "first", "multi"]

Votes = tuple[int, ...]
Shares = tuple[float, ...]

_SPELLINGS = {
    "neutral": "neutral neutrality 중립",
    "happy": "happy happiness joy 기쁨 행복",
    "surprise": "surprise surprised 놀람",
    "angry": "angry anger 분노",
    "sad": "sad sadness 슬픔",
    # `disqust` is how KEMDy20's Total Evaluation spells it.
    "disgust": "disgust disqust disgusted 혐오",
    "fear": "fear fearful 공포",
}
_CLASS_OF = {name: label for label, names in _SPELLINGS.items() for name in names.split()}


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip().casefold()


def class_of(name: str, label_map: Mapping[str, str] | None = None) -> str | None:
    """The class a corpus means by `name`, or None if it is none of the seven.

    Case, surrounding white space and Unicode form do not count. `label_map` (the job
    file's `labels`) goes before the built-in spellings, so it can also move a class.
    """
    key = _key(name)
    for source, target in (label_map or {}).items():
        if _key(source) == key:
            return target
    return _CLASS_OF.get(key)


class Spellings(dict[str, str | None]):
    """`class_of` that remembers: a corpus has a million votes and few spellings."""

    def __init__(self, label_map: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.label_map = label_map

    def __missing__(self, name: str) -> str | None:
        self[name] = class_of(name, self.label_map)
        return self[name]


def split_tie(text: str) -> list[str]:
    """The names in a published label; a tie is written `a;b`, in any order."""
    return [part.strip() for part in text.split(";") if part.strip()]


def count(ratings: Iterable[str | None]) -> Votes:
    """Votes for each class; None is a rater who did not answer."""
    found = list(ratings)
    return tuple([found.count(name) for name in CLASSES])


def one_hot(label: str) -> Shares:
    """All mass on one class: the shares of a corpus without raters."""
    return tuple(float(name == label) for name in CLASSES)


def shares(votes: Sequence[int]) -> Shares:
    """Votes divided by their number.

    Raises:
        ValueError: where there is no vote, a negative one, or not one count a class.
    """
    if len(votes) != len(CLASSES) or min(votes) < 0:
        raise ValueError(f"votes are {len(CLASSES)} counts of 0 or more, not {tuple(votes)}")
    total = sum(votes)
    if total == 0:
        raise ValueError("nobody voted")
    return tuple([vote / total for vote in votes])


def leaders(votes: Sequence[int]) -> tuple[str, ...]:
    """The classes with the most votes, in class order: one, or several on a tie."""
    top = max(votes)
    if top <= 0:
        return ()
    return tuple([name for name, vote in zip(CLASSES, votes, strict=True) if vote == top])


def winner(votes: Sequence[int]) -> str | None:
    """The class with the most votes, None on a tie."""
    found = leaders(votes)
    return found[0] if len(found) == 1 else None


@dataclass(frozen=True)
class Decision:
    """What one utterance is trained and measured on.

    Attributes:
        keep: False where the tie policy drops the utterance.
        label: class for hard metrics, None where a tie has none.
        soft: shares to train on.
        tied: whether several classes had the most votes.
    """

    keep: bool
    label: str | None
    soft: Shares
    tied: bool


def decide(votes: Sequence[int], policy: TiePolicy = "soft") -> Decision:
    """Apply the tie policy to one utterance's votes.

    soft: the shares stay the target and hard metrics leave the utterance out.
    drop: the utterance goes.
    first: the first of the tied classes in class order becomes the label.
    multi: every tied class is a target with equal mass; hard metrics leave it out.

    Examples:
        >>> decide((3, 3, 0, 0, 0, 0, 0), policy="first").label
        'neutral'
    """
    soft = shares(votes)
    first = leaders(votes)
    if len(first) == 1:
        return Decision(keep=True, label=first[0], soft=soft, tied=False)
    if policy == "drop":
        return Decision(keep=False, label=None, soft=soft, tied=True)
    if policy == "first":
        return Decision(keep=True, label=first[0], soft=soft, tied=True)
    if policy == "multi":
        soft = tuple(float(name in first) / len(first) for name in CLASSES)
    return Decision(keep=True, label=None, soft=soft, tied=True)
