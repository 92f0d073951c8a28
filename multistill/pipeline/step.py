"""A step of a recipe: typed config and input artifacts in, one artifact out.

A step knows which artifacts it reads and which config decides its result; it knows nothing
of the steps after it. `multistill.pipeline.runner` decides order, skipping and recording, and
knows nothing of what a step does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from multistill.config import JobConfig
from multistill.hardware import Resources
from multistill.tracking.logger import RunLogger
from multistill.workspace import Artifact, Workspace, fingerprint

Artifacts = Mapping[str, Artifact]
"""The finished artifacts of a run, by `Step.artifact`."""


@dataclass(frozen=True)
class StepRun:
    """What a step works with while it runs.

    Attributes:
        artifacts: of the steps before it.
        out: the artifact's folder; holds what a killed attempt left, to continue or to clear.
        fingerprint: of the artifact.
        stages: name, fingerprint, seconds and cached of every step before it.
    """

    artifacts: Artifacts
    out: Path
    logger: RunLogger
    fingerprint: str
    stages: Sequence[Mapping[str, Any]] = ()


class Step(ABC):
    """One stage of a job.

    Attributes:
        name: of the stage, for `--until`, the terminal, MLflow and the report.
        artifact: what the step makes, the name under which later steps read it.
        version: format of the artifact; raise it, and this stage and all after it run again.
        sections: sections of the job file that the step uses.
        uses_ray: whether it needs a running Ray.
    """

    name: ClassVar[str]
    artifact: ClassVar[str]
    version: ClassVar[int] = 1
    sections: ClassVar[frozenset[str]] = frozenset()
    uses_ray: ClassVar[bool] = False

    def __init__(self, job: JobConfig, workspace: Workspace) -> None:
        self.job = job
        self.workspace = workspace

    @property
    def kind(self) -> str:
        """Folder of the workspace that holds the artifacts of this step."""
        return self.name

    @property
    def needs_dashboard(self) -> bool:
        """Whether a local Ray must run its dashboard."""
        return False

    @abstractmethod
    def config(self) -> Any:
        """JSON values that, with the input artifacts, decide the result."""

    def reads(self) -> Sequence[str]:
        """Artifacts that decide the result."""
        return ()

    def inputs(self, artifacts: Artifacts) -> Mapping[str, str]:
        """Fingerprints of what the step reads.

        Raises:
            KeyError: an artifact does not exist yet, and its content decides the fingerprint.
        """
        return {name: artifacts[name].fingerprint for name in self.reads()}

    def fingerprint(self, artifacts: Artifacts) -> str:
        """Name of the artifact that this step makes of these inputs."""
        return fingerprint(self.name, self.version, self.config(), self.inputs(artifacts))

    def preflight(self, artifacts: Artifacts) -> None:
        """Refuse what cannot work, as soon as the artifacts show it: before hours of work.

        Raises:
            UsageError: with one sentence.
        """
        return

    def problems(self) -> Sequence[str]:
        """What outside the workspace keeps the step from working now, each as one sentence.

        Looked at before the first stage of a run, by `plan` and by `doctor`; changes nothing.
        """
        return ()

    def over_limits(self, artifact: Artifact) -> Sequence[str]:
        """What of a finished artifact is beyond a limit of the job, each as one sentence.

        Limits such as `max_rejected` change no result, so they are no part of the fingerprint,
        and the artifact may have been made under others. Looked at by the runner whenever it
        finds or has made the artifact, and by `plan`. To be quick: from the summary.
        """
        return ()

    @abstractmethod
    def build(self, run: StepRun) -> Mapping[str, Any]:
        """Fill `run.out` and return a small JSON summary."""

    def publish(self, artifact: Artifact) -> Path | None:
        """Make the finished artifact the one that people open, and return where that is."""
        return None

    def record(self, artifact: Artifact, logger: RunLogger) -> str:
        """Log what the finished artifact says about the whole job to the job's own MLflow run.

        Returns:
            a Markdown paragraph for that run's description; empty for none.
        """
        return ""

    def data_digest(self, artifact: Artifact) -> str | None:
        """Digest of the data that the whole job is trained and tested on, of the step that makes
        them; by it a repeated job knows whether it has the recorded data."""
        return None

    def is_intact(self, artifact: Artifact) -> bool:
        """Whether what the artifact refers to outside its folder still is what it was."""
        return True

    def plan(self, resources: Resources, artifacts: Artifacts) -> Mapping[str, Any]:
        """What `multistill plan` shows of this step; lists under equal keys are joined.

        Args:
            resources: `CPU`, `GPU` and `cores` of this machine.
            artifacts: of the steps before it; one that is still to be made has an empty `meta`.
        """
        return {}
