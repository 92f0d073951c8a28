"""The evaluate stage as a function whose arguments travel to a Ray worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def evaluate_models(
    manifest: str,
    features: str,
    entries: Sequence[Mapping[str, Any]],
    config: Mapping[str, Any],
    out: str,
    seed: int,
) -> Mapping[str, Any]:
    """`evaluation.evaluate` with arguments that travel."""
    from multistill.config import EvaluationConfig
    from multistill.evaluation.evaluate import Candidate, evaluate
    from multistill.tracking.logger import NullLogger

    return evaluate(
        Path(manifest),
        Path(features),
        [Candidate(**entry) for entry in entries],
        EvaluationConfig.model_validate(config),
        Path(out),
        NullLogger(),
        seed=seed,
    )
