"""Points of `label_shares` as in metrics.json, for tests of what shows them."""

from __future__ import annotations

from typing import Any


def point(
    student: str = "audio",
    share: float = 0.1,
    gain: float | None = 0.05,
    half: float | None = 0.02,
    **more: Any,
) -> dict[str, Any]:
    """A point with one gain for both metrics, and an interval of `half` on either side of it."""
    ends = gain is not None and half is not None
    measured = {
        "value": gain,
        "low": gain - half if ends else None,
        "high": gain + half if ends else None,
    }
    above = ends and gain > half

    def scores(value: float) -> dict[str, Any]:
        found = {"value": value, "sd": 0.01, "low": value - 0.1, "high": value + 0.1}
        return {name: {**found, "values": [value, value]} for name in ("uar", "macro_f1")}

    return {
        "student": student,
        "share": share,
        "labelled_clips": round(288 * share),
        "train_clips": round(288 * share),
        "seeds": 5,
        "distilled": scores(0.4 + (gain or 0.0)),
        "control": scores(0.4),
        "majority": {"uar": 0.143, "macro_f1": 0.061},
        "gain": {"uar": measured, "macro_f1": measured},
        "verdict": "helped" if above else "cannot tell",
        "sentence": "",
        "not_trained": {},
        **more,
    }
