"""The step that encodes the test clips under the conditions of the robustness pack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from multistill.pipeline.folds import folds_of
from multistill.pipeline.step import Step, StepRun
from multistill.workspace import read_json

ROBUSTNESS = "set `evaluation.robustness: true` in the job file"
"""What to change in a job without the step."""


class Robustness(Step):
    """States of the distorted test clips, by the encoders of the feature store.

    A step of its own, before `evaluate`: other models of the same clips find them.
    """

    name = "robustness"
    artifact = "robustness"
    sections = frozenset({"evaluation"})
    uses_ray = True

    def config(self) -> Any:
        from multistill.audio.conditions import PACK

        return {"pack": PACK}

    def reads(self) -> Sequence[str]:
        return ("manifest", "features")

    def build(self, run: StepRun) -> Mapping[str, Any]:
        from multistill.corpora.manifest import QUALITY
        from multistill.evaluation.distorted_clips import encode_distorted

        quality = run.artifacts["manifest"].path / QUALITY
        channels = read_json(quality)["audio"]["channels"] if quality.exists() else {}
        return encode_distorted(
            [fold.artifacts["manifest"].path for fold in folds_of(run.artifacts)],
            run.artifacts["features"].path,
            self.job.features,
            [int(number) for number in channels],
            run.out,
            run.logger,
        )
