"""Opens the corpora of a job as the first stage would, and leaves no artifact.

Only the digests of recordings are remembered, where the workspace exists already: `prepare` then
need not read the recordings again, nor does the next check.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from multistill.config import JobConfig
from multistill.pipeline.folds import FOLDS
from multistill.pipeline.recipes import steps_of
from multistill.pipeline.step import Step, StepRun
from multistill.pipeline.steps.data import Features
from multistill.tracking.logger import NullLogger, RunLogger
from multistill.wording import counted
from multistill.workspace import Artifact, Workspace


def check_data(job: JobConfig, logger: RunLogger | None = None) -> dict[str, Any]:
    """Read the corpora, decide labels and split, and count.

    Args:
        logger: is told what the first stage tells: numbers while it reads, encodings, the
            commonest reasons for rejection, classes that a part lacks.

    Returns:
        `corpora`: utterances by corpus; `splits`: by part, then by class, ties under `tie`,
        clips without any class, which have a dimension, under `none`; `dimensions`: of a job that
        has some, utterances with a value of each;
        under cross-validation all under `test`, and `folds` with the `splits` of each (of
        `cross-corpus` by the part in the own corpus);
        `unlabelled`: what became of corpora without labels (`corpora.unlabelled`);
        `gaps`: classes that a part lacks (`corpora.coverage`), by `kind` and `title`;
        `rejected`: number of clips and rows left out; `rejected_kinds`: the commonest reasons,
        each with `count`, `kind`, and `source` and `reason` of one row.

    Raises:
        UsageError: a corpus is not found, the split is impossible or leaks, or leaves too little
            for a later stage.
        MultistillError: no utterance is left.
    """
    from multistill.corpora.coverage import coverage_gaps
    from multistill.corpora.manifest import UNLABELLED, classes_of, read_manifest, tied
    from multistill.corpora.split import PARTS

    with prepared(job, logger) as (steps, manifest):
        summary = manifest.summary
        for later in steps:
            if not isinstance(later, Features):  # which may fetch a tokenizer
                later.preflight({"manifest": manifest})
        rows = read_manifest(manifest.path, columns=["corpus", "split", "label", "votes"])
    corpora: Counter[str] = Counter(rows["corpus"].to_pylist())
    classes = classes_of(rows)
    splits = {part: Counter(dict.fromkeys(classes, 0)) for part in PARTS}
    columns = (rows["split"], rows["label"], tied(rows))
    for part, label, tie in zip(*(column.to_pylist() for column in columns), strict=True):
        if part == UNLABELLED:
            continue
        splits[part][label or ("tie" if tie else "none")] += 1
    folds = summary.get(FOLDS)
    shown = {part: counts for part, counts in splits.items() if not folds or +counts}
    facts: dict[str, Any] = {
        "corpora": dict(corpora),
        "splits": {part: dict(+counts) for part, counts in shown.items()},
        "gaps": [
            {"kind": gap.kind, "title": gap.title, "classes": list(gap.classes)}
            for gap in ([] if folds else coverage_gaps(splits))
        ],
        "unlabelled": summary["unlabelled"],
        "rejected": summary["rejected"],
        "rejected_kinds": summary["rejected_kinds"],
    }
    if "dimensions" in summary:
        facts["dimensions"] = summary["dimensions"]
    return facts | ({FOLDS: folds} if folds else {})


@contextmanager
def prepared(
    job: JobConfig, logger: RunLogger | None = None
) -> Iterator[tuple[Sequence[Step], Artifact]]:
    """The job's steps, and a manifest as the first would make it, in a temporary folder."""
    with TemporaryDirectory(prefix="multistill-") as folder:
        steps = steps_of(job, _scratch(Path(folder), Workspace(job.workspace)))
        step = next(step for step in steps if step.artifact == "manifest")
        out = Path(folder) / "manifest"
        out.mkdir()
        run = StepRun(artifacts={}, out=out, logger=logger or NullLogger(), fingerprint="")
        summary = step.build(run)
        yield steps, Artifact("manifest", "", out, {"summary": summary})


def _scratch(folder: Path, workspace: Workspace) -> Workspace:
    """A workspace in `folder` that uses the remembered digests of the job's own."""
    scratch = Workspace(folder)
    if os.access(workspace.root, os.W_OK):
        scratch.digests = workspace.digests
    elif os.access(workspace.digests, os.R_OK):
        shutil.copy(workspace.digests, scratch.digests)
    return scratch


def describe(facts: dict[str, Any]) -> list[str]:
    """The facts as lines for people."""
    from multistill.corpora.manifest import UNLABELLED
    from multistill.corpora.split import PARTS
    from multistill.corpora.unlabelled import sentences

    lines = [
        f"{title}: {counted(number, 'utterance')}" for title, number in facts["corpora"].items()
    ]
    for part, counts in facts["splits"].items():
        classes = ", ".join(f"{label} {number}" for label, number in sorted(counts.items()))
        of_classes = "" if set(counts) == {"none"} else f" ({classes})"
        lines.append(f"{part}: {sum(counts.values())}{of_classes}")
    for name, number in facts.get("dimensions", {}).items():
        lines.append(f"{name}: {counted(number, 'utterance')} with a value")
    for fold in facts.get(FOLDS, []):
        counts = fold["splits"]
        sizes = ", ".join(f"{part} {counts.get(part, 0)}" for part in PARTS)
        if facts["unlabelled"]:
            sizes += f", {UNLABELLED} {counts.get(UNLABELLED, 0)}"
        lines.append(f"fold {fold['name']}: {sizes}")
    lines += sentences(facts["unlabelled"])
    lines += [f"{gap['title']}: {', '.join(gap['classes'])}" for gap in facts["gaps"]]
    lines.append(f"rejected: {facts['rejected']}")
    for group in facts["rejected_kinds"]:
        lines.append(f"  {group['count']} x {group['kind']}")
        lines.append(f"      such as {group['source']}: {group['reason']}")
    return lines
