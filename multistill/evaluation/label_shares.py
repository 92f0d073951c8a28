"""Gain from distillation by share of the training labels, for `label_shares` of a job.

A point is a student and its control that were given the same share of the labels, each trained
from several seeds, of which every one drew its own labels. The gain is the difference of the
means over seeds, with the interval of `multistill.evaluation.comparisons`: it holds the variance
between test groups and that between trainings, draws included. These models are scored like the
others, but are no candidates for the best student: a point is of an experiment, not a model to
hand over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from multistill.evaluation.candidates import Candidate
from multistill.evaluation.comparisons import judge_family
from multistill.evaluation.scoring import Scorer
from multistill.evaluation.trained import METRICS, why_not_trained


def describe_label_shares(
    candidates: Sequence[Candidate],
    models: Mapping[str, Mapping[str, Any]],
    baseline: Mapping[str, Any],
    scorer: Scorer,
) -> list[dict[str, Any]]:
    """The points as in metrics.json, one per student and share, in the order of the job.

    Args:
        candidates: those with a `label_share`, already scored by `scorer`.
        models: per candidate `training`, its summary of every seed, and `seeds`, what
            `Scorer.score_seeds` returned.
        baseline: entry of metrics.json.

    Returns:
        for each point `student`, `share`, `labelled_clips` of training, `train_clips` that the
        distilled student learns from (more, where it reads clips without label), `seeds`;
        `distilled` and `control`, with `value` (mean over seeds), `sd`, `low` and `high` of
        UAR and macro F1; `majority`, their values of the majority baseline; `gain`, distilled
        minus control, with `value`, `low`, `high`, `p` and `p_holm`, adjusted for all points;
        `verdict` and `sentence` on macro F1;
        `not_trained`, why, by `distilled` and `control`.
    """
    scored, not_trained_by_point, comparisons = [], [], []
    for candidate in candidates:
        if candidate.label_share is None or candidate.compare_to is None:
            continue
        pair = {"distilled": candidate.name, "control": candidate.compare_to}
        reasons = {
            role: why_not_trained(
                {**models[name], "metrics": models[name]["seeds"]["metrics"]}, baseline
            )
            for role, name in pair.items()
        }
        not_trained = {role: reason for role, reason in reasons.items() if reason}
        scored.append((*candidate.label_share, pair))
        not_trained_by_point.append(not_trained)
        comparisons.append(
            scorer.compare(
                candidate.name,
                candidate.compare_to,
                {pair[role]: reason for role, reason in not_trained.items()},
            )
        )
    points = []
    for (student, share, pair), not_trained, comparison in zip(
        scored, not_trained_by_point, judge_family(comparisons, scorer.confidence), strict=True
    ):
        training = models[pair["distilled"]]["training"][0]
        points.append(
            {
                "student": student,
                "share": share,
                "labelled_clips": training["labelled_rows"],
                "train_clips": training["train_rows"],
                "seeds": comparison["seeds"],
                **{role: _scores(models[name]["seeds"]) for role, name in pair.items()},
                "majority": {name: baseline["metrics"][name]["value"] for name in METRICS},
                "gain": {name: comparison["differences"][name] for name in METRICS},
                "verdict": comparison["verdict"],
                "sentence": comparison["sentence"],
                "not_trained": not_trained,
            }
        )
    return points


def _scores(seeds: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("value", "sd", "low", "high", "values")
    return {name: {key: seeds["metrics"][name][key] for key in keys} for name in METRICS}
