"""What of a workspace may go: `multistill gc`.

Only what is recognised for what it is goes, and of that only what no job names
(`references`), no live process builds, and nobody has touched for a while. A run that starts
meanwhile waits for the moment in which folders are renamed; they are deleted afterwards.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from multistill.errors import UsageError
from multistill.forecast.rates import FOLDER as RATES
from multistill.forecast.record import FOLDER as FORECASTS
from multistill.pipeline import steps as step_modules
from multistill.pipeline import variants
from multistill.pipeline.drivers import FOLDER as DRIVERS
from multistill.pipeline.drivers import REGISTRATION, DriverStatus, read_drivers
from multistill.pipeline.references import (
    REPORTS,
    KnownJob,
    References,
    known_jobs,
    references,
    reports_of,
)
from multistill.pipeline.step import Step
from multistill.pipeline.steps.continual import FISHER
from multistill.tracking.delivery import unclosed
from multistill.tracking.journal import Journal, held
from multistill.tracking.tracker import SPOOL
from multistill.training.model_store import KIND as MODELS
from multistill.workspace import DELETED, DONE, Workspace, is_held, read_json

PARTIAL = re.compile(r"\.([0-9a-f]{16})\.partial")
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}")
ARTIFACT = re.compile(r"[0-9a-f]{16}")
OURS = {
    *("jobs", "locks", "corpora", "slurm", SPOOL, DRIVERS, RATES, FORECASTS),
    *("digests.npy", ".digests.npy.lock", "mlflow.db", "mlflow-artifacts"),
}
"""Of the workspace's folder, besides the kinds of artifacts: never looked into, or by name."""

AGE = re.compile(r"(\d+(?:\.\d+)?)([smhdw])|0")
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


@dataclass(frozen=True)
class Item:
    """Something that may go.

    Attributes:
        kind: `features`, `models`, ..., `partial`, `journal`, `run` (what a dead process said of
            itself), `job` (a forgotten one's file), `forecast` (of one that is gone), `left over`.
        take: moves it out of the way under its lock, and returns where it is now; None if it is
            in use after all.
    """

    kind: str
    path: Path
    bytes: int
    why: str
    take: Callable[[], Path | None] = field(repr=False, compare=False)


@dataclass
class Garbage:
    """What may go, and what stays although nothing names it.

    Attributes:
        kept: paths that are not recognised, or that stay for another reason, which follows.
        incomplete: jobs of which it is not known what they need, with the reason: as long as
            there is one, no finished artifact goes.
    """

    items: list[Item] = field(default_factory=list)
    kept: dict[Path, str] = field(default_factory=dict)
    incomplete: dict[str, str] = field(default_factory=dict)


def seconds_of(text: str) -> float:
    """An age as people write it: `7d`, `12h`, `90m`, `0`.

    Raises:
        UsageError: it is none.
    """
    match = AGE.fullmatch(text.strip())
    if match is None:
        raise UsageError(
            f"--older-than `{text}` is no age; give a number with s, m, h, d or w, such as 7d"
        )
    return float(match[1]) * SECONDS[match[2]] if match[1] else 0.0


def find_garbage(root: Path, older_than: float, forget: Sequence[str] = ()) -> Garbage:
    """What may go; changes nothing.

    Args:
        older_than: seconds since a thing was last written.
        forget: jobs, as NAME or NAME@FINGERPRINT, that count as deleted; what only they name may
            go whatever its age, with their job files and reports.

    Raises:
        UsageError: there is no such workspace, no such job, or it runs.
    """
    if not root.is_dir():
        raise UsageError(f"there is no workspace `{root}`; give the right folder with --workspace")
    workspace, drivers = Workspace(root), read_drivers(root)
    jobs = known_jobs(root, drivers)
    forgotten = [_forgotten(name, root, jobs) for name in forget]
    return _Search(workspace, older_than, jobs, forgotten, drivers).run()


def delete(root: Path, older_than: float, forget: Sequence[str] = ()) -> tuple[Garbage, list[Item]]:
    """Delete what may go now.

    Returns:
        what was found, with what could not be deleted under `kept`, and what is gone.
    """
    if not root.is_dir():
        return find_garbage(root, older_than, forget), []
    taken: list[tuple[Item, Path]] = []
    with Workspace(root).lock(REGISTRATION):
        garbage = find_garbage(root, older_than, forget)
        for item in garbage.items:
            try:
                path = item.take()
            except OSError as error:
                garbage.kept[item.path] = f"cannot be deleted ({error.strerror})"
                continue
            if path is None:
                garbage.kept[item.path] = "is in use"
            else:
                taken.append((item, path))
    gone = []
    for item, path in taken:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        if path.exists():
            garbage.kept[path] = "cannot be deleted"
        else:
            gone.append(item)
    return garbage, gone


def _forgotten(name: str, root: Path, jobs: Sequence[KnownJob]) -> KnownJob:
    key = None
    if not variants.find_variants(root, name) and "@" in name:
        name, _, key = name.rpartition("@")
    chosen = variants.choose(root, name, key, "as NAME@FINGERPRINT")
    job = next(job for job in jobs if job.key == chosen.key)
    if job.live:
        said = job.live.content
        raise UsageError(
            f"--forget {job}: it runs on {said['node']} (process {said['pid']}); stop it first"
        )
    return job


def artifact_kinds() -> set[str]:
    """Folders of a workspace that hold artifacts; those of reports are below `reports`."""
    for module in iter_modules(step_modules.__path__):
        import_module(f"{step_modules.__name__}.{module.name}")
    names = {step.name for step in _below(Step) if hasattr(step, "name")}
    return {*names, MODELS, FISHER} - {"report"}


def _below(cls: type[Any]) -> Iterator[type[Any]]:
    for each in cls.__subclasses__():
        yield each
        yield from _below(each)


class _Search:
    """One look at a workspace."""

    def __init__(
        self,
        workspace: Workspace,
        older_than: float,
        jobs: Sequence[KnownJob],
        forgotten: Sequence[KnownJob],
        drivers: Sequence[DriverStatus],
    ) -> None:
        self.workspace, self.drivers, self.forgotten = workspace, drivers, forgotten
        self.before = time.time() - older_than
        keys = {job.key for job in forgotten}
        self.stay = [job for job in jobs if job.key not in keys]
        self.named = references(workspace, self.stay)
        self.only_forgotten = references(workspace, forgotten) if forgotten else References()
        self.found = Garbage(incomplete=self.named.incomplete)

    def run(self) -> Garbage:
        kinds = artifact_kinds()
        for path in sorted(self.workspace.root.iterdir()):
            if path.name in kinds and path.is_dir():
                self._artifacts(path.name, path)
            elif path.name == REPORTS and path.is_dir():
                for job in sorted(path.iterdir()):
                    if job.is_dir():
                        self._artifacts(f"{REPORTS}/{job.name}", job)
                    else:
                        self._left_over(job)
            elif path.name not in OURS and not path.name.startswith("mlflow.db-"):
                self._left_over(path)
        for folder in ("jobs", DRIVERS, RATES, FORECASTS):
            for path in sorted((self.workspace.root / folder).glob(".*")):
                self._left_over(path)
        self._forgotten_jobs()
        self._runs()
        self._forecasts()
        self._journals()
        return self.found

    def _artifacts(self, kind: str, folder: Path) -> None:
        reports = kind.startswith(REPORTS)
        keys = dict(reports_of(self.workspace)) if reports else {}
        for path in sorted(folder.iterdir()):
            if partial_name := PARTIAL.fullmatch(path.name):
                self._partial(kind, partial_name[1], path)
            elif path.is_symlink() and reports:  # `latest`
                if not path.exists():
                    self._add("left over", path, "points to a report that is gone")
            elif not (ARTIFACT.fullmatch(path.name) and (path / DONE).is_file()):
                self._left_over(path)
            elif reports:
                if keys.get(path) in {job.key for job in self.forgotten}:
                    self._artifact(kind, path, "of a forgotten job")
            elif path.name not in self.named.fingerprints and self._describes_itself(kind, path):
                self._unnamed(kind, path)

    def _unnamed(self, kind: str, path: Path) -> None:
        forgotten = path.name in self.only_forgotten.fingerprints
        if self.named.incomplete:
            jobs = ", ".join(self.named.incomplete)
            self.found.kept[path] = f"it is not known what {jobs} needs"
        elif kind in (MODELS, FISHER) and self._may_be_found_again(path):
            return
        elif forgotten or _is_older(path / DONE, self.before):
            why = "of a forgotten job only" if forgotten else "no job names it"
            self._artifact(kind, path, why)

    def _may_be_found_again(self, path: Path) -> bool:
        """Whether a job that is still to train could use a model that no finished stage names."""
        try:
            manifest = str(read_json(path / DONE)["inputs"]["manifest"])
        except (OSError, ValueError, KeyError, TypeError):
            return True
        return manifest[:16] in self.named.manifests  # of a fold: `<fingerprint>-<number>`

    def _describes_itself(self, kind: str, path: Path) -> bool:
        try:
            meta = read_json(path / DONE)
            if (meta["kind"], meta["fingerprint"]) == (kind, path.name):
                return True
        except (OSError, ValueError, KeyError, TypeError):
            pass
        self.found.kept[path] = f"its {DONE} does not describe it"
        return False

    def _artifact(self, kind: str, path: Path, why: str) -> None:
        take = partial(self.workspace.discard, kind, path.name, path)
        self.found.items.append(Item(kind.split("/")[0], path, size_of(path), why, take))

    def _partial(self, kind: str, fingerprint: str, path: Path) -> None:
        locks = [*path.rglob("drivers/*"), *path.rglob("*lock")]  # of who joined a search
        if self.workspace.is_building(kind, fingerprint) or any(map(is_held, locks)):
            return
        if fingerprint in self.only_forgotten.fingerprints or _newest(path) < self.before:
            why = "of no live run"
            if fingerprint in self.named.fingerprints:
                why += "; the next run of its job begins this stage anew"
            take = partial(self.workspace.discard, kind, fingerprint, path)
            self.found.items.append(Item("partial", path, size_of(path), why, take))

    def _left_over(self, path: Path) -> None:
        if path.name.endswith(DELETED):
            self._add("left over", path, "was being deleted")
        elif not TEMPORARY.fullmatch(path.name):
            self.found.kept[path] = "is not recognised"
        elif _newest(path) < self.before:
            self._add("left over", path, "of a write that a kill cut off")

    def _forgotten_jobs(self) -> None:
        for job in self.forgotten:
            self._add("job", job.file, "forgotten")

    def _runs(self) -> None:
        known = {job.key for job in self.stay}
        forgotten = {job.key for job in self.forgotten}
        for driver in self.drivers:
            gone = driver.variant in forgotten or _newest(driver.folder) < self.before
            if not driver.alive and driver.variant not in known and gone:
                self._add("run", driver.folder, "its job is gone")
        read = {driver.folder for driver in self.drivers}
        for path in sorted((self.workspace.root / DRIVERS).glob("[!.]*")):
            if path not in read and not is_held(path / "lock"):
                self.found.kept[path] = "its status cannot be read"

    def _forecasts(self) -> None:
        """Rates stay: a later job's forecast rests on them, and a file of them is small."""
        known = {job.key for job in self.stay}
        forgotten = {job.key for job in self.forgotten}
        for path in sorted((self.workspace.root / FORECASTS).glob("[!.]*.json")):
            key = path.stem.rpartition("-")[2]
            if key in forgotten or (key not in known and _newest(path) < self.before):
                self._add("forecast", path, "its job is gone")

    def _journals(self) -> None:
        for journal in Journal.read_all(self.workspace.root / SPOOL):
            if self._is_delivered(journal) and _newest(journal.folder) < self.before:
                self._add("journal", journal.folder, "the server has all that it records")

    @staticmethod
    def _is_delivered(journal: Journal) -> bool:
        """Whether a replay has nothing left to do: neither to send, nor to end a killed run."""
        try:
            left = journal.unsent or journal.doubts or unclosed(journal)
        except (OSError, LookupError, TypeError, ValueError):  # gone meanwhile, or damaged
            return False
        return not (left or held(journal.folder))

    def _add(self, kind: str, path: Path, why: str) -> None:
        self.found.items.append(Item(kind, path, size_of(path), why, partial(_aside, path)))


def _aside(path: Path) -> Path | None:
    if is_held(path / "lock"):
        return None
    if path.name.endswith(DELETED):
        return path
    target = path.with_name(f".{path.name.strip('.')[:100]}.{time.time_ns()}{DELETED}")
    with suppress(FileNotFoundError):
        path.rename(target)
        return target
    return None


def size_of(path: Path) -> int:
    """Bytes of a file or of all files in a folder; links are not followed."""
    return sum(status.st_size for status in _statuses(path))


def _newest(path: Path) -> float:
    return max((status.st_mtime for status in _statuses(path)), default=time.time())


def _is_older(path: Path, before: float) -> bool:
    try:
        return path.lstat().st_mtime < before
    except OSError:
        return False


def _statuses(path: Path) -> Iterator[os.stat_result]:
    with suppress(OSError):
        yield path.lstat()
    if path.is_dir() and not path.is_symlink():
        for folder, _, files in os.walk(path):
            for name in files:
                with suppress(OSError):
                    yield Path(folder, name).lstat()
