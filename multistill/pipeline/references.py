"""What the jobs of a workspace name: artifacts that a run of them finds, or a report shows.

Counted are the stages of every job file in `jobs/` and of every live run, the stages that runs
and reports recorded, and all that these artifacts name in turn. Nothing is guessed: a job whose
stages cannot be told and that recorded none makes the answer incomplete, and is named.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from multistill.errors import MultistillError
from multistill.pipeline import variants
from multistill.pipeline.drivers import DriverStatus
from multistill.pipeline.recipes import steps_of
from multistill.pipeline.stage_status import step_statuses
from multistill.pipeline.steps.data import Prepare
from multistill.pipeline.steps.training import ModelStep
from multistill.report.files import JSON
from multistill.workspace import DONE, Workspace, to_json

FINGERPRINT = re.compile(r"(?<![0-9a-f])[0-9a-f]{16}(?![0-9a-f])")
REPORTS = "reports"


@dataclass(frozen=True)
class KnownJob:
    """A job that ran in the workspace, or runs.

    Attributes:
        file: its resolved job file.
    """

    name: str
    key: str
    file: Path
    drivers: Sequence[DriverStatus] = ()

    @property
    def live(self) -> DriverStatus | None:
        return next((driver for driver in self.drivers if driver.alive), None)

    def __str__(self) -> str:
        return f"{self.name}@{self.key[: variants.MIN_KEY]}"


@dataclass
class References:
    """What jobs name.

    Attributes:
        fingerprints: of artifacts.
        manifests: of jobs that are still to train: models trained on them may be found again.
        incomplete: jobs of which not everything is known, each with the reason.
    """

    fingerprints: set[str] = field(default_factory=set)
    manifests: set[str] = field(default_factory=set)
    incomplete: dict[str, str] = field(default_factory=dict)


def known_jobs(workspace: Path, drivers: Sequence[DriverStatus]) -> list[KnownJob]:
    """The jobs with a job file in `jobs/`, and those that run."""
    own: dict[str, list[DriverStatus]] = {}
    for driver in drivers:
        own.setdefault(driver.variant, []).append(driver)
    found = {
        variant.key: KnownJob(name, variant.key, variant.file, own.get(variant.key, ()))
        for name in variants.job_names(workspace)
        for variant in variants.find_variants(workspace, name)
    }
    for driver in drivers:
        if driver.alive and driver.variant not in found:
            name, key = str(driver.content["job"]), driver.variant
            found[key] = KnownJob(name, key, driver.job_file, own[key])
    return list(found.values())


def references(workspace: Workspace, jobs: Iterable[KnownJob]) -> References:
    """What these jobs and their reports name."""
    found = References()
    for job in jobs:
        recorded = {stage["fingerprint"] for d in job.drivers for stage in d.content["stages"]}
        manifests = {
            stage["fingerprint"]
            for driver in job.drivers
            for stage in driver.content["stages"]
            if stage["kind"] == Prepare.name
        }
        reports = [folder for folder, key in reports_of(workspace) if key == job.key]
        for folder in reports:
            recorded |= {folder.name} | _fingerprints(folder / JSON)
        found.fingerprints |= recorded | _fingerprints(job.file)
        problem = _add_stages(job, workspace, found)
        if problem and (job.live or not recorded):
            found.incomplete[str(job)] = problem
        if problem:
            found.manifests |= manifests
    _add_what_they_name(workspace, found.fingerprints)
    return found


def reports_of(workspace: Workspace) -> Iterator[tuple[Path, str | None]]:
    """Every report's folder, with the fingerprint of its job; None where that cannot be told."""
    for done in sorted((workspace.root / REPORTS).glob(f"*/[!.]*/{DONE}")):
        if done.parent.is_symlink():  # `latest`
            continue
        try:
            artifact = workspace.find(f"{REPORTS}/{done.parent.parent.name}", done.parent.name)
            key = None
            if artifact is not None:
                key = variants.variant_key(artifact.meta["config"]["job"])
        except (MultistillError, KeyError, TypeError):
            key = None
        yield done.parent, key


def _add_stages(job: KnownJob, workspace: Workspace, found: References) -> str:
    """Add the stages that a run of the job would look for; returns why not all are known."""
    from multistill.pipeline.jobfile import load

    try:
        config = load(job.file, [f"workspace={to_json(str(workspace.root))}"])
        statuses = step_statuses(steps_of(config, workspace), workspace)
    except (MultistillError, OSError) as error:  # its corpora are gone, or its version is another
        return str(error)
    names = [entry.fingerprint for _, entry, _ in statuses if entry.fingerprint]
    found.fingerprints.update(names)
    if any(entry.state != "done" for step, entry, _ in statuses if isinstance(step, ModelStep)):
        found.manifests.update(
            str(entry.fingerprint)
            for step, entry, _ in statuses
            if isinstance(step, Prepare) and entry.fingerprint
        )
    later = [entry.stage for _, entry, _ in statuses if entry.fingerprint is None]
    return f"what its stage `{later[0]}` reads is not made yet" if later else ""


def _add_what_they_name(workspace: Workspace, names: set[str]) -> None:
    folders: dict[str, list[Path]] = {}
    for done in workspace.root.glob(f"*/[0-9a-f]*/{DONE}"):
        folders.setdefault(done.parent.name, []).append(done)
    for done in workspace.root.glob(f"{REPORTS}/*/[0-9a-f]*/{DONE}"):
        folders.setdefault(done.parent.name, []).append(done)
    waiting = [name for name in names if name in folders]
    seen = set(waiting)
    while waiting:
        for done in folders[waiting.pop()]:
            new = _fingerprints(done) & folders.keys() - seen
            seen |= new
            waiting += new
    names |= seen


def _fingerprints(file: Path) -> set[str]:
    try:
        return set(FINGERPRINT.findall(file.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return set()
