"""How the models of a job are tested."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from multistill.config.base import Section


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

    @property
    def crosses(self) -> bool:
        """Whether everything is trained once per fold: a cross-validation or `cross-corpus`."""
        return self.kind != "holdout"
