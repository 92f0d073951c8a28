"""How the models of a job are tested."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from multistill.config.base import Section

MAX_FOLDS = 100
"""Each has trainings of its own."""


class ProtocolConfig(Section):
    """`holdout` tests on one part; cross-validation tests every clip once; `cross-corpus` trains on
    each corpus and tests on all.

    Under cross-validation everything is trained once per fold: the teacher, its soft targets from
    the training part of that fold alone, students and controls. The predictions of all folds are
    scored together.
    """

    shorthand: ClassVar = ("kind",)

    kind: Literal["holdout", "k-fold", "leave-one-out", "cross-corpus"] = Field(
        "holdout",
        description="`holdout`: the test part of `split`; `k-fold`: groups in `folds` parts, each "
        "tested once; `leave-one-out`: every group tested alone; `cross-corpus`: trained on each "
        "corpus, tested on its test part and on all others",
    )
    by: Literal["speaker", "session", "corpus"] = Field(
        "speaker", description="cross-validation: what is tested together"
    )
    folds: int = Field(5, ge=2, le=100, description="`k-fold`: number of parts")
    repeats: int = Field(
        1,
        ge=1,
        le=20,
        description="`k-fold`: how often the folds are drawn, from `split.seed` on; everything "
        "is trained for each of them",
    )

    @model_validator(mode="after")
    def _check(self) -> ProtocolConfig:
        if self.repeats > 1 and self.kind != "k-fold":
            raise ValueError(
                f"`repeats` draws the folds of k-fold again, and `{self.kind}` draws none; use "
                "`kind: k-fold`, or remove `repeats`"
            )
        if self.repeats * self.folds > MAX_FOLDS and self.repeats > 1:
            raise ValueError(
                f"{self.repeats} `repeats` of {self.folds} folds are more than {MAX_FOLDS} folds "
                "with trainings of their own; use fewer of either"
            )
        return self

    @property
    def crosses(self) -> bool:
        """Whether everything is trained once per fold: a cross-validation or `cross-corpus`."""
        return self.kind != "holdout"
