"""Opens the corpora of a job as the first stage would, and writes nothing into the workspace."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from multistill.config import JobConfig
from multistill.pipeline.recipes import steps_of
from multistill.pipeline.step import StepRun
from multistill.tracking.logger import NullLogger
from multistill.workspace import Workspace


def check_data(job: JobConfig) -> dict[str, Any]:
    """Read the corpora, decide labels and split, and count.

    Returns:
        `corpora`: utterances by corpus; `splits`: by part, then by class, ties under `tie`;
        `rejected`: number of clips and rows left out; `rejected_kinds`: the commonest reasons,
        each with `count`, `kind`, and `source` and `reason` of one row.

    Raises:
        UsageError: a corpus is not found, or the split is impossible or leaks.
        MultistillError: no utterance is left.
    """
    from multistill.corpora.manifest import MANIFEST, read_manifest

    with TemporaryDirectory(prefix="multistill-") as folder:
        steps = steps_of(job, Workspace(folder))
        step = next(step for step in steps if step.artifact == "manifest")
        out = Path(folder) / "manifest"
        out.mkdir()
        summary = step.build(StepRun(artifacts={}, out=out, logger=NullLogger(), fingerprint=""))
        rows = read_manifest(out / MANIFEST, columns=["corpus", "split", "label"])
    corpora: Counter[str] = Counter(rows["corpus"].to_pylist())
    splits: dict[str, Counter[str]] = {part: Counter() for part in ("train", "valid", "test")}
    labels = zip(rows["split"].to_pylist(), rows["label"].to_pylist(), strict=True)
    for part, label in labels:
        splits[part][label or "tie"] += 1
    return {
        "corpora": dict(corpora),
        "splits": {part: dict(counts) for part, counts in splits.items()},
        "rejected": summary["rejected"],
        "rejected_kinds": summary["rejected_kinds"],
    }


def describe(facts: dict[str, Any]) -> list[str]:
    """The facts as lines for people."""
    lines = [f"{title}: {number} utterances" for title, number in facts["corpora"].items()]
    for part, counts in facts["splits"].items():
        classes = ", ".join(f"{label} {number}" for label, number in sorted(counts.items()))
        lines.append(f"{part}: {sum(counts.values())} ({classes})")
    lines.append(f"rejected: {facts['rejected']}")
    for group in facts["rejected_kinds"]:
        lines.append(f"  {group['count']} x {group['kind']}")
        lines.append(f"      such as {group['source']}: {group['reason']}")
    return lines
