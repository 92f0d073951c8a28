"""Whether a training learnt anything: it has to beat a model that did not, or it is `not trained`.

The training loss has to fall, unless a schedule changes what it is of, and validation has to pass
the margin of guessing (`metrics.majority.bars`); the test set has to confirm it against the
majority baseline. The loss counts because clips of one class may lie close together: a network
with random weights then answers alike for all of them, and is right for a whole class by luck.
Nothing is chosen here, so test may be read.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from multistill.evaluation.figures import single_numbers
from multistill.metrics.majority import beats

METRICS = ("uar", "macro_f1")
MIN_FALL = 0.99
"""A training whose loss ends above this share of its first epoch's learnt nothing."""

Training = Mapping[str, Any]
"""The entry `training` of a model's config.json."""


def why_not_trained(model: Mapping[str, Any], baseline: Mapping[str, Any]) -> str | None:
    """Why a model is called `not trained`, as a sentence; None if it beats the majority.

    Args:
        model, baseline: entries of metrics.json.
    """
    reason = not_trained_on_validation(model["training"])
    if reason is not None:
        return reason
    if "uar" not in baseline["metrics"]:
        return None  # of dimensions alone; the mean of training says nothing about test
    scores = single_numbers(model)
    majority = {name: baseline["metrics"][name]["value"] for name in METRICS}
    if any(scores[name] is None for name in majority):
        return None
    return not_trained_on_test({name: scores[name] or 0.0 for name in majority}, majority)


def not_trained_on_validation(trainings: Sequence[Training]) -> str | None:
    """Why these trainings of one model learnt nothing, as a sentence; None if they did.

    Args:
        trainings: of one model: members of an ensemble, or one per seed. Their means count.
    """
    losses = _losses(trainings)
    if losses and trainings[0]["epochs"] > 1 and losses[1] > MIN_FALL * losses[0]:
        return f"not trained: {_advice(trainings)}"
    measured = [training["validation"] for training in trainings]
    if None in measured:
        return None
    if "ccc" in measured[0]["bars"]:
        ccc = statistics.fmean(entry["ccc"] for entry in measured)
        constant = f"on validation the CCC is {ccc:.3f}, and that of a constant 0"
        return None if ccc > 0 else f"not trained: {constant}; {_advice(trainings)}"
    scores = {name: statistics.fmean(entry[name] for entry in measured) for name in METRICS}
    bar = {name: statistics.fmean(entry["bars"][name] for entry in measured) for name in METRICS}
    if beats(scores, bar):
        return None
    return (
        f"not trained: on validation UAR is {scores['uar']:.3f} and macro F1 "
        f"{scores['macro_f1']:.3f}, where guessing reaches UAR {bar['uar']:.3f} and always "
        f"answering {measured[0]['majority']} macro F1 {bar['macro_f1']:.3f}; {_advice(trainings)}"
    )


def not_trained_on_test(scores: Mapping[str, float], baseline: Mapping[str, float]) -> str | None:
    """Why a model that beat the majority on validation did not on test; None if it did.

    Args:
        scores: `uar` and `macro_f1` of the model on test; baseline: those of the majority.
    """
    if all(scores[name] > baseline[name] for name in METRICS):
        return None
    return (
        f"not trained: on test UAR is {scores['uar']:.3f} and macro F1 {scores['macro_f1']:.3f}, "
        f"not above the majority's {baseline['uar']:.3f} and {baseline['macro_f1']:.3f}, though on "
        "validation the model was better; look at the class counts of the parts and at the slices "
        "by session"
    )


def _advice(trainings: Sequence[Training]) -> str:
    """What to look at, by how far the training loss fell."""
    losses = _losses(trainings)
    settings = trainings[0]
    used = (
        f"train.learning_rate {settings['learning_rate']:g}, train.batch_size "
        f"{settings['batch_size']}, train.epochs {settings['budget']}: {settings['steps']} steps"
    )
    if losses is None:
        return (
            "look at the labels and the class counts of the parts, or raise the rate or the "
            f"epochs ({used})"
        )
    first, last = losses
    fell = f"the training loss went from {first:.3f} to {last:.3f}"
    if last > 0.9 * first:
        return (
            f"{fell}, so it hardly learnt its own clips: raise the rate or the epochs ({used}), "
            "and see whether the linear probe finds anything in the features"
        )
    return (
        f"{fell}, so it learnt its own clips and nothing that holds for validation: look at the "
        f"labels and the class counts of the parts, and compare the linear probe ({used})"
    )


def _losses(trainings: Sequence[Training]) -> tuple[float, float] | None:
    """Training loss of the first and of the last epoch, means over the trainings.

    None if a schedule changes the objective, so that the two cannot be compared.
    """
    if any(training["train_loss"] is None for training in trainings):
        return None
    first, last = (statistics.fmean(t["train_loss"][i] for t in trainings) for i in (0, 1))
    return first, last
