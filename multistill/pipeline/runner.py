"""Runs the steps of a job's recipe in order: looks each one up, makes what is missing.

Every artifact is looked up by fingerprint first. Ray and the tracking server are started only
when there is work to do. Nothing here knows a step by name.
"""

from __future__ import annotations

import difflib
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multistill import provenance
from multistill.config import JobConfig
from multistill.errors import MultistillError, UsageError
from multistill.pipeline.forecasts import keep_missing, learn
from multistill.pipeline.recipes import get_recipe, steps_of, why_missing
from multistill.pipeline.step import Step, StepRun
from multistill.pipeline.variants import job_file, variant_key
from multistill.tracking.console import CompositeLogger, ConsoleLogger, ProgressDisplay
from multistill.workspace import Artifact, Workspace, write_atomic

if TYPE_CHECKING:
    from multistill.tracking.logger import RunLogger


@dataclass(frozen=True)
class Outcome:
    """What a run made. `worked` is False when everything existed already.

    Attributes:
        stages: artifact of every step, by the step's name.
        report: folder of the newest report, where the recipe makes one.
    """

    job: str
    stages: dict[str, Artifact]
    worked: bool
    seconds: float
    report: Path | None
    tracking_uri: str | None

    def as_json(self) -> dict[str, Any]:
        return {
            "job": self.job,
            "worked": self.worked,
            "seconds": round(self.seconds, 1),
            "stages": {
                name: {"fingerprint": a.fingerprint, "folder": str(a.path), "seconds": a.seconds}
                for name, a in self.stages.items()
            },
            "report": str(self.report) if self.report else None,
            "tracking_uri": self.tracking_uri,
        }


def run(
    job: JobConfig, *, until: str | None = None, display: ProgressDisplay | None = None
) -> Outcome:
    """Make every missing artifact of the job's recipe, in order, and publish the report.

    Args:
        until: name of the last step to run; default: all.

    Raises:
        UsageError: there is no stage `until`, or the job cannot work.
        MultistillError: with one sentence. Finished artifacts and shards are kept.
    """
    display = display or ProgressDisplay()
    workspace = Workspace(job.workspace)
    steps = steps_of(job, workspace)
    if until is not None:
        steps = steps[: _stage_index(steps, until) + 1]
    workspace.open()
    started = time.monotonic()
    with terminated_as_interrupt(), ExitStack() as stack:
        context = RunContext(job, workspace, steps, display, stack)
        for number in range(len(steps)):
            context.make(number)
        context.finish()
    published = [step.publish(context.artifacts[step.artifact]) for step in steps]
    return Outcome(
        job=job.name,
        stages={step.name: context.artifacts[step.artifact] for step in steps},
        worked=context.worked,
        seconds=time.monotonic() - started,
        report=next((path for path in published if path is not None), None),
        tracking_uri=context.tracking_uri,
    )


def _stage_index(steps: Sequence[Step], name: str) -> int:
    stages = [step.name for step in steps]
    if name not in stages:
        job, workspace = steps[0].job, steps[0].workspace
        if reason := why_missing(job, workspace, name):
            raise UsageError(f"--until {name}: {reason}")
        possible = [*stages, *get_recipe(job.recipe).left_out(job)]
        near = next(iter(difflib.get_close_matches(name, possible, n=1, cutoff=0.4)), None)
        if near is not None and (reason := why_missing(job, workspace, near)):
            raise UsageError(f"--until {name}: did you mean `{near}`? {reason}")
        hint = f"did you mean `{near}`? The" if near else "the"
        raise UsageError(
            f"--until {name}: there is no such stage; {hint} stages are {', '.join(stages)}"
        )
    return stages.index(name)


class RunContext:
    """One run: its artifacts so far, its record, and Ray once a step needs it."""

    def __init__(
        self,
        job: JobConfig,
        workspace: Workspace,
        steps: Sequence[Step],
        display: ProgressDisplay,
        stack: ExitStack,
    ) -> None:
        self.job = job
        self.workspace = workspace
        self.steps = steps
        self.display = display
        self.stack = stack
        self.artifacts: dict[str, Artifact] = {}
        self.stages: list[dict[str, Any]] = []
        self.logger: RunLogger | None = None
        self.tracking_uri: str | None = None
        self.ray_started = False

    @property
    def worked(self) -> bool:
        return self.logger is not None

    def make(self, number: int) -> None:
        """Find the artifact of a step, or build it."""
        step = self.steps[number]
        name = step.fingerprint(self.artifacts)
        artifact = find_artifact(self.workspace, step, name)
        cached = artifact is not None
        if artifact is not None:
            self.display.print(f"{step.name:<9} exists  {name}", style="dim")
        else:
            self._check_problems(number)
            for later in self.steps[number:]:
                later.preflight(self.artifacts)
            left = [later.name for later in self.steps[number:]]
            keep_missing(self.job, self.steps, self.artifacts, left)
            artifact = self._build(step, name)
            self.display.print(f"{step.name:<9} done in {artifact.seconds:.0f} s  {name}")
        if excess := step.over_limits(artifact):
            raise MultistillError("; ".join(excess))
        self.artifacts[step.artifact] = artifact
        self.stages.append(
            {
                "name": step.name,
                "fingerprint": name,
                "seconds": artifact.seconds,
                "cached": cached,
            }
        )
        if not cached:
            learn(self.job, self.steps, step, self.artifacts)

    def _check_problems(self, number: int) -> None:
        """Look at what the steps need outside the workspace, once, before the first is built."""
        if self.worked:
            return
        if any(step.uses_ray for step in self.steps[number:]):
            from multistill.cluster import session

            session.check(self.job.resources)
        problems = [text for step in self.steps[number:] for text in step.problems()]
        if problems:
            raise UsageError("; ".join(problems))

    def _build(self, step: Step, name: str) -> Artifact:
        lost = self.workspace.find(step.kind, name)
        if lost is not None:
            self.display.print(
                f"{step.name:<9} refers to files that are gone or changed; running it again"
            )
            shutil.rmtree(lost.path)
        run_logger = self._open()
        if step.uses_ray:
            self._start_ray(run_logger)
        self.display.print(f"{step.name:<9} running", style="bold")
        logger = run_logger.child(step.name, key=f"{step.name}-{name}", kind="stage")
        inputs = step.inputs(self.artifacts)
        logger.tags({"multistill.stage": step.name, "multistill.fingerprint": name})
        logger.tags({f"multistill.input.{key}": value for key, value in inputs.items()})
        status = "FAILED"
        try:
            artifact = self.workspace.make(
                step.kind,
                name,
                lambda out: step.build(StepRun(self.artifacts, out, logger, name, self.stages)),
                config=step.config(),
                inputs=inputs,
                provenance={
                    "job": self.job.model_dump(mode="json"),
                    "versions": provenance.versions(),
                    "commit": provenance.git_commit(),
                    "ray_job_id": _ray_job_id(),
                    "record_id": logger.record_id,
                },
                log=logger.info,
            )
            logger.metrics({"stage_seconds": artifact.seconds})
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            self.display.clear()
            logger.close(status)
        return artifact

    def _open(self) -> RunLogger:
        """The run's record: opened late, so that a finished job contacts no server."""
        if self.logger is None:
            from multistill.pipeline import record
            from multistill.tracking import open_tracker

            key = variant_key(self.job.identity())
            tracker = open_tracker(
                self.job.tracking,
                self.workspace.root,
                self.job.name,
                run_key=key,
                run_name=record.run_name(self.job, key),
                label=record.label(key),
                tags={
                    "multistill.job": self.job.name,
                    "multistill.recipe": self.job.recipe,
                    "multistill.seed": str(self.job.seed),
                    "multistill.commit": provenance.git_commit() or "unknown",
                    **{f"version.{k}": v for k, v in provenance.versions().items()},
                },
                log=lambda message: self.display.print(message),
            )
            self.tracking_uri = tracker.uri
            self.logger = CompositeLogger([ConsoleLogger(self.display, self.job.name), tracker])
            self.stack.push(self._close)
            resolved = job_file(self.workspace.root, self.job.name, key)
            write_atomic(resolved, self.job.to_yaml())
            self.logger.artifact(resolved, "job")
            self.logger.params(record.parameters(self.job, self.steps))
            self.logger.tags({record.NOTE_TAG: record.describe(self.job, self.steps)})
        return self.logger

    def _close(self, kind: type[BaseException] | None, *_: object) -> bool:
        assert self.logger is not None
        if kind is None:
            status = "FINISHED"
        else:
            status = "KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED"
        self.display.clear()
        self.logger.close(status)
        return False

    def _start_ray(self, logger: RunLogger) -> None:
        if not self.ray_started:
            from multistill import cluster

            self.stack.enter_context(
                cluster.start(
                    self.job.resources,
                    dashboard=any(step.needs_dashboard for step in self.steps),
                    log=self.display.print,
                )
            )
            self.ray_started = True
            job_id = _ray_job_id()
            if job_id:
                logger.tags({"multistill.ray_job_id": job_id})

    def finish(self) -> None:
        """Log the main figures, or say that there was nothing to do."""
        if self.logger is None:
            self.display.print("nothing to do: every stage of this job exists already")
            return
        from multistill.pipeline.record import record

        record(self.job, self.steps, self.artifacts, self.logger)


def find_artifact(workspace: Workspace, step: Step, name: str) -> Artifact | None:
    """The finished artifact of a step, unless what it refers to was deleted."""
    artifact = workspace.find(step.kind, name)
    return artifact if artifact is not None and step.is_intact(artifact) else None


def _ray_job_id() -> str | None:
    """Id of the Ray job we run in, for finding its logs; None outside Ray."""
    submitted = os.environ.get("RAY_JOB_SUBMISSION_ID")
    if submitted:
        return submitted
    import sys

    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    return str(ray.get_runtime_context().get_job_id())


@contextmanager
def terminated_as_interrupt() -> Iterator[None]:
    """Let SIGTERM, as schedulers send it, end the run like Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
