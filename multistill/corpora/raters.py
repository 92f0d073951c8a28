"""How far raters agree, from vote counts: the ceiling for any model of their labels.

`votes` is [U, C], one row for each distinct count of votes, one column a class; `times` [U]
says how many utterances have it. Rows may differ in their sum. A million utterances rated by
ten people have at most 8,008 distinct rows over seven classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]


def distinct(parts: Iterable[npt.NDArray[np.integer]]) -> tuple[Counts, Counts]:
    """Distinct rows of vote counts and how often each stands in the parts, [U, C] and [U]."""
    found: Counter[tuple[int, ...]] = Counter()
    for part in parts:
        found.update(map(tuple, part.tolist()))
    order = sorted(found)
    return np.array(order, np.int64), np.array([found[row] for row in order], np.int64)


def krippendorff_alpha(votes: Counts, times: Counts) -> float | None:
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


def leave_one_rater_out(votes: Counts, times: Counts) -> Ceiling | None:
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


def vote_entropy(votes: Counts) -> npt.NDArray[np.float64]:
    """Entropy of each row's votes in bits, [U]; 0 where all agree, log2(C) at most."""
    shares = votes / np.maximum(votes.sum(axis=1, keepdims=True), 1)
    logs = np.log2(shares, out=np.zeros_like(shares, dtype=float), where=shares > 0)
    return -(shares * logs).sum(axis=1) + 0.0


def _comparable(votes: Counts, times: Counts) -> tuple[Counts, Counts]:
    several = votes.sum(axis=1) >= 2
    return votes[several], times[several]
