"""A job from the first stage to the last: plan it, run it, run it again for nothing.

    from multistill import jobfile, pipeline
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

from multistill import jobfile, provenance
from multistill.config import JobConfig
from multistill.console import ConsoleWatch, Screen, Several
from multistill.errors import UsageError
from multistill.stages import Stages, Step
from multistill.workspace import Artifact, Workspace, fingerprint, write_atomic

if TYPE_CHECKING:
    from multistill.watch import Watch

NEEDS_RAY = {"features", "teacher", "distill", "students", "search", "evaluate"}


@dataclass(frozen=True)
class Planned:
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


def plan(job: JobConfig) -> list[Planned]:
    """Which stages are there and which a run would make. Starts nothing, writes nothing."""
    return _look_up(Stages(job, Workspace(job.workspace)))


def _look_up(stages: Stages) -> list[Planned]:
    planned = []
    known = True
    for name in stages.names():
        if not known:
            planned.append(Planned(name, "after prepare", None, None))
            continue
        try:
            step = stages.step(name)
        except KeyError:  # an input is missing: prepare has not run
            known = False
            planned.append(Planned(name, "after prepare", None, None))
            continue
        found = stages.workspace.find(step.kind, step.fingerprint)
        if found is not None and stages.intact(found):
            stages.done[name] = found
            planned.append(Planned(name, "done", step.fingerprint, found.seconds))
        else:
            planned.append(Planned(name, "to do", step.fingerprint, None))
            # Later fingerprints need only this one, and what a finished prepare says.
            if name != "prepare":
                stages.done[name] = Artifact(
                    name, step.fingerprint, stages.workspace.folder(step.kind, step.fingerprint), {}
                )
    return planned


def run(job: JobConfig, *, until: str | None = None, screen: Screen | None = None) -> Outcome:
    """Make every missing stage, in order, and report.

    Args:
        until: last stage to make; default: all.
    Raises:
        MultistillError: with one sentence. Finished stages and shards are kept.
    """
    screen = screen or Screen()
    workspace = Workspace(job.workspace).open()
    stages = Stages(job, workspace)
    names = stages.names()
    if until is not None:
        names = names[: names.index(until) + 1]
    started = time.monotonic()
    with _interruptible(), ExitStack() as stack:
        work = _Work(job, workspace, stages, screen, stack)
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


def join(job: JobConfig, *, screen: Screen | None = None) -> int:
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

    screen = screen or Screen()
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
    with _interruptible(), cluster.start(job.resources, dashboard=nested, say=screen.line):
        return study.join(folder, ConsoleWatch(screen, job.name), job.search)


class _Work:
    """The engines of one run: opened when the first missing stage needs them."""

    def __init__(
        self,
        job: JobConfig,
        workspace: Workspace,
        stages: Stages,
        screen: Screen,
        stack: ExitStack,
    ) -> None:
        self.job = job
        self.workspace = workspace
        self.stages = stages
        self.screen = screen
        self.stack = stack
        self.watch: Watch | None = None
        self.tracking_uri: str | None = None
        self.ray_started = False

    @property
    def worked(self) -> bool:
        return self.watch is not None

    def make(self, name: str) -> None:
        step = self.stages.step(name)
        found = self.workspace.find(step.kind, step.fingerprint)
        if found is not None and not self.stages.intact(found):
            self.screen.line(f"{name:<9} has lost models; making them again")
            shutil.rmtree(found.path)
            found = None
        if found is not None:
            self.screen.line(f"{name:<9} there already  {step.fingerprint}", style="dim")
            self.stages.done[name] = found
            return
        run_watch = self._open()
        if name in NEEDS_RAY:
            self._start_ray(run_watch)
        self.screen.line(f"{name:<9} working", style="bold")
        watch = run_watch.child(name, key=f"{name}-{step.fingerprint}", kind="stage")
        watch.tags({"multistill.stage": name, "multistill.fingerprint": step.fingerprint})
        watch.tags({f"multistill.input.{stage}": value for stage, value in step.inputs.items()})
        status = "FAILED"
        try:
            self.stages.done[name] = artifact = self._build(step, watch)
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            self.screen.settle()
            watch.close(status)
        self.stages.records[name] = watch.record_id or ""
        self.screen.line(f"{name:<9} done in {artifact.seconds:.0f} s  {step.fingerprint}")

    def _build(self, step: Step, watch: Watch) -> Artifact:
        artifact = self.workspace.make(
            step.kind,
            step.fingerprint,
            lambda out: step.build(out, watch),
            config=step.config,
            inputs=step.inputs,
            provenance={
                "job": self.job.model_dump(mode="json"),
                "versions": provenance.versions(),
                "commit": provenance.git_commit(),
                "ray_job_id": _ray_job_id(),
                "record_id": watch.record_id,
            },
            say=watch.say,
        )
        watch.metrics({"seconds": artifact.seconds})
        return artifact

    def _open(self) -> Watch:
        """The run's record: opened late, so that a finished job touches no server."""
        if self.watch is None:
            from multistill.tracking import open_tracker

            key = fingerprint("run", 1, dict(jobfile.identity(self.job)), {})
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
                say=lambda message: self.screen.line(message),
            )
            self.tracking_uri = tracker.uri
            self.watch = Several([ConsoleWatch(self.screen, self.job.name), tracker])
            self.stack.push(self._close)
            resolved = self.workspace.root / "jobs" / f"{self.job.name}-{key}.yaml"
            write_atomic(resolved, jobfile.dump(self.job))
            self.watch.artifact(resolved, "job")
        return self.watch

    def _close(self, kind: type[BaseException] | None, *_: object) -> bool:
        assert self.watch is not None
        if kind is None:
            status = "FINISHED"
        else:
            status = "KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED"
        self.screen.settle()
        self.watch.close(status)
        return False

    def _start_ray(self, watch: Watch) -> None:
        if not self.ray_started:
            from multistill import cluster

            # Ray Train inside Ray Tune frees what it held through the dashboard.
            nested = self.job.search.enabled and self.job.search.workers_per_trial > 1
            self.stack.enter_context(
                cluster.start(self.job.resources, dashboard=nested, say=self.screen.line)
            )
            self.ray_started = True
            job_id = _ray_job_id()
            if job_id:
                watch.tags({"multistill.ray_job_id": job_id})

    def finish(self) -> None:
        if not self.worked:
            self.screen.line("nothing to do: every stage of this job is there already")


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
