"""The human ceiling on the test clips: one rater against the vote of the others.

Every answer of a test clip is scored against the single winner of the other answers to that clip
(leave one rater out, `multistill.corpora.agreement`), with the metrics, classes and resampled
groups of the models, so that the rows can be read together. Two things differ. A rater is
scored against one answer fewer than a model is. And clips on which the others have no single
winner are left out for that answer, as ties are for models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from multistill.corpora.agreement import answers_against_others
from multistill.corpora.manifest import MANIFEST
from multistill.damaged import read_table
from multistill.evaluation.scoring import Scorer
from multistill.metrics.classification import class_support, from_confusion
from multistill.metrics.intervals import intervals
from multistill.typing import DoubleArray, IntArray
from multistill.workspace import read_json

HUMAN = "one rater against the others"


def rated_corpora(quality: Path) -> dict[str, bool]:
    """The corpora whose raters' answers are known, and whether their votes are weighted ones.

    Args:
        quality: `quality.json` of the manifest; without the file, no corpus is known to be rated.
    """
    raters = (read_json(quality)["raters"] if quality.exists() else None) or {"corpora": {}}
    return {title: bool(found["weighted_votes"]) for title, found in raters["corpora"].items()}


def describe_human_ceiling(
    manifests: Sequence[Path], rated: Mapping[str, bool], scorer: Scorer
) -> dict[str, Any]:
    """The entry `human_ceiling` of metrics.json.

    Args:
        manifests: folders of the manifests of all folds, whose test parts are scored.
        rated: result of `rated_corpora`.

    Returns:
        `reason` why there is none, or None; then also `name`, `metrics` with intervals, `answers`
        and `clips` scored, `undecided` (share of the answers not scored), `corpora`, and
        `left_out`, a sentence about corpora that are not in it (None: there are none).
    """
    corpora, votes = _test_votes(manifests, scorer.clips.ids)
    weighted = sorted({*corpora} & {title for title, is_weighted in rated.items() if is_weighted})
    counted = {title for title, is_weighted in rated.items() if not is_weighted}
    left_out = _left_out(sorted({*corpora} - counted), weighted)
    votes[[title not in counted for title in corpora]] = 0
    several = votes.sum(axis=1) >= 2
    votes[~several] = 0
    cells = leave_one_out_cells(votes)
    scored = cells.sum(axis=1) > 0
    if not scored.any():
        if left_out is None:
            left_out = (
                "no test clip has answers of several raters"
                if not several.any()
                else "on no test clip do the other raters have a single winner"
            )
        return {"reason": left_out}
    classes = votes.shape[1]
    wins = cells.reshape(-1, classes, classes).sum(axis=2)
    clip, label = np.nonzero(wins)
    support = class_support(label.astype(np.int64), scorer.clusters.index[clip], classes)
    statistics = scorer.statistics
    values = from_confusion(statistics.confusion(cells.sum(axis=0)))
    draws = from_confusion(statistics.confusion(scorer.resampling.sums(cells)), support.present)
    groups = len(np.unique(scorer.clusters.index[scored]))
    metrics = intervals(values, support.without_rare(draws), scorer.confidence, groups)
    return {
        "reason": None,
        "name": HUMAN,
        "metrics": metrics,
        "answers": int(cells.sum()),
        "clips": int(scored.sum()),
        "undecided": float(1 - cells.sum() / votes.sum()),
        "corpora": sorted({corpora[row] for row in np.flatnonzero(scored)}),
        "left_out": left_out,
    }


def leave_one_out_cells(votes: IntArray) -> DoubleArray:
    """Counts [N, C * C] of (winner of the other answers, answer) of each clip.

    Args:
        votes: answers per class [N, C].
    """
    rows, classes = votes.shape
    cells = np.zeros((rows, classes, classes))
    for answer, given, winner in answers_against_others(votes):
        cells[given, winner, answer] = votes[given, answer]
    return cells.reshape(rows, classes * classes)


def _test_votes(manifests: Sequence[Path], ids: Sequence[str]) -> tuple[list[str], IntArray]:
    """Corpus and votes [N, C] of each clip; zeros where there are none."""
    found: dict[str, tuple[str, list[int] | None]] = {}
    for manifest in manifests:
        table = read_table(
            manifest / MANIFEST,
            columns=["utterance_id", "corpus", "votes"],
            filters=[("split", "=", "test")],
        ).to_pydict()
        for name, corpus, answers in zip(
            table["utterance_id"], table["corpus"], table["votes"], strict=True
        ):
            found[name] = corpus, answers
    rows = [found[name] for name in ids]
    classes = max((len(answers) for _, answers in rows if answers), default=2)
    none = [0] * classes
    return [corpus for corpus, _ in rows], np.array([answers or none for _, answers in rows])


def _left_out(missing: Sequence[str], weighted: Sequence[str]) -> str | None:
    """Why corpora are not in the ceiling."""
    parts = []
    unrated = [title for title in missing if title not in weighted]
    if unrated:
        parts.append(
            f"the corpus gives labels and no single answers of raters: {', '.join(unrated)}"
        )
    if weighted:
        parts.append(
            f"votes are weighted by intensity, so they are not answers of raters: "
            f"{', '.join(weighted)} (the ceiling of all its clips is under Corpus)"
        )
    return "; ".join(parts) or None
