"""The `evaluation` section of the job file: how models are scored on the test set."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from multistill.config.base import Section


class EvaluationConfig(Section):
    """Bootstrap, calibration and latency settings of the `evaluate` stage."""

    resamples: int = Field(
        1000, ge=100, description="bootstrap resamples of the groups that the split keeps together"
    )
    confidence: float = Field(0.95, gt=0.5, lt=1, description="of all intervals")
    calibration_bins: int = Field(15, ge=2, description="bins of the calibration error (ECE)")
    coverage: float = Field(
        0.8,
        gt=0,
        le=1,
        description="share of the validation clips that a threshold of the confidence keeps",
    )
    risk: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of wrong answers that is accepted among those that are kept: a second "
        "threshold, which keeps as many validation clips as it allows",
    )
    latency_clips: int = Field(
        20, ge=0, description="clips timed at batch size 1; 0 disables timing"
    )
    robustness: bool = Field(
        False,
        description="score the models on distorted test clips, too: noise, telephone, room, wrong "
        "words; encodes the test clips about eleven times more",
    )
    opensmile: list[Literal["egemaps", "compare"]] = Field(
        default_factory=list,
        description="openSMILE functionals whose linear SVM and logistic regression stand beside "
        "the models; needs the package opensmile, which is for research only",
    )

    @field_validator("opensmile")
    @classmethod
    def _is_of_different_sets(cls, value: list[str]) -> list[str]:
        if len(set(value)) < len(value):
            raise ValueError("a set is listed twice; remove one")
        return value
