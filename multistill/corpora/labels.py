"""Votes and labels: counts, shares, winners, tie policies, and which class a label is.

Tuples over classes follow the order of the job's classes (`multistill.config.LabelsConfig`), which
the functions get as `classes`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from multistill.config import LabelsConfig, TasksConfig
from multistill.config.emotions import SYNONYMS, emotion_key
from multistill.corpora.text import code_points, control_characters, normal_name
from multistill.workspace import to_json

TiePolicy = Literal["soft", "drop", "first", "multi"]

Votes = tuple[int, ...]
Shares = tuple[float, ...]


class LabelReader(dict[str, str | None]):
    """Label of a corpus -> class of the job, None if it has none: see `why_rejected`.

    The corpus's own `labels` come first; then the emotion that the label stands for decides, and
    last `labels.others` of the job. Answers are kept: a corpus has a million votes and few distinct
    spellings.

    Args:
        labels: the job's classes.
        corpus: the corpus's `labels`.
        tasks: what the job predicts; default: the classes.
        unlabelled: labels are only there or not, so that no loader rejects a clip for its label:
            each is the first class, and what a clip is given is dropped later.

    Attributes:
        without_classes: whether the classes are no task, so that labels decide nothing.
        dimensions: of the tasks. An utterance that has one of them is kept without a class.

    Raises:
        ValueError: a label of the corpus has a target that is no class.
    """

    def __init__(
        self,
        labels: LabelsConfig | None = None,
        corpus: Mapping[str, str] | None = None,
        tasks: TasksConfig | None = None,
        unlabelled: bool = False,
    ) -> None:
        super().__init__()
        self.unlabelled = unlabelled
        self.labels = labels or LabelsConfig()
        self.dimensions = tasks.dimensions if tasks else ()
        self.without_classes = tasks is not None and tasks.classes is None
        self.classes = tuple(self.labels.classes)
        self._own = {_key(source): target for source, target in (corpus or {}).items()}
        unknown = sorted(set(self._own.values()) - set(self.classes))
        if unknown:
            raise ValueError(f"not classes of the job: {', '.join(unknown)}")
        self._by_emotion = self.labels.class_by_emotion()

    def __missing__(self, name: str) -> str | None:
        self[name] = self._class_of(name)
        return self[name]

    def _class_of(self, name: str) -> str | None:
        key = _key(name)
        if not key or control_characters(name):
            return None
        if self.unlabelled:
            return self.classes[0]
        if key in self._own:
            return self._own[key]
        return self._by_emotion.get(self.labels.emotion_of(key), self.labels.others)

    def knows(self, name: str) -> bool:
        """Whether the corpus's own `labels` name the label."""
        return _key(name) in self._own

    def leaves_out(self, name: str) -> bool:
        """Whether `labels.leave_out` of the job names the label's emotion."""
        if self.without_classes or self.unlabelled:
            return False
        emotion = self.labels.emotion_of(_key(name))
        return emotion in self._by_emotion and self._by_emotion[emotion] is None

    def why_rejected(self, name: str) -> str:
        """Why a row with a label that has no class is rejected, in one line.

        Examples:
            >>> LabelReader().why_rejected("hapy")
            'label `hapy` is none of the 7 classes; set `labels: {"hapy": happy}` of the corpus'
        """
        control = control_characters(name)
        if control:
            return (
                f"the label has control characters ({code_points(control)}), so its file is "
                "damaged or in another encoding"
            )
        name = normal_name(name)
        if not name:
            return "the label has only characters that show nothing"
        if self.labels.emotion_of(_key(name)) in self._by_emotion:
            return f"label `{name}` is left out (labels.leave_out)"
        what = f"label `{name}` is none of the {len(self.classes)} classes"
        near = difflib.get_close_matches(_key(name), list(self._spellings()), 1, cutoff=0.7)
        if near and self.labels.emotion_of(name) not in SYNONYMS:
            return f"{what}; set `labels: {{{to_json(name)}: {self[near[0]]}}}` of the corpus"
        return (
            f"{what}; add it to `labels.classes`, or set `labels: {{{to_json(name)}: CLASS}}` of "
            f"the corpus to the class that it counts as"
        )

    def _spellings(self) -> Iterable[str]:
        """Spellings that have a class."""
        for emotion, target in self._by_emotion.items():
            if target is not None:
                yield emotion
                yield from SYNONYMS.get(emotion, ())
                yield from map(emotion_key, self.labels.synonyms.get(emotion, ()))


def _key(name: str) -> str:
    return normal_name(name).casefold()


def split_tie(text: str) -> list[str]:
    """The names in a label; a tie is written `a;b`, in any order."""
    return [part.strip() for part in text.split(";") if part.strip()]


def count(ratings: Iterable[str | None], classes: Sequence[str]) -> Votes:
    """Votes per class; None is a rater who did not answer."""
    answers = list(ratings)
    return tuple([answers.count(name) for name in classes])


def one_hot(label: str, classes: Sequence[str]) -> Shares:
    """Shares with all mass on one class, for corpora without raters."""
    return tuple(float(name == label) for name in classes)


def shares(votes: Sequence[int]) -> Shares:
    """Votes divided by their sum.

    Raises:
        ValueError: if there is no vote, or a negative count.
    """
    if not votes or min(votes) < 0:
        raise ValueError(f"votes are counts of 0 or more, one per class, not {tuple(votes)}")
    total = sum(votes)
    if total == 0:
        raise ValueError("there are no votes")
    return tuple([vote / total for vote in votes])


def leaders(votes: Sequence[int], classes: Sequence[str]) -> tuple[str, ...]:
    """The classes with the most votes, in class order: one, or several on a tie."""
    top = max(votes)
    if top <= 0:
        return ()
    return tuple([name for name, vote in zip(classes, votes, strict=True) if vote == top])


def winner(votes: Sequence[int], classes: Sequence[str]) -> str | None:
    """The class with the most votes, None on a tie."""
    tied = leaders(votes, classes)
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


def decide(votes: Sequence[int], classes: Sequence[str], policy: TiePolicy = "soft") -> Decision:
    """Apply the tie policy to one utterance's votes.

    soft: keep the shares as target; hard metrics exclude the utterance.
    drop: drop the utterance.
    first: use the first of the tied classes in class order as label.
    multi: give every tied class the same share; hard metrics exclude the utterance.

    Examples:
        >>> decide((0, 3, 3), ("sad", "happy", "angry"), policy="first").label
        'happy'
    """
    soft = shares(votes)
    tied = leaders(votes, classes)
    if len(tied) == 1:
        return Decision(keep=True, label=tied[0], soft=soft, tied=False)
    if policy == "drop":
        return Decision(keep=False, label=None, soft=soft, tied=True)
    if policy == "first":
        return Decision(keep=True, label=tied[0], soft=soft, tied=True)
    if policy == "multi":
        soft = tuple(float(name in tied) / len(tied) for name in classes)
    return Decision(keep=True, label=None, soft=soft, tied=True)
