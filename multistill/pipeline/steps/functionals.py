"""The step that extracts openSMILE functionals, for the baselines on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from multistill.pipeline.step import Artifacts, Step, StepRun

OPENSMILE = "set `evaluation.opensmile: [egemaps]` in the job file"
"""What to change in a job without the step."""


class Functionals(Step):
    """Functionals of every clip of the manifest, extracted once.

    Like the features, they are of the clips and not of their split.
    """

    name = "functionals"
    artifact = "functionals"
    sections = frozenset({"evaluation"})
    uses_ray = True

    def config(self) -> Any:
        from multistill.features.functionals import SETS, VERSION, package_version

        sets = {name: SETS[name] for name in self.job.evaluation.opensmile}
        return {"sets": sets, "version": VERSION, "package": package_version()}

    def inputs(self, artifacts: Artifacts) -> Mapping[str, str]:
        return {"content": str(artifacts["manifest"].summary["content"])}

    def problems(self) -> Sequence[str]:
        from multistill.features.functionals import missing_package

        problem = missing_package()
        return [problem] if problem else []

    def build(self, run: StepRun) -> Mapping[str, Any]:
        from multistill.corpora.manifest import MANIFEST
        from multistill.features.functionals import extract_functionals

        manifest = run.artifacts["manifest"].path / MANIFEST
        return extract_functionals(manifest, self.job.evaluation.opensmile, run.out, run.logger)
