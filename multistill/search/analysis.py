"""What a finished study says about the settings, as data for the report.

Everything here reads the study only, so a search of thousands of trials is analysed in a
second and again whenever the report is made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from multistill.search.storage import quiet_optuna

if TYPE_CHECKING:
    import optuna

_ENOUGH = 10
_MOST = 1000
"""A forest on the newest trials tells what one on all of them does, sooner."""
_CELLS = 6


def importance(study: optuna.Study, seed: int) -> dict[str, float]:
    """Share of the variance of the value that each parameter explains (fANOVA, Hutter 2014).

    From trials that had their full budget, since others differ by their length too. Only
    parameters that every such trial has can be compared; empty with fewer than ten trials
    or values that are all the same. Largest first.
    """
    import optuna
    from optuna.trial import TrialState

    complete = [
        trial
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if trial.values
    ][-_MOST:]
    if len(complete) < _ENOUGH or len({trial.values[0] for trial in complete}) < 2:
        return {}
    common = set.intersection(*(set(trial.params) for trial in complete))
    varied = sorted(
        name for name in common if len({repr(trial.params[name]) for trial in complete}) > 1
    )
    if not varied:
        return {}
    with quiet_optuna():
        slim = optuna.create_study(direction=study.directions[0].name.lower())
        slim.add_trials(
            [
                optuna.trial.create_trial(
                    params={name: trial.params[name] for name in varied},
                    distributions={name: trial.distributions[name] for name in varied},
                    value=trial.values[0],
                )
                for trial in complete
            ]
        )
        # Optuna's default forest takes minutes for thousands of trials, this one a second.
        evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=32, max_depth=6, seed=seed)
        found = optuna.importance.get_param_importances(slim, evaluator=evaluator)
    return {name: round(float(share), 4) for name, share in found.items()}


def history(rows: list[dict[str, Any]], mode: str) -> list[dict[str, Any]]:
    """Every trial that improved on all before it, with the epochs spent until then.

    Only trials at full budget count: `spent_epochs` and `spent_seconds` are of all trials.
    """
    sign = 1.0 if mode == "max" else -1.0
    best, epochs, seconds, found = -np.inf, 0, 0.0, []
    for row in rows:
        epochs += row["epochs"]
        seconds += row["seconds"]
        if row["state"] == "complete" and sign * row["value"] > best:
            best = sign * row["value"]
            found.append(
                {
                    "trial": row["trial"],
                    "value": row["value"],
                    "spent_epochs": epochs,
                    "spent_seconds": round(seconds, 3),
                }
            )
    return found


def grid(rows: list[dict[str, Any]], x: str, y: str) -> dict[str, Any] | None:
    """Mean value of the trials in each cell of two numeric parameters; None if not both vary.

    Returns:
        `x`, `y` (names), `x_edges`, `y_edges` (cells + 1 each), `mean` [cells][cells] by y
        then x with None where no trial lies, and `count` likewise.
    """
    points = [
        (row["params"][x], row["params"][y], row["value"])
        for row in rows
        if row["value"] is not None and {x, y} <= set(row["params"])
    ]
    if not points:
        return None
    values = np.asarray(points, dtype=np.float64)
    if np.ptp(values[:, 0]) == 0 or np.ptp(values[:, 1]) == 0:
        return None
    bins = (
        np.linspace(values[:, 1].min(), values[:, 1].max(), _CELLS + 1),
        np.linspace(values[:, 0].min(), values[:, 0].max(), _CELLS + 1),
    )
    count, _, _ = np.histogram2d(values[:, 1], values[:, 0], bins=bins)
    total, _, _ = np.histogram2d(values[:, 1], values[:, 0], bins=bins, weights=values[:, 2])
    mean = [
        [round(float(t / c), 6) if c else None for t, c in zip(totals, counts, strict=True)]
        for totals, counts in zip(total, count, strict=True)
    ]
    return {
        "x": x,
        "y": y,
        "x_edges": [round(float(edge), 6) for edge in bins[1]],
        "y_edges": [round(float(edge), 6) for edge in bins[0]],
        "mean": mean,
        "count": count.astype(int).tolist(),
    }
