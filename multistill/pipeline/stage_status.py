"""Which steps of a job are done, without running any."""

from __future__ import annotations

from dataclasses import dataclass

from multistill.config import JobConfig
from multistill.pipeline.recipes import steps_of
from multistill.pipeline.runner import find_artifact
from multistill.pipeline.step import Step
from multistill.workspace import Artifact, Workspace


@dataclass(frozen=True)
class StageStatus:
    """What a run would do with one stage.

    Attributes:
        state: "done", "to do", or "after STAGE" where the fingerprint depends on what that
            stage finds.
        seconds: what a finished stage took.
    """

    stage: str
    state: str
    fingerprint: str | None
    seconds: float | None


def status(job: JobConfig) -> list[StageStatus]:
    """The job's stages in order. Starts nothing and writes nothing."""
    workspace = Workspace(job.workspace)
    return [entry for _, entry, _ in step_statuses(steps_of(job, workspace), workspace)]


def step_statuses(
    steps: list[Step], workspace: Workspace
) -> list[tuple[Step, StageStatus, dict[str, Artifact]]]:
    """Every step with its status and the artifacts before it, `to do` ones with an empty `meta`."""
    statuses: list[tuple[Step, StageStatus, dict[str, Artifact]]] = []
    artifacts: dict[str, Artifact] = {}
    blocked: str | None = None
    missing: str | None = None
    for step in steps:
        before = dict(artifacts)
        if blocked is None:
            try:
                name = step.fingerprint(artifacts)
            except KeyError:  # it depends on the content of an artifact that does not exist
                blocked = missing
        if blocked is not None:
            state = f"after {blocked}"
            statuses.append((step, StageStatus(step.name, state, None, None), before))
            continue
        artifact = find_artifact(workspace, step, name)
        if artifact is not None:
            done = StageStatus(step.name, "done", name, artifact.seconds)
            statuses.append((step, done, before))
        else:
            statuses.append((step, StageStatus(step.name, "to do", name, None), before))
            missing = step.name
            # Fingerprints of later steps need this one's name only, unless they read its summary.
            artifact = Artifact(step.kind, name, workspace.folder(step.kind, name), {})
        artifacts[step.artifact] = artifact
    return statuses
