"""Steps from corpora to encoder states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from multistill.cluster.tasks import on_cluster
from multistill.pipeline.folds import build_folds
from multistill.pipeline.step import Artifacts, Step, StepRun
from multistill.tracking.logger import RunLogger
from multistill.tracking.registry import DATA_TAG
from multistill.workspace import Artifact, clear, write_atomic


class Prepare(Step):
    """Corpora to one manifest with splits and a quality report."""

    name = "prepare"
    artifact = "manifest"
    version = 6
    sections = frozenset({"corpora", "tasks", "labels", "split", "protocol"})

    def config(self) -> Any:
        return {
            "corpora": [corpus.identity() for corpus in self.job.corpora],
            "tasks": list(self.job.tasks.weights()),
            "labels": self.job.labels.identity(),
            "split": self.job.split.identity(),
            "protocol": self.job.protocol.identity(),
        }

    def inputs(self, artifacts: Artifacts) -> Mapping[str, str]:
        from multistill.corpora.prepare import listing

        return {"files": listing(self.job.corpora)}

    def is_intact(self, artifact: Artifact) -> bool:
        from multistill.corpora.manifest import MANIFEST
        from multistill.corpora.prepare import is_current
        from multistill.corpora.roots import corpus_roots, stays_inside

        roots = corpus_roots(self.job.corpora, self.workspace.root / "corpora")
        return is_current(artifact.path / MANIFEST, self.workspace.digests) and all(
            stays_inside(manifest, roots) for manifest in artifact.path.rglob(MANIFEST)
        )

    def over_limits(self, artifact: Artifact) -> Sequence[str]:
        from multistill.corpora.prepare import excessive_rejections

        summary = artifact.summary
        shares, reasons = summary.get("rejected_share", {}), summary.get("rejected_for", "")
        return list(excessive_rejections(self.job.corpora, shares, reasons))

    def build(self, run: StepRun) -> Mapping[str, Any]:
        from multistill.corpora.prepare import prepare
        from multistill.report.data_page import data_page
        from multistill.report.files import DATA_PAGE

        summary = prepare(
            self.job.corpora,
            self.job.split,
            clear(run.out),
            labels=self.job.labels,
            protocol=self.job.protocol,
            tasks=self.job.tasks,
            unpacked=self.workspace.root / "corpora",
            digests=self.workspace.digests,
            logger=run.logger,
        )
        write_atomic(run.out / DATA_PAGE, data_page(run.out, summary))
        return summary

    def data_digest(self, artifact: Artifact) -> str:
        from multistill.corpora.manifest import data_digest

        return data_digest(artifact.path)

    def record(self, artifact: Artifact, logger: RunLogger) -> str:
        logger.tags({DATA_TAG: self.data_digest(artifact)})
        return ""


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

    def preflight(self, artifacts: Artifacts) -> None:
        from multistill.encoders.preflight import refuse_mismatched, refuse_unknown

        refuse_mismatched(self.job.features)
        if "manifest" in artifacts:
            refuse_unknown(self.job.features.text, _transcripts(artifacts["manifest"]))

    def problems(self) -> Sequence[str]:
        from multistill.encoders.preflight import missing_weights

        return list(missing_weights(self.job.features))

    def over_limits(self, artifact: Artifact) -> Sequence[str]:
        from multistill.encoders.preflight import too_many_unknown
        from multistill.features.quarantine import too_many_quarantined

        unknown = artifact.summary.get("unknown_tokens")  # stores of earlier versions lack it
        return [
            *too_many_quarantined(self.job.features, artifact.path, artifact.summary),
            *too_many_unknown(self.job.features.text, unknown),
        ]

    def build(self, run: StepRun) -> Mapping[str, Any]:
        from multistill.corpora.manifest import MANIFEST
        from multistill.encoders.preflight import unknown_tokens
        from multistill.features.encode import encode

        manifest = run.artifacts["manifest"].path / MANIFEST
        unknown = unknown_tokens(self.job.features.text, _transcripts(run.artifacts["manifest"]))
        summary = encode(manifest, self.job.features, run.out, run.logger)
        return {**summary, "unknown_tokens": unknown}


class Statistics(Step):
    """Mean and deviation of the training part's states, which heads are standardised with."""

    name = "statistics"
    version = 2
    artifact = "statistics"
    uses_ray = True

    def config(self) -> Any:
        return {}

    def reads(self) -> Sequence[str]:
        return ("manifest", "features")

    def build(self, run: StepRun) -> Mapping[str, Any]:
        from multistill.corpora.manifest import MANIFEST
        from multistill.features.statistics import compute_statistics

        def build(artifacts: Artifacts, out: Path) -> Mapping[str, Any]:
            summary: Mapping[str, Any] = on_cluster(
                compute_statistics,
                artifacts["manifest"].path / MANIFEST,
                artifacts["features"].path,
                out,
            )
            return summary

        clear(run.out)
        return build_folds(run, build)


def _transcripts(manifest: Artifact) -> list[str]:
    from multistill.corpora.manifest import read_manifest

    texts: list[str] = read_manifest(manifest.path, ["text"])["text"].to_pylist()
    return texts
