"""Steps from corpora to encoder states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from multistill.pipeline.step import Artifacts, Step, StepRun
from multistill.workspace import clear


class Prepare(Step):
    """Corpora to one manifest with splits and a quality report."""

    name = "prepare"
    artifact = "manifest"
    version = 2
    sections = frozenset({"corpora", "split"})

    def config(self) -> Any:
        return {
            "corpora": [corpus.identity() for corpus in self.job.corpora],
            "split": self.job.split.identity(),
            "seed": self.job.seed,
        }

    def inputs(self, artifacts: Artifacts) -> Mapping[str, str]:
        from multistill.corpora.prepare import listing

        return {"files": listing(self.job.corpora)}

    def build(self, run: StepRun) -> Mapping[str, Any]:
        from multistill.corpora.prepare import prepare

        return prepare(
            self.job.corpora,
            self.job.split,
            self.job.seed,
            clear(run.out),
            unpacked=self.workspace.root / "corpora",
            logger=run.logger,
        )


class Features(Step):
    """Speech and text states of every utterance, encoded once.

    Their identity is the content of the manifest, not the settings that led to it, so another
    split of the same clips finds the same features.
    """

    name = "features"
    artifact = "features"
    sections = frozenset({"features"})
    uses_ray = True

    def config(self) -> Any:
        from multistill.features.identity import features_identity

        return features_identity(self.job.features)

    def inputs(self, artifacts: Artifacts) -> Mapping[str, str]:
        return {"content": str(artifacts["manifest"].summary["content"])}

    def build(self, run: StepRun) -> Mapping[str, Any]:
        from multistill.corpora.manifest import MANIFEST
        from multistill.features.encode import encode

        manifest = run.artifacts["manifest"].path / MANIFEST
        return encode(manifest, self.job.features, run.out, run.logger)
