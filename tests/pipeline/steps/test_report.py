"""`latest` is the link to the newest report of a job."""

from __future__ import annotations

from pathlib import Path

from multistill.pipeline import jobfile
from multistill.pipeline.steps.report import Report
from multistill.workspace import Artifact, Workspace


def test_latest_is_a_relative_link_that_follows_the_published_report(tmp_path: Path) -> None:
    job = jobfile.parse(f"name: t\nworkspace: {tmp_path}\ncorpora: [{{kind: demo}}]\n", "job.yaml")
    step = Report(job, Workspace(tmp_path))
    folder = tmp_path / step.kind
    for name in ("a" * 16, "b" * 16, "b" * 16, "a" * 16):
        (folder / name).mkdir(parents=True, exist_ok=True)
        latest = step.publish(Artifact(step.kind, name, folder / name, {}))
        assert latest == folder / "latest" and latest.readlink() == Path(name)
    assert sorted(path.name for path in folder.iterdir()) == ["a" * 16, "b" * 16, "latest"]
