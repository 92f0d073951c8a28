"""The `label_shares` section of the job file: gain from distillation with fewer labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from multistill.config.base import Section

Share = Annotated[float, Field(gt=0, le=1)]


class LabelSharesConfig(Section):
    """Students that get a share of the training labels, with a teacher that got all of them.

    A job without this section trains none; `label_shares: true` takes all defaults.
    """

    switch: ClassVar = "enabled"

    enabled: bool = Field(True, description="`label_shares: false` is short for `{enabled: false}`")
    shares: list[Share] = Field(
        default_factory=lambda: [0.1, 0.25, 0.5, 1.0],
        min_length=1,
        description="of the training clips of each class whose label a student is given, ascending",
    )
    seeds: int = Field(
        5,
        ge=2,
        le=20,
        description="draws of the labels and trainings of every student and control, from `seed` "
        "on; gains are between the means over them",
    )
    students: list[str] | None = Field(
        None, min_length=1, description="names of the students; default: all"
    )
    unlabelled: bool = Field(
        False,
        description="distilled students also learn from the teacher's outputs on the training "
        "clips whose label they are not given; controls cannot",
    )

    @model_validator(mode="after")
    def _check(self) -> LabelSharesConfig:
        if any(
            second <= first for first, second in zip(self.shares, self.shares[1:], strict=False)
        ):
            raise ValueError("`shares` are to rise, each given once, e.g. [0.1, 0.25, 0.5, 1.0]")
        names = self.students or []
        repeated = next((name for name in names if names.count(name) > 1), None)
        if repeated is not None:
            raise ValueError(f"`students` lists `{repeated}` twice; remove one")
        return self

    def names_of(self, student: str) -> Iterator[tuple[float, str]]:
        """Every share, and what the student trained with it is called: `audio-labels10`."""
        for share in self.shares:
            yield share, f"{student}-labels{100 * share:.10g}"
