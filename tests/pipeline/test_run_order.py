"""What a run does in which order: beside another driver, and on its way out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers.small_runs import Data, Scores, install, workspace

from multistill import cluster, pipeline
from multistill.config import JobConfig
from multistill.pipeline import jobfile, runner
from multistill.tracking.tracker import Tracker
from multistill.workspace import Workspace


@pytest.fixture
def job(tmp_path: Path, mlflow_database: Path, monkeypatch: pytest.MonkeyPatch) -> JobConfig:
    """A job of two small steps."""
    install(monkeypatch)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    own = workspace(tmp_path / "own", mlflow_database)
    text = f"name: small\nworkspace: {own}\ncorpora: [{{kind: demo}}]\n"
    return jobfile.parse(text, "small.yaml")


def test_what_another_driver_finishes_meanwhile_is_used_and_not_deleted(
    job: JobConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finish(job: JobConfig, steps: Any, artifacts: Any, left: Any) -> None:
        """What the other driver does once this one has looked for the manifest."""
        if not artifacts:
            step = Data(job, Workspace(job.workspace))
            step.workspace.make(step.kind, step.fingerprint({}), lambda out: write(out))

    def write(out: Path) -> dict[str, Any]:
        (out / "of-the-other").touch()
        return {"data": "demo"}

    monkeypatch.setattr(runner, "keep_missing", finish)
    outcome = pipeline.run(job)
    assert (outcome.stages["prepare"].path / "of-the-other").exists()


def test_ray_ends_before_the_record_is_closed(
    job: JobConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    @contextmanager
    def starting(*_: object, **__: object) -> Iterator[Callable[[], None]]:
        try:
            yield lambda: None
        finally:
            events.append("Ray ended")

    class Closed(Tracker):
        def close(self, status: str = "FINISHED") -> None:
            if self._top:
                events.append(status)
            super().close(status)

    def is_interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cluster, "starting", starting)
    monkeypatch.setattr(cluster, "is_private", lambda resources: True)
    monkeypatch.setattr("multistill.tracking.tracker.Tracker", Closed)
    monkeypatch.setattr(Scores, "uses_ray", True)
    monkeypatch.setattr(Data, "build", is_interrupted)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(job)
    assert events == ["Ray ended", "KILLED"]
