"""Analysis of a finished study for the report: importance, history, T x weight plane.

Only the study is read, so a search of thousands of trials is analysed in seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from multistill.search.storage import had_its_budget, quiet_optuna

if TYPE_CHECKING:
    import optuna

_MIN_TRIALS = 10
_MAX_TRIALS = 1000
"""A forest on the newest trials gives the same importance as one on all of them, sooner."""
_CELLS = 6


def importance(study: optuna.Study, seed: int) -> dict[str, float]:
    """Share of the variance of the value that each parameter explains (fANOVA, Hutter 2014).

    Computed from trials that had their full budget, since the values of others depend on
    their length too. Only parameters that all these trials have can be compared. Empty with
    fewer than ten trials or equal values. Largest first.
    """
    import optuna
    from optuna.trial import TrialState

    complete = [
        trial
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if trial.values and had_its_budget(trial)
    ][-_MAX_TRIALS:]
    if len(complete) < _MIN_TRIALS or len({trial.values[0] for trial in complete}) < 2:
        return {}
    common = set.intersection(*(set(trial.params) for trial in complete))
    varied = sorted(
        name for name in common if len({repr(trial.params[name]) for trial in complete}) > 1
    )
    if not varied:
        return {}
    with quiet_optuna():
        reduced = optuna.create_study(direction=study.directions[0].name.lower())
        reduced.add_trials(
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
        shares = optuna.importance.get_param_importances(reduced, evaluator=evaluator)
    return {name: round(float(share), 4) for name, share in shares.items()}


def history(rows: list[dict[str, Any]], mode: str) -> list[dict[str, Any]]:
    """Every trial that improved on all before it, with what was spent until then.

    Only trials at full budget can improve; `spent_epochs` and `spent_seconds` are summed over
    all trials.
    """
    sign = 1.0 if mode == "max" else -1.0
    best, epochs, seconds, improvements = -np.inf, 0, 0.0, []
    for row in rows:
        epochs += row["epochs"]
        seconds += row["seconds"]
        if row["state"] == "complete" and sign * row["value"] > best:
            best = sign * row["value"]
            improvements.append(
                {
                    "trial": row["trial"],
                    "value": row["value"],
                    "spent_epochs": epochs,
                    "spent_seconds": round(seconds, 3),
                }
            )
    return improvements


def grid(rows: list[dict[str, Any]], x: str, y: str) -> dict[str, Any] | None:
    """Mean value of the trials in each cell of two numeric parameters; None unless both vary.

    Returns:
        `x`, `y` (names), `x_edges`, `y_edges` (cells + 1 each), `mean` [cells][cells] indexed
        by y, then x, with None in empty cells, and `count` of the same shape.
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
