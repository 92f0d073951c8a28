"""Scores over the repetitions of a cross-validation, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def repetition_lines(report: Mapping[str, Any]) -> list[str]:
    """A line per model: its mean and deviation over the repetitions."""
    repeats = report["protocol"]["repeats"]
    lines = []
    for model in report["models"] if repeats > 1 else []:
        scores = ", ".join(
            f"{title} {found['mean']:.3f} SD {found['sd']:.3f}"
            for metric, title in (("macro_f1", "macro F1"), ("uar", "UAR"))
            if (found := model["repetitions"][metric])["sd"] is not None
        )
        lines.append(
            f"{model['name']}, {repeats} repetitions of the folds: {scores or 'undefined'}"
        )
    return lines
