"""How far raters agree, from counts of answers: the ceiling for any model of their labels.

`votes` is [U, C], one row for each distinct count of answers, one column a class; `times` [U]
says how many utterances have it. Rows may differ in their sum. A million utterances rated by
ten people have at most 8,008 distinct rows over seven classes.

An answer is one rater's choice. Votes that a corpus weighs, by intensity say, are a target to
train on; taken for raters, they would agree with themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from multistill.config import CLASSES
from multistill.corpora.labels import Votes, count, winner
from multistill.typing import IntArray


class RaterTally:
    """The answers of a corpus's raters: how often each count of them, and how each rater fares.

    Attributes:
        answers: utterances by their counts of answers in class order.
        agreed, asked: by the rater's place in the corpus; asked is where all others have one
            winner.
    """

    def __init__(self) -> None:
        self.answers: Counter[Votes] = Counter()
        self.agreed: Counter[int] = Counter()
        self.asked: Counter[int] = Counter()

    def add(self, ratings: Sequence[str | None], votes: Votes | None) -> None:
        """IntArray one utterance, by its votes where nobody says who gave which."""
        answers = count(ratings) if ratings else votes
        if answers is None or not any(answers):
            return
        self.answers[answers] += 1
        others = _others(answers)
        for rater, answer in enumerate(ratings):
            if answer in others:
                self.asked[rater] += 1
                self.agreed[rater] += others[answer] == answer

    def merge(self, other: RaterTally) -> None:
        self.answers.update(other.answers)
        self.agreed.update(other.agreed)
        self.asked.update(other.asked)

    def json(self) -> list[dict[str, Any]]:
        return [
            {"rater": rater + 1, "answers": asked, "accuracy": self.agreed[rater] / asked}
            for rater, asked in sorted(self.asked.items())
        ]


@lru_cache(65_536)
def _others(answers: Votes) -> dict[str, str]:
    """Each answer that was given -> the winner of all others, where they have a single one."""
    found = {}
    for at, given in enumerate(answers):
        rest = winner([*answers[:at], given - 1, *answers[at + 1 :]]) if given else None
        if rest is not None:
            found[CLASSES[at]] = rest
    return found


def distinct(found: Mapping[Votes, int]) -> tuple[IntArray, IntArray]:
    """Distinct counts of answers and how many utterances have each, [U, C] and [U]."""
    order = sorted(found)
    return np.array(order, np.int64), np.array([found[row] for row in order], np.int64)


def krippendorff_alpha(votes: IntArray, times: IntArray) -> float | None:
    """Krippendorff's alpha for nominal data; any number of raters an utterance.

    alpha = 1 - D_o / D_e with, over utterances u of m_u >= 2 answers and n answers in all,
    D_o = 1/n sum_u (m_u^2 - sum_c v_uc^2) / (m_u - 1) and
    D_e = (n^2 - sum_c n_c^2) / (n (n - 1))   (Krippendorff, "Computing Krippendorff's
    Alpha-Reliability", 2011). 1 is perfect agreement, 0 is chance.

    Returns:
        None where fewer than two answers can be compared or only one class was ever used.
    """
    votes, times = _comparable(votes, times)
    answers = votes.sum(axis=1)
    total = int((answers * times).sum())
    per_class = times @ votes
    expected = total**2 - sum(int(count) ** 2 for count in per_class)
    if not expected:
        return None
    differing = (answers**2 - (votes**2).sum(axis=1)) / (answers - 1)
    return float(1 - (total - 1) * (differing * times).sum() / expected)


@dataclass(frozen=True)
class Ceiling:
    """One rater judged by all others, over every rater and utterance.

    Attributes:
        accuracy, uar: of answers against the winner of the others' answers; UAR is the mean
            over the classes that won anywhere.
        answers: how many could be judged.
        undecided: share of answers left out because the others' had no single winner.
    """

    accuracy: float
    uar: float
    answers: int
    undecided: float


def leave_one_rater_out(votes: IntArray, times: IntArray) -> Ceiling | None:
    """What people reach on the task: each answer against the vote of the other raters.

    Needs counts only: taking one answer of class c away leaves the same rest whoever gave
    it. None where nobody can be compared.
    """
    votes, times = _comparable(votes, times)
    classes = votes.shape[1]
    confusion = np.zeros((classes, classes))  # the others' winner, the answer
    for answer in range(classes):
        given = votes[:, answer] > 0
        rest = votes[given] - np.eye(classes, dtype=np.int64)[answer]
        single = (rest == rest.max(axis=1, keepdims=True)).sum(axis=1) == 1
        weights = (votes[given, answer] * times[given])[single].astype(float)
        np.add.at(confusion[:, answer], rest[single].argmax(axis=1), weights)
    judged = confusion.sum()
    if not judged:
        return None
    wins = confusion.sum(axis=1)
    present = wins > 0
    return Ceiling(
        accuracy=float(np.trace(confusion) / judged),
        uar=float((np.diag(confusion)[present] / wins[present]).mean()),
        answers=int(judged),
        undecided=float(1 - judged / (votes.sum(axis=1) * times).sum()),
    )


def vote_entropy(votes: IntArray) -> npt.NDArray[np.float64]:
    """Entropy of each row's votes in bits, [U]; 0 where all agree, log2(C) at most."""
    shares = votes / np.maximum(votes.sum(axis=1, keepdims=True), 1)
    logs = np.log2(shares, out=np.zeros_like(shares, dtype=float), where=shares > 0)
    return -(shares * logs).sum(axis=1) + 0.0


def _comparable(votes: IntArray, times: IntArray) -> tuple[IntArray, IntArray]:
    several = votes.sum(axis=1) >= 2
    return votes[several], times[several]
