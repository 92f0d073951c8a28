"""Votes and labels: counts, shares, winners, tie policies, spellings of class names.

Tuples over classes follow the order of `multistill.config.CLASSES`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from multistill.config import CLASSES
from multistill.corpora.text import code_points, control_characters, normal_name
from multistill.workspace import to_json

TiePolicy = Literal["soft", "drop", "first", "multi"]

Votes = tuple[int, ...]
Shares = tuple[float, ...]

_SPELLINGS = {
    "neutral": "neutral neutrality 중립",
    "happy": "happy happiness joy 기쁨 행복",
    "surprise": "surprise surprised 놀람",
    "angry": "angry anger 분노",
    "sad": "sad sadness 슬픔",
    # `disqust` is the spelling in KEMDy20's Total Evaluation.
    "disgust": "disgust disqust disgusted 혐오",
    "fear": "fear fearful 공포",
}
_CLASS_OF = {name: label for label, names in _SPELLINGS.items() for name in names.split()}


def _key(name: str) -> str:
    return normal_name(name).casefold()


def class_of(name: str, label_map: Mapping[str, str] | None = None) -> str | None:
    """The class that a corpus's label `name` denotes, or None if it is not one of the seven.

    Case, white space, invisible characters and Unicode form are ignored. `label_map` (the job
    file's `labels`) takes precedence over the built-in spellings, so it can also remap a class.
    """
    key = _key(name)
    for source, target in (label_map or {}).items():
        if _key(source) == key:
            return target
    return _CLASS_OF.get(key)


def unmapped_label(name: str) -> str:
    """The reason for rejecting a row with a label that is none of the seven classes, in one line.

    Examples:
        >>> unmapped_label("hapy")
        'label `hapy` is not one of the seven classes; set `labels: {"hapy": happy}` of the corpus'
    """
    control = control_characters(name)
    if control:
        return (
            f"the label has control characters ({code_points(control)}), so its file is damaged or "
            "in another encoding"
        )
    name = normal_name(name)
    if not name:
        return "the label has only characters that show nothing"
    near = difflib.get_close_matches(_key(name), _CLASS_OF, 1, cutoff=0.5)
    target = _CLASS_OF[near[0]] if near else "CLASS"
    advice = f"set `labels: {{{to_json(name)}: {target}}}` of the corpus"
    choices = "" if near else f", with one of {', '.join(CLASSES)}"
    return f"label `{name}` is not one of the seven classes; {advice}{choices}"


class Spellings(dict[str, str | None]):
    """Cached `class_of`: a corpus has a million votes and few distinct spellings."""

    def __init__(self, label_map: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.label_map = label_map

    def __missing__(self, name: str) -> str | None:
        self[name] = class_of(name, self.label_map)
        return self[name]


def split_tie(text: str) -> list[str]:
    """The names in a label; a tie is written `a;b`, in any order."""
    return [part.strip() for part in text.split(";") if part.strip()]


def count(ratings: Iterable[str | None]) -> Votes:
    """Votes per class; None is a rater who did not answer."""
    answers = list(ratings)
    return tuple([answers.count(name) for name in CLASSES])


def one_hot(label: str) -> Shares:
    """Shares with all mass on one class, for corpora without raters."""
    return tuple(float(name == label) for name in CLASSES)


def shares(votes: Sequence[int]) -> Shares:
    """Votes divided by their sum.

    Raises:
        ValueError: if there is no vote, a negative count, or not one count per class.
    """
    if len(votes) != len(CLASSES) or min(votes) < 0:
        raise ValueError(f"votes are {len(CLASSES)} counts of 0 or more, not {tuple(votes)}")
    total = sum(votes)
    if total == 0:
        raise ValueError("there are no votes")
    return tuple([vote / total for vote in votes])


def leaders(votes: Sequence[int]) -> tuple[str, ...]:
    """The classes with the most votes, in class order: one, or several on a tie."""
    top = max(votes)
    if top <= 0:
        return ()
    return tuple([name for name, vote in zip(CLASSES, votes, strict=True) if vote == top])


def winner(votes: Sequence[int]) -> str | None:
    """The class with the most votes, None on a tie."""
    tied = leaders(votes)
    return tied[0] if len(tied) == 1 else None


@dataclass(frozen=True)
class Decision:
    """Training target and label of one utterance.

    Attributes:
        keep: False if the tie policy drops the utterance.
        label: class for hard metrics, None for a tie without one.
        soft: shares to train on.
        tied: whether several classes have the most votes.
    """

    keep: bool
    label: str | None
    soft: Shares
    tied: bool


def decide(votes: Sequence[int], policy: TiePolicy = "soft") -> Decision:
    """Apply the tie policy to one utterance's votes.

    soft: keep the shares as target; hard metrics exclude the utterance.
    drop: drop the utterance.
    first: use the first of the tied classes in class order as label.
    multi: give every tied class the same share; hard metrics exclude the utterance.

    Examples:
        >>> decide((3, 3, 0, 0, 0, 0, 0), policy="first").label
        'neutral'
    """
    soft = shares(votes)
    tied = leaders(votes)
    if len(tied) == 1:
        return Decision(keep=True, label=tied[0], soft=soft, tied=False)
    if policy == "drop":
        return Decision(keep=False, label=None, soft=soft, tied=True)
    if policy == "first":
        return Decision(keep=True, label=tied[0], soft=soft, tied=True)
    if policy == "multi":
        soft = tuple(float(name in tied) / len(tied) for name in CLASSES)
    return Decision(keep=True, label=None, soft=soft, tied=True)
