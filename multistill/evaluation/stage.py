"""The evaluate stage as a function that can be sent to a Ray worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def evaluate_models(
    manifest: str,
    features: str,
    candidates: Sequence[Mapping[str, Any]],
    config: Mapping[str, Any],
    out: str,
    seed: int,
) -> Mapping[str, Any]:
    """`evaluate` with arguments of plain types, which can be serialised for a Ray task."""
    from multistill.config import EvaluationConfig
    from multistill.evaluation.evaluate import Candidate, evaluate
    from multistill.tracking.logger import NullLogger

    return evaluate(
        Path(manifest),
        Path(features),
        [Candidate(**candidate) for candidate in candidates],
        EvaluationConfig.model_validate(config),
        Path(out),
        NullLogger(),
        seed=seed,
    )
