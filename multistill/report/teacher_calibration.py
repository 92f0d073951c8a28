"""The teacher's calibration where it was trained and where it was not.

Students learn from the teacher's answers on training clips. Answers on clips that the
teacher has seen are over-confident; out-of-fold answers are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from multistill.distillation.targets import read_soft_targets
from multistill.evaluation.utterances import read_utterances
from multistill.metrics.classification import calibration_of, regressed, softmax

SOFT_TARGETS = "soft_targets.parquet"


def teacher_calibration(
    measured: Mapping[str, Any], manifest: Path, distill: Path, bins: int
) -> list[dict[str, Any]]:
    """A line per kind of clips: in sample, out of fold, validation, test.

    Args:
        measured: metrics.json of the evaluation.
        manifest, distill: folders of the manifest and of the soft targets.
    """
    teacher = next((model for model in measured["models"] if model["role"] == "teacher"), None)
    if teacher is None:
        return []
    lines = [{"name": "training, seen by the teacher", **teacher["in_sample"]}]
    distribution = regressed if teacher["output"] == "shares" else softmax
    targets = read_soft_targets(distill / SOFT_TARGETS)
    place = {name: row for row, name in enumerate(targets.ids)}
    for split, name, of_fold in (
        ("train", "training, out of fold", True),
        ("valid", "validation", False),
    ):
        clips = read_utterances(manifest, split, place)
        rows = np.array([place[utterance] for utterance in clips.ids], dtype=np.int64)
        chosen = (targets.fold[rows] >= 0) == of_fold
        if (clips.truth[chosen] >= 0).any():
            probabilities = distribution(targets.logits[rows[chosen]])
            found = calibration_of(clips.truth[chosen], probabilities, clips.shares[chosen], bins)
            lines.append({"name": name, **found})
    metrics = teacher["metrics"]
    lines.append(
        {
            "name": "test",
            "clips": measured["test"]["decided"],
            **{key: metrics[key]["value"] for key in ("accuracy", "ece", "nll")},
        }
    )
    return lines
