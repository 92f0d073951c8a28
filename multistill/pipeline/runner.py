"""Runs the steps of a job's recipe in order: looks each one up, makes what is missing.

Every artifact is looked up by fingerprint first. A run that finds all of them starts neither Ray
nor the tracking server. A local Ray starts beside the first missing step if any later step uses it,
also where it turns out that none has to: a manifest that is made again may have the same content.
Nothing here knows a step by name.
"""

from __future__ import annotations

import difflib
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multistill import provenance
from multistill.config import JobConfig
from multistill.errors import MultistillError, UsageError
from multistill.pipeline import record
from multistill.pipeline.drivers import LINKS, Driver, StatusLogger
from multistill.pipeline.forecasts import keep_missing, learn
from multistill.pipeline.notify import Notifier, RunFacts
from multistill.pipeline.recipes import get_recipe, steps_of, why_missing
from multistill.pipeline.run_ray import RunRay
from multistill.pipeline.step import Step, StepRun
from multistill.pipeline.variants import job_file, variant_key
from multistill.tracking.console import CompositeLogger, ConsoleLogger, ProgressDisplay
from multistill.tracking.owner import current_owner, submitter
from multistill.workspace import Artifact, Workspace, write_atomic

if TYPE_CHECKING:
    from multistill.pipeline.repeat import Comparison, Repetition
    from multistill.tracking import Tracker
    from multistill.tracking.logger import RunLogger


@dataclass(frozen=True)
class Outcome:
    """What a run made. `worked` is False when everything existed already.

    Attributes:
        stages: artifact of every step, by the step's name.
        report: folder of the newest report, where the recipe makes one.
        links: where people look: `mlflow` (page of the run), `mlflow_ui` (command that shows it,
            where it is in a database), `ray_dashboard`; None for what this run did not start.
        repeated: of a repeated job, its figures and the recorded ones.
    """

    job: str
    stages: dict[str, Artifact]
    worked: bool
    seconds: float
    report: Path | None
    tracking_uri: str | None
    links: Mapping[str, str | None]
    repeated: Comparison | None = None

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
            "links": dict(self.links),
            "repeats": self.repeated.as_json() if self.repeated else None,
        }


def run(
    job: JobConfig,
    *,
    until: str | None = None,
    display: ProgressDisplay | None = None,
    notify_command: str | None = None,
    repeats: Repetition | None = None,
) -> Outcome:
    """Make every missing artifact of the job's recipe, in order, and publish the report.

    Args:
        until: name of the last step to run; default: all.
        notify_command: told what becomes of the run, beside the webhook of the environment.
        repeats: the recorded run that the job is of: its data and figures are compared.

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
    with (
        terminated_as_interrupt(),
        Driver(workspace, job, variant_key(job.identity())) as driver,
        ExitStack() as stack,
    ):
        notifier = Notifier(job.notify, notify_command, display.print)
        context = RunContext(job, workspace, steps, display, stack, driver, notifier, repeats)
        stack.push(context.notify)  # last, when the record is on the server
        stack.push(context.close)  # after Ray, whose workers write until it ends
        for number in range(len(steps)):
            context.make(number)
        context.finish()
    return Outcome(
        job=job.name,
        stages={step.name: context.artifacts[step.artifact] for step in steps},
        worked=context.worked,
        seconds=time.monotonic() - started,
        report=context.report,
        tracking_uri=context.tracking_uri,
        links=driver.links,
        repeated=context.repeated,
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
        driver: Driver,
        notifier: Notifier,
        repeats: Repetition | None = None,
    ) -> None:
        self.job = job
        self.workspace = workspace
        self.steps = steps
        self.display = display
        self.stack = stack
        self.driver = driver
        self.notifier = notifier
        self.repeats = repeats
        self.repeated: Comparison | None = None
        self.key = variant_key(job.identity())
        self.started = time.monotonic()
        self.stage: str | None = None
        self.summary = record.Summary()
        self.report: Path | None = None
        self.tracker: Tracker | None = None
        self.artifacts: dict[str, Artifact] = {}
        self.stages: list[dict[str, Any]] = []
        self.logger: RunLogger | None = None
        self.tracking_uri: str | None = None
        self.ray = RunRay(job, steps, stack, driver, display)

    @property
    def worked(self) -> bool:
        return self.logger is not None

    def make(self, number: int) -> None:
        """Find the artifact of a step, or build it."""
        step = self.steps[number]
        self.stage = step.name
        name = step.fingerprint(self.artifacts)
        artifact = find_artifact(self.workspace, step, name)
        cached = artifact is not None
        if artifact is not None:
            self.display.print(f"{step.name:<9} exists  {name}", style="dim")
        else:
            self._check_problems(number)
            for later in self.steps[number:]:
                later.preflight(self.artifacts)
            self.ray.begin(self.steps[number:])
            left = [later.name for later in self.steps[number:]]
            keep_missing(self.job, self.steps, self.artifacts, left)
            artifact = self._build(step, name)
            self.display.print(f"{step.name:<9} done in {artifact.seconds:.0f} s  {name}")
        if excess := step.over_limits(artifact):
            raise MultistillError("; ".join(excess))
        if self.repeats is not None and (digest := step.data_digest(artifact)):
            self.display.print(self.repeats.describe_data(digest))
        self.artifacts[step.artifact] = artifact
        self.driver.artifact(step.name, step.kind, name)
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
        problems += self.notifier.problems()
        if problems:
            raise UsageError("; ".join(problems))

    def _build(self, step: Step, name: str) -> Artifact:
        run_logger = self._open()
        self.driver.stage(step.name)
        if step.uses_ray:
            self.ray.connect(run_logger)
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
                    "ray_job_id": self.ray.job_id,
                    "record_id": logger.record_id,
                },
                is_intact=step.is_intact,
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
            from multistill.tracking import open_tracker
            from multistill.tracking.addresses import ui_command

            self.driver.works()
            key, name = self.key, record.run_name(self.job, self.key)
            tags: dict[str, str] = {}
            if self.repeats is not None:
                key = self.repeats.run_key(key, self.workspace.root)
                name, tags = self.repeats.run_name(name), self.repeats.tags()
            tracker = open_tracker(
                self.job.tracking,
                self.workspace.root,
                self.job.name,
                run_key=key,
                run_name=name,
                label=record.label(self.key),
                tags={
                    "multistill.job": self.job.name,
                    "multistill.recipe": self.job.recipe,
                    "multistill.seed": str(self.job.seed),
                    "multistill.commit": provenance.git_commit() or "unknown",
                    **({"multistill.submitted_by": sender} if (sender := submitter()) else {}),
                    **{f"version.{k}": v for k, v in provenance.versions().items()},
                    **tags,
                },
                log=lambda message: self.display.print(message),
            )
            self.tracker, self.tracking_uri = tracker, tracker.uri
            self.driver.link(mlflow=tracker.page, mlflow_ui=ui_command(tracker.uri))
            self._show_links("mlflow", "mlflow_ui")
            status = StatusLogger(self.driver, self.job.name)
            console = ConsoleLogger(self.display, self.job.name)
            self.logger = CompositeLogger([console, tracker, status])
            resolved = job_file(self.workspace.root, self.job.name, self.key)
            write_atomic(resolved, self.job.to_yaml())
            self.logger.artifact(resolved, "job")
            self.logger.params(record.parameters(self.job, self.steps))
            self.logger.tags({record.NOTE_TAG: record.describe(self.job, self.steps)})
        return self.logger

    def close(self, kind: type[BaseException] | None, *_: object) -> bool:
        """Close the run's record, if it was opened."""
        if self.logger is None:
            return False
        if kind is None:
            status = "FINISHED"
        else:
            status = "KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED"
        self.display.clear()
        self.logger.close(status)
        return False

    def _show_links(self, *names: str) -> None:
        for name in names:
            if link := self.driver.links[name]:
                self.display.print(f"{LINKS[name]:<9} {link}", style="dim")

    def finish(self) -> None:
        """Log the main figures, or say that there was nothing to do; publish the report."""
        if self.logger is not None:
            self.summary = record.record(self.job, self.steps, self.artifacts, self.logger)
        else:
            self.display.print("nothing to do: every stage of this job exists already")
            if self.repeats is not None:
                self.summary = record.summarize(self.steps, self.artifacts)
        published = [step.publish(self.artifacts[step.artifact]) for step in self.steps]
        self.report = next((path for path in published if path is not None), None)
        if self.repeats is not None:
            self.repeated = self.repeats.compare(self.summary.figures, self.worked)

    def notify(self, _: object, error: BaseException | None, *__: object) -> bool:
        """Tell people how the run ended; one that had nothing to do is not worth a message."""
        if error is not None or self.worked:
            self.notifier.ended(self._facts, error)
        return False

    def _facts(self) -> RunFacts:
        links = {name: link for name, link in self.driver.links.items() if link is not None}
        links |= {"report": str(self.report)} if self.report else {}
        links |= {"mlflow": self.tracker.page} if self.tracker else {}
        return RunFacts(
            job=self.job.name,
            name=record.run_name(self.job, self.key),
            key=self.key,
            owner=current_owner(self.tracking_uri or "").name,
            seconds=time.monotonic() - self.started,
            stage=self.stage,
            figures=self.summary.main_figures(),
            tags=self.summary.tags_logged,
            links=links,
            champions=self.tracker.champions if self.tracker else (),
        )


def find_artifact(workspace: Workspace, step: Step, name: str) -> Artifact | None:
    """The finished artifact of a step, unless what it refers to was deleted."""
    artifact = workspace.find(step.kind, name)
    return artifact if artifact is not None and step.is_intact(artifact) else None


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
