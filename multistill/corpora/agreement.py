"""Inter-rater agreement from vote counts, and the human ceiling for models of these labels.

`votes` is [U, C], one row per distinct vote count, one column per class; `times` [U] is the
number of utterances with that count. Rows may have different sums. A million utterances rated
by ten people have at most 8,008 distinct rows over seven classes.

An answer is the choice of one rater. Votes that a corpus weights, for example by intensity, are
training targets only: counted as raters, they would agree with themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from multistill.corpora.labels import Votes, count, winner
from multistill.typing import DoubleArray, IntArray


class RaterTally:
    """Counts of the answers given by a corpus's raters.

    Args:
        classes: in the order of votes.

    Attributes:
        answers: number of utterances per vote count (in class order).
        compared: answers per rater (position in the corpus) where the other raters have a
            single winner.
        agreed: the part of `compared` that equals that winner.
        weighted: whether the votes of any utterance are not the count of its raters' answers.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self.answers: Counter[Votes] = Counter()
        self.agreed: Counter[int] = Counter()
        self.compared: Counter[int] = Counter()
        self.weighted = False

    def add(self, ratings: Sequence[str | None], votes: Votes | None) -> None:
        """Count one utterance, by its votes if the answers of single raters are unknown."""
        answers = count(ratings, self.classes) if ratings else votes
        if answers is None or not any(answers):
            return
        self.weighted |= votes is not None and answers != votes
        self.answers[answers] += 1
        winners = _winners_among_others(answers, self.classes)
        for rater, answer in enumerate(ratings):
            if answer in winners:
                self.compared[rater] += 1
                self.agreed[rater] += winners[answer] == answer

    def json(self) -> list[dict[str, Any]]:
        return [
            {"rater": rater + 1, "answers": compared, "accuracy": self.agreed[rater] / compared}
            for rater, compared in sorted(self.compared.items())
        ]


@lru_cache(65_536)
def _winners_among_others(answers: Votes, classes: tuple[str, ...]) -> dict[str, str]:
    """For each class with an answer: the winner once that answer is removed, if there is one."""
    winners = {}
    for index, number in enumerate(answers):
        if not number:
            continue
        rest = winner([*answers[:index], number - 1, *answers[index + 1 :]], classes)
        if rest is not None:
            winners[classes[index]] = rest
    return winners


def distinct(answers: Mapping[Votes, int]) -> tuple[IntArray, IntArray]:
    """`votes` [U, C] and `times` [U] from a count of vote counts, sorted by votes."""
    rows = sorted(answers)
    return np.array(rows, np.int64), np.array([answers[row] for row in rows], np.int64)


def krippendorff_alpha(votes: IntArray, times: IntArray) -> float | None:
    """Krippendorff's alpha for nominal data; the number of raters may vary by utterance.

    alpha = 1 - D_o / D_e with, over utterances u of m_u >= 2 answers and n answers in all,
    D_o = 1/n sum_u (m_u^2 - sum_c v_uc^2) / (m_u - 1) and
    D_e = (n^2 - sum_c n_c^2) / (n (n - 1))   (Krippendorff, "Computing Krippendorff's
    Alpha-Reliability", 2011). 1 is perfect agreement, 0 is chance.

    Returns:
        None if fewer than two answers can be compared or only one class was ever chosen.
    """
    votes, times = _with_several_answers(votes, times)
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
    """One rater scored against all others, averaged over raters and utterances.

    Attributes:
        accuracy, uar: of answers against the winner of the other answers; UAR is the mean
            over the classes that won at least once.
        answers: number of answers scored.
        undecided: share of answers not scored because the others have no single winner.
    """

    accuracy: float
    uar: float
    answers: int
    undecided: float


def answers_against_others(votes: IntArray) -> Iterator[tuple[int, IntArray, IntArray]]:
    """The answers that the other raters' votes decide, class by class.

    Counts are enough: removing one answer of class c leaves the same rest whichever rater gave it.

    Args:
        votes: counts [N, C], two or more in every row that counts.

    Yields:
        an answer's class, the rows where the other votes have a single winner, and that winner.
    """
    for answer, one in enumerate(np.eye(votes.shape[1], dtype=np.int64)):
        rows = np.flatnonzero(votes[:, answer] > 0)
        rest = votes[rows] - one
        single = (rest == rest.max(axis=1, keepdims=True)).sum(axis=1) == 1
        yield answer, rows[single], rest[single].argmax(axis=1)


def leave_one_rater_out(votes: IntArray, times: IntArray) -> Ceiling | None:
    """Human performance on the task: each answer against the vote of the other raters.

    None if no answer can be compared.
    """
    votes, times = _with_several_answers(votes, times)
    classes = votes.shape[1]
    confusion = np.zeros((classes, classes))  # [winner of the others, answer]
    for answer, rows, winners in answers_against_others(votes):
        weights = (votes[rows, answer] * times[rows]).astype(float)
        np.add.at(confusion[:, answer], winners, weights)
    scored = confusion.sum()
    if not scored:
        return None
    wins = confusion.sum(axis=1)
    present = wins > 0
    return Ceiling(
        accuracy=float(np.trace(confusion) / scored),
        uar=float((np.diag(confusion)[present] / wins[present]).mean()),
        answers=int(scored),
        undecided=float(1 - scored / (votes.sum(axis=1) * times).sum()),
    )


def vote_entropy(votes: IntArray) -> DoubleArray:
    """Entropy of each row's votes in bits, [U]: 0 if all agree, at most log2(C)."""
    shares = votes / np.maximum(votes.sum(axis=1, keepdims=True), 1)
    logs = np.log2(shares, out=np.zeros_like(shares, dtype=float), where=shares > 0)
    return -(shares * logs).sum(axis=1) + 0.0  # no negative zeros


def _with_several_answers(votes: IntArray, times: IntArray) -> tuple[IntArray, IntArray]:
    several = votes.sum(axis=1) >= 2
    return votes[several], times[several]
