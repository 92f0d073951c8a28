"""A job from the first stage to the last: plan it, run it, run it again for nothing.

    from multistill.pipeline import jobfile, runner
    outcome = pipeline.run(jobfile.load(Path("jobs/demo.yaml")))

Every stage's artifact is looked up by fingerprint first; only what is missing is made.
Ray and the tracking server are touched only when there is work to do.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multistill import provenance
from multistill.config import JobConfig
from multistill.errors import UsageError
from multistill.pipeline.stages import Stages, Step
from multistill.tracking.console import CompositeLogger, ConsoleLogger, ProgressDisplay
from multistill.workspace import Artifact, Workspace, fingerprint, write_atomic

if TYPE_CHECKING:
    from multistill.tracking.logger import RunLogger

NEEDS_RAY = {"features", "teacher", "distill", "students", "search", "evaluate"}


@dataclass(frozen=True)
class StageStatus:
    """What a run would do with one stage; `fingerprint` is None before `prepare` has run."""

    stage: str
    state: str  # "done", "to do" or "after prepare"
    fingerprint: str | None
    seconds: float | None


@dataclass(frozen=True)
class Outcome:
    """What a run left behind. `worked` is False when everything was there already."""

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


def status(job: JobConfig) -> list[StageStatus]:
    """Which stages are there and which a run would make. Starts nothing, writes nothing."""
    return _look_up(Stages(job, Workspace(job.workspace)))


def _look_up(stages: Stages) -> list[StageStatus]:
    planned = []
    known = True
    for name in stages.names():
        if not known:
            planned.append(StageStatus(name, "after prepare", None, None))
            continue
        try:
            step = stages.step(name)
        except KeyError:  # an input is missing: prepare has not run
            known = False
            planned.append(StageStatus(name, "after prepare", None, None))
            continue
        found = stages.workspace.find(step.kind, step.fingerprint)
        if found is not None and stages.intact(found):
            stages.done[name] = found
            planned.append(StageStatus(name, "done", step.fingerprint, found.seconds))
        else:
            planned.append(StageStatus(name, "to do", step.fingerprint, None))
            # Later fingerprints need only this one, and what a finished prepare says.
            if name != "prepare":
                stages.done[name] = Artifact(
                    name, step.fingerprint, stages.workspace.folder(step.kind, step.fingerprint), {}
                )
    return planned


def run(
    job: JobConfig, *, until: str | None = None, display: ProgressDisplay | None = None
) -> Outcome:
    """Make every missing stage, in order, and report.

    Args:
        until: last stage to make; default: all.
    Raises:
        MultistillError: with one sentence. Finished stages and shards are kept.
    """
    display = display or ProgressDisplay()
    workspace = Workspace(job.workspace).open()
    stages = Stages(job, workspace)
    names = stages.names()
    if until is not None:
        names = names[: names.index(until) + 1]
    started = time.monotonic()
    with _interruptible(), ExitStack() as stack:
        work = RunContext(job, workspace, stages, display, stack)
        for name in names:
            work.make(name)
        work.finish()
    report = _publish(job, workspace, stages)
    return Outcome(
        job=job.name,
        stages=dict(stages.done),
        worked=work.worked,
        seconds=time.monotonic() - started,
        report=report,
        tracking_uri=work.tracking_uri,
    )


def join(job: JobConfig, *, display: ProgressDisplay | None = None) -> int:
    """Run trials of a search that another process has in hand, until none is left to start.

    Nothing else of the job is made here, and nothing is recorded: that process does both.

    Returns:
        how many trials ended here.
    Raises:
        UsageError: the job has no search that could be joined.
    """
    from multistill import cluster
    from multistill.search import study
    from multistill.search.request import FILE

    display = display or ProgressDisplay()
    stages = Stages(job, Workspace(job.workspace))
    state = {stage.stage: stage for stage in _look_up(stages)}
    found = state.get("search")
    if found is not None and found.state == "done":
        raise UsageError(
            f"the search of `{job.name}` has ended, so there is nothing to join; "
            f"`multistill search extend {job.name} --trials N` adds trials"
        )
    folder = None
    if found is not None and found.fingerprint is not None:
        folder = stages.workspace.partial("search", found.fingerprint)
    if folder is None or not (folder / FILE).exists():
        raise UsageError(
            f"no search of `{job.name}` is under way in {stages.workspace.root}; start it with "
            "`multistill run`, then join it with the same job and workspace"
        )
    nested = job.search.workers_per_trial > 1
    with _interruptible(), cluster.start(job.resources, dashboard=nested, log=display.print):
        return study.join(folder, ConsoleLogger(display, job.name), job.search)


class RunContext:
    """The engines of one run: opened when the first missing stage needs them."""

    def __init__(
        self,
        job: JobConfig,
        workspace: Workspace,
        stages: Stages,
        display: ProgressDisplay,
        stack: ExitStack,
    ) -> None:
        self.job = job
        self.workspace = workspace
        self.stages = stages
        self.display = display
        self.stack = stack
        self.logger: RunLogger | None = None
        self.tracking_uri: str | None = None
        self.ray_started = False

    @property
    def worked(self) -> bool:
        return self.logger is not None

    def make(self, name: str) -> None:
        step = self.stages.step(name)
        found = self.workspace.find(step.kind, step.fingerprint)
        if found is not None and not self.stages.intact(found):
            self.display.print(f"{name:<9} has lost models; making them again")
            shutil.rmtree(found.path)
            found = None
        if found is not None:
            self.display.print(f"{name:<9} there already  {step.fingerprint}", style="dim")
            self.stages.done[name] = found
            return
        run_logger = self._open()
        if name in NEEDS_RAY:
            self._start_ray(run_logger)
        self.display.print(f"{name:<9} working", style="bold")
        logger = run_logger.child(name, key=f"{name}-{step.fingerprint}", kind="stage")
        logger.tags({"multistill.stage": name, "multistill.fingerprint": step.fingerprint})
        logger.tags({f"multistill.input.{stage}": value for stage, value in step.inputs.items()})
        status = "FAILED"
        try:
            self.stages.done[name] = artifact = self._build(step, logger)
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            self.display.clear()
            logger.close(status)
        self.stages.records[name] = logger.record_id or ""
        self.display.print(f"{name:<9} done in {artifact.seconds:.0f} s  {step.fingerprint}")

    def _build(self, step: Step, logger: RunLogger) -> Artifact:
        artifact = self.workspace.make(
            step.kind,
            step.fingerprint,
            lambda out: step.build(out, logger),
            config=step.config,
            inputs=step.inputs,
            provenance={
                "job": self.job.model_dump(mode="json"),
                "versions": provenance.versions(),
                "commit": provenance.git_commit(),
                "ray_job_id": _ray_job_id(),
                "record_id": logger.record_id,
            },
            log=logger.info,
        )
        logger.metrics({"seconds": artifact.seconds})
        return artifact

    def _open(self) -> RunLogger:
        """The run's record: opened late, so that a finished job touches no server."""
        if self.logger is None:
            from multistill.tracking import open_tracker

            key = fingerprint("run", 1, self.job.identity(), {})
            tracker = open_tracker(
                self.job.tracking,
                self.workspace.root,
                self.job.name,
                run_key=key,
                tags={
                    "multistill.job": self.job.name,
                    "multistill.seed": str(self.job.seed),
                    "multistill.commit": provenance.git_commit() or "unknown",
                    **{f"version.{k}": v for k, v in provenance.versions().items()},
                },
                log=lambda message: self.display.print(message),
            )
            self.tracking_uri = tracker.uri
            self.logger = CompositeLogger([ConsoleLogger(self.display, self.job.name), tracker])
            self.stack.push(self._close)
            resolved = self.workspace.root / "jobs" / f"{self.job.name}-{key}.yaml"
            write_atomic(resolved, self.job.to_yaml())
            self.logger.artifact(resolved, "job")
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

            # Ray Train inside Ray Tune frees what it held through the dashboard.
            nested = self.job.search.enabled and self.job.search.workers_per_trial > 1
            self.stack.enter_context(
                cluster.start(self.job.resources, dashboard=nested, log=self.display.print)
            )
            self.ray_started = True
            job_id = _ray_job_id()
            if job_id:
                logger.tags({"multistill.ray_job_id": job_id})

    def finish(self) -> None:
        if not self.worked:
            self.display.print("nothing to do: every stage of this job is there already")


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


def _publish(job: JobConfig, workspace: Workspace, stages: Stages) -> Path | None:
    """Point `reports/<job>/latest` at this job's report; a reader never finds it missing."""
    report = stages.done.get("report")
    if report is None:
        return None
    latest = workspace.root / "reports" / job.name / "latest"
    if not (latest.is_symlink() and latest.resolve() == report.path.resolve()):
        fresh = latest.with_name(f".latest-{os.getpid()}")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(report.path.name, target_is_directory=True)
        fresh.replace(latest)
    return latest


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let a polite kill (SIGTERM, as schedulers send) end the run like Ctrl-C does."""
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
