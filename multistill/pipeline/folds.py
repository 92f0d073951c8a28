"""The folds of a cross-validation inside artifacts.

Under cross-validation one stage makes the work of all folds: its artifact has a folder per fold
(`workspace.fold_folder`), and `folds` in its summary has the summary of each. A
step sees one fold as if it were a job of its own, with artifacts that hold that fold only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multistill.config import JobConfig
from multistill.pipeline.step import Artifacts, StepRun
from multistill.workspace import Artifact, fold_folder

FOLDS = "folds"


@dataclass(frozen=True)
class Fold:
    """What the trainings of one fold read.

    Attributes:
        number: from 0; None for a holdout, which is the only fold of its job.
        artifacts: of this fold.
    """

    number: int | None
    artifacts: Artifacts

    def model_name(self, name: str) -> str:
        """The name of a model among those of all folds."""
        return name if self.number is None else f"{name}-cv{self.number + 1}"


def folds_of(artifacts: Artifacts) -> list[Fold]:
    """The folds of a run's artifacts; one without a number if there is no cross-validation."""
    manifest = artifacts.get("manifest")
    count = len(manifest.summary.get(FOLDS, ())) if manifest is not None else 0
    if not count:
        return [Fold(None, artifacts)]
    return [
        Fold(number, {name: _part(artifact, number) for name, artifact in artifacts.items()})
        for number in range(count)
    ]


def parts_of(artifact: Artifact) -> list[Artifact]:
    """The artifact of every fold; of a holdout, the artifact itself."""
    folds = artifact.summary.get(FOLDS)
    return [_part(artifact, number) for number in range(len(folds))] if folds else [artifact]


def _part(artifact: Artifact, number: int) -> Artifact:
    summary = artifact.summary
    if FOLDS not in summary:  # the features, which all folds share
        return artifact
    own = summary[FOLDS][number]
    rest = {name: value for name, value in summary.items() if name != FOLDS}
    return Artifact(
        artifact.kind,
        f"{artifact.fingerprint}-{number + 1}",
        fold_folder(artifact.path, number),
        {**artifact.meta, "summary": rest | own},
    )


def build_folds(
    run: StepRun, build: Callable[[Artifacts, Path], Mapping[str, Any]]
) -> Mapping[str, Any]:
    """Build every fold into its folder; returns the summary of the whole.

    Args:
        build: makes one fold of its artifacts in an existing folder, and returns its summary.
    """
    summaries = []
    for fold in folds_of(run.artifacts):
        if fold.number is None:
            return build(fold.artifacts, run.out)
        out = fold_folder(run.out, fold.number)
        out.mkdir(parents=True, exist_ok=True)
        summaries.append(dict(build(fold.artifacts, out)))
        run.logger.progress(fold.number + 1, len(run.artifacts["manifest"].summary[FOLDS]), "folds")
    return {FOLDS: summaries}


def split_unit(job: JobConfig) -> str:
    """What the parts keep together, which names the unit of the evaluation's intervals."""
    protocol = job.protocol
    whole_corpora = protocol.kind == "cross-corpus" or protocol.by == "corpus"
    return protocol.by if protocol.crosses and not whole_corpora else job.split.by


def planned_folds(job: JobConfig, artifacts: Artifacts) -> int | None:
    """Number of folds; None where only `prepare` can tell."""
    if not job.protocol.crosses:
        return 1
    manifest = artifacts.get("manifest")
    if manifest is not None and FOLDS in manifest.summary:
        return len(manifest.summary[FOLDS])
    protocol = job.protocol
    if protocol.kind == "cross-corpus":
        return sum(not corpus.unlabelled for corpus in job.corpora)
    return protocol.folds * protocol.repeats if protocol.kind == "k-fold" else None
