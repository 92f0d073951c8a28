"""The teacher's calibration on clips it was trained on and on clips it was not.

Students learn from the teacher's predictions for training clips. Predictions for clips that the
teacher was trained on are over-confident; out-of-fold predictions are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from multistill.distillation.files import SOFT_TARGETS
from multistill.distillation.targets import read_soft_targets
from multistill.evaluation.utterances import read_utterances
from multistill.metrics.classification import calibration_summary


def teacher_calibration(
    metrics: Mapping[str, Any], manifest: Path, distill: Path, bins: int
) -> list[dict[str, Any]]:
    """Calibration in sample, out of fold, on validation and on test.

    Args:
        metrics: metrics.json of the evaluation.
        manifest, distill: folders of the manifest and of the soft targets.
        bins: number of confidence bins.
    """
    teacher = next((model for model in metrics["models"] if model["role"] == "teacher"), None)
    if teacher is None:
        return []
    rows = [{"name": "training, seen by the teacher", **teacher["in_sample"]}]
    targets = read_soft_targets(distill / SOFT_TARGETS)
    distributions = targets.distributions
    index_of = {utterance: index for index, utterance in enumerate(targets.ids)}
    for split, name, out_of_fold in (
        ("train", "training, out of fold", True),
        ("valid", "validation", False),
    ):
        clips = read_utterances(manifest, split, index_of)
        indices = np.array([index_of[utterance] for utterance in clips.ids], dtype=np.int64)
        chosen = (targets.fold[indices] >= 0) == out_of_fold
        if (clips.truth[chosen] >= 0).any():
            probabilities = distributions[indices[chosen]]
            summary = calibration_summary(
                clips.truth[chosen], probabilities, clips.shares[chosen], bins
            )
            rows.append({"name": name, **summary})
    test_metrics = teacher["metrics"]
    rows.append(
        {
            "name": "test",
            "clips": metrics["test"]["decided"],
            **{key: test_metrics[key]["value"] for key in ("accuracy", "ece", "nll")},
        }
    )
    return rows
