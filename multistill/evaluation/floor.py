"""The floor: what a head has to beat to be worth training, said in one line.

The floor is the best linear probe and the majority class. Which probe is best, and which student
is named, is chosen on validation: the best of several on the test set would be luck in part, and
no interval shows that. Every interval is of its own difference; the sentence judges the teacher
and one student only, named before the test set is seen, so there is none to pick from and its
claims are not corrected. Who picks from all rows has p-values for that: the comparisons with the
probes are one family (does any head beat a linear model), those with the majority another.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from multistill.evaluation.comparisons import side_of_zero
from multistill.evaluation.figures import METRIC_TITLES, PRIMARY_METRIC, over_seeds
from multistill.metrics.multiple_tests import holm

Standing = Literal["above", "below", "not shown", "no interval", "not trained"]
Interval = Mapping[str, float | None]
Difference = Callable[[str, str], Interval]
"""Paired difference, first minus second, of two scored names, with `value`, `low` and `high`."""


def describe_floor(
    models: Sequence[Mapping[str, Any]],
    probes: Sequence[Mapping[str, Any]],
    baseline: Mapping[str, Any],
    difference: Difference,
    confidence: float,
    metric: str = PRIMARY_METRIC,
) -> dict[str, Any]:
    """Teacher and students against the best probe and the majority.

    Args:
        models, probes, baseline: entries of metrics.json.
        metric: that `difference` is of.

    Returns:
        `metric`; `probe` (name of the best, None without any) and `chosen_on` (`validation`, or
        None where it has no labelled clip: then the probe that reads most); `student`, the one
        with the best score on validation (None without any); `models`, for teacher and every
        student: `to_probe`, `to_own_probe` (of its modality, None if that is the best) and
        `to_majority`, each a difference with `standing`, `p` and `p_holm`; `sentence`.
    """
    probe, chosen_on = best_probe(probes)
    reference = None if probe is None else probe["name"]
    own = {entry["modality"]: entry["name"] for entry in probes}

    def against(model: Mapping[str, Any], name: str | None) -> dict[str, Any] | None:
        if name is None:
            return None
        found = difference(model["name"], name)
        return {"against": name, **found, "standing": standing(found, model["not_trained"])}

    judged = [model for model in models if model["role"] in ("teacher", "student")]
    rows: list[dict[str, Any]] = []
    for model in judged:
        same = own.get(model["modality"])
        rows.append(
            {
                "model": model["name"],
                "role": model["role"],
                "seeds": (model.get("seeds") or {}).get("count", 1),
                "value": over_seeds(model, metric)["value"],
                "to_probe": against(model, reference),
                "to_own_probe": against(model, None if same == reference else same),
                "to_majority": against(model, baseline["name"]),
            }
        )
    _adjust(rows, ("to_probe", "to_own_probe"))
    _adjust(rows, ("to_majority",))
    result = {
        "metric": metric,
        "probe": reference,
        "chosen_on": chosen_on,
        "student": best_student(judged, metric),
        "models": rows,
    }
    return {**result, "sentence": _sentence(result, probe, baseline, difference, confidence)}


def _adjust(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> None:
    """Set `p_holm` of the differences under `keys` of all rows: one family.

    Models that learnt nothing are in none, as in `comparisons.judge_family`.
    """
    made = [row[key] for row in rows for key in keys if row[key] is not None]
    for found in made:
        found["p_holm"] = None
    family = [found for found in made if found["standing"] != "not trained"]
    for found, adjusted in zip(family, holm([each.get("p") for each in family]), strict=True):
        found["p_holm"] = adjusted


def best_probe(
    probes: Sequence[Mapping[str, Any]],
) -> tuple[Mapping[str, Any] | None, Literal["validation"] | None]:
    """The probe with the highest macro F1 on validation, and what it was chosen on.

    Without validation scores, the one that reads most (most parameters).
    """
    scored = [probe for probe in probes if probe["validation"] is not None]
    if scored:
        return max(scored, key=lambda probe: float(probe["validation"])), "validation"
    return max(probes, key=lambda probe: int(probe["params_trainable"]), default=None), None


def best_student(models: Sequence[Mapping[str, Any]], metric: str = PRIMARY_METRIC) -> str | None:
    """The student with the highest mean metric on validation; the first without scores.

    One that learnt nothing is named only if all did.
    """
    students = [model for model in models if model["role"] == "student"]
    trained = [model for model in students if not model["not_trained"]]

    def on_validation(model: Mapping[str, Any]) -> float:
        scores = [training["validation"] for training in model["training"]]
        if not scores or None in scores:
            return -1.0
        return statistics.fmean(score[metric] for score in scores)

    best = max(trained or students, key=on_validation, default=None)
    return None if best is None else str(best["name"])


def standing(difference: Interval, not_trained: str | None = None) -> Standing:
    """Which side of zero an interval is on; an interval of one point tells nothing."""
    if not_trained:
        return "not trained"
    side = side_of_zero(difference["low"], difference["high"])
    return "not shown" if side == "both" else side


def _sentence(
    floor: Mapping[str, Any],
    probe: Mapping[str, Any] | None,
    baseline: Mapping[str, Any],
    difference: Difference,
    confidence: float,
) -> str:
    title = METRIC_TITLES[floor["metric"]]
    constant = "always " + baseline["label"] if "label" in baseline else baseline["name"]
    opening = f"Test {title}, {100 * confidence:.0f} % paired intervals: "
    majority = _number(baseline["metrics"][floor["metric"]]["value"])
    if probe is None:
        bar = f"no linear probe; {constant} {majority}."
    else:
        how = "best of" if floor["chosen_on"] else "no validation clips to choose on; one of"
        on = " on validation" if floor["chosen_on"] else ""
        bar = (
            f"{probe['name']} {_number(probe['metrics'][floor['metric']]['value'])} "
            f"({how} the probes{on}); {constant} {majority}."
        )
    rows = {row["model"]: row for row in floor["models"]}
    named = [row for row in floor["models"] if row["role"] == "teacher"]
    if floor["student"] is not None:
        named.append(rows[floor["student"]])
    if not named:
        if probe is None:
            return f"{opening}no head was trained; {bar}"
        rise = _against(difference(probe["name"], baseline["name"]), _baseline(baseline["name"]))
        return f"{opening}no head was trained; {bar} The probe is {rise}."
    students = sum(row["role"] == "student" for row in floor["models"])
    parts = [_model(row, students) for row in named]
    return f"{opening}{'; '.join(parts)}. Floor: {bar}"


def _model(row: Mapping[str, Any], students: int) -> str:
    who = str(row["model"])
    if row["role"] == "student":
        chosen = f" (best of {students} on validation)" if students > 1 else ""
        who = f"student {who}{chosen}"
    text = f"{who} {_number(row['value'])}"
    if row["seeds"] > 1:
        text += f" (mean of {row['seeds']} seeds)"
    if row["to_majority"]["standing"] == "not trained":
        return f"{text} is NOT TRAINED, so beats nothing"
    if row["to_probe"] is None:
        reference = _baseline(row["to_majority"]["against"])
        return f"{text}, {_against(row['to_majority'], reference)}"
    own = row["to_own_probe"]
    compared = [_against(row["to_probe"], "the best probe")]
    if own is not None:
        compared.append(_against(own, f"the {str(own['against']).rpartition(', ')[2]} probe"))
    compared.append(_against(row["to_majority"], _baseline(row["to_majority"]["against"])))
    return f"{text}, {', '.join(compared[:-1])} and {compared[-1]}"


def _baseline(name: str) -> str:
    """`the majority` of `majority baseline`, `the training mean`."""
    return f"the {name.removesuffix(' baseline')}"


def _against(difference: Interval, reference: str) -> str:
    """`+0.080 [+0.020, +0.140] above the best probe`, or `to` it where that is not shown."""
    value, low, high = difference["value"], difference["low"], difference["high"]
    if value is None:
        return f"not comparable with {reference}"
    found = standing(difference)
    if low is None or high is None or found == "no interval":
        return f"{value:+.3f} (no interval) to {reference}"
    measured = f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"
    if found == "not shown":
        return f"{measured} to {reference} (not shown to beat it)"
    return f"{measured} {found} {reference}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
