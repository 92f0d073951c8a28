"""`multistill run --from`: a job that MLflow recorded, run again and compared with its record.

The job file is the recorded one. What it does not hold is compared: versions before anything
starts, the data once they are prepared, and the figures at the end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multistill import provenance
from multistill.config import JobConfig, NotifyConfig
from multistill.config.secrets import HIDDEN
from multistill.errors import JobFileError, MultistillError, UsageError
from multistill.pipeline import jobfile
from multistill.tracking.recorded import RecordedRun
from multistill.tracking.server import clean_key
from multistill.wording import counted
from multistill.workspace import fingerprint

REPEATS_TAG = "multistill.repeats"
DIGITS = 3
"""Figures are equal if they do not differ by more than half of the last of these digits, those
that tables show."""
_SHOWN = 4


@dataclass(frozen=True)
class Repetition:
    """A recorded run, and how the job is held against it.

    Attributes:
        strict: other versions, data or figures than the recorded ones are errors.
    """

    recorded: RecordedRun
    strict: bool = False

    def job(self, overrides: Sequence[str], workspace: Path) -> JobConfig:
        """The recorded job, to be run in a workspace.

        Its notifications are the colleague's, so they are left out. Where it names no tracking
        server, it is recorded beside the run that it repeats if that is on a server, else in the
        workspace.

        Raises:
            UsageError: the job needs files that are not on this machine.
            JobFileError: this version reads no such job file.
        """
        try:
            job = jobfile.parse(self.recorded.job, f"job file of {self._title}", overrides)
        except JobFileError as error:
            here = provenance.version()
            recorded = self.recorded.versions.get("multistill", here)
            if recorded == here:
                raise
            other = (
                f"multistill {recorded} recorded it and this is {here}: install that version, or "
                "change what is named with --set"
            )
            raise JobFileError(error.source, [*error.problems, (None, other)]) from None
        tracking, address = job.tracking, self.recorded.address
        if tracking.uri is None and address.startswith("http") and HIDDEN not in address:
            tracking = tracking.model_copy(update={"uri": address})
        job = job.model_copy(
            update={
                "workspace": str(workspace.expanduser().absolute()),
                "notify": NotifyConfig(),
                "tracking": tracking,
            }
        )
        if missing := list(_missing(job)):
            named = "; ".join(f"{key} {path}" for key, path in missing)
            raise UsageError(
                f"the job of {self._title} reads files that are not on this machine: {named}; say "
                f"where they are, e.g. with --set {missing[0][0]}=PATH"
            )
        return job

    @property
    def _title(self) -> str:
        return f"`{self.recorded.name}`"

    def run_key(self, key: str, workspace: Path) -> str:
        """Key of the MLflow run: never that of the repeated run, which stays as it is."""
        inputs = {"job": key, "run": self.recorded.id, "workspace": str(workspace)}
        return fingerprint("repeat", 1, {}, inputs)

    def run_name(self, name: str) -> str:
        return f"{name} repeats {self.recorded.id[:6]}"

    def tags(self) -> dict[str, str]:
        return {REPEATS_TAG: self.recorded.id}

    def other_versions(self) -> dict[str, tuple[str, str]]:
        """What has another version than recorded: the recorded one and that of this machine.

        A commit with uncommitted changes (`+dirty`) is never the same as another.
        """
        here = {**provenance.versions()}
        if commit := provenance.git_commit():
            here["commit"] = commit
        found = {}
        for name, recorded in sorted(self.recorded.versions.items()):
            current = here.get(name, "unknown")
            if recorded != current or recorded.endswith("+dirty"):
                found[name] = (recorded, current)
        return found

    def describe_versions(self) -> str:
        """A sentence on versions; raises UsageError if they differ and the repetition is strict."""
        if not self.recorded.versions:
            return f"{self._title} recorded no versions"
        if not (others := self.other_versions()):
            return "versions and commit are the recorded ones"
        listed = "; ".join(
            f"{name} {_short(here)} (recorded: {_short(recorded)})"
            for name, (recorded, here) in others.items()
        )
        if self.strict:
            raise UsageError(
                f"other versions than those of {self._title}: {listed}; install the recorded ones, "
                "or leave out --strict"
            )
        return f"other versions than recorded: {listed}"

    def describe_data(self, digest: str) -> str:
        """A sentence on the prepared data; raises if they differ and the repetition is strict."""
        if not self.recorded.data:
            return f"{self._title} recorded no digest of its data, so they cannot be compared"
        if digest == self.recorded.data:
            return "recordings, transcripts, votes and split are the recorded ones"
        differ = (
            "recordings, transcripts, votes or split differ from the recorded ones (digest "
            f"{digest}, recorded {self.recorded.data})"
        )
        if self.strict:
            raise MultistillError(
                f"{differ}; set the corpora's paths to the recorded data, or leave out --strict"
            )
        return f"{differ}: other figures are to be expected"

    def compare(self, figures: Mapping[str, float], worked: bool) -> Comparison:
        """Hold the figures of the finished job against the recorded ones.

        Args:
            figures: the metrics `test_*`.
            worked: anything was made; otherwise everything was in the workspace already.
        """
        here = {clean_key(name): float(value) for name, value in figures.items()}
        return Comparison(self.recorded, here, self.other_versions(), worked)


@dataclass(frozen=True)
class Comparison:
    """Figures of a repeated job and the recorded ones.

    Attributes:
        here: the metrics `test_*` of this run.
    """

    recorded: RecordedRun
    here: Mapping[str, float]
    versions: Mapping[str, tuple[str, str]]
    worked: bool

    @property
    def compared(self) -> list[str]:
        """Names of the figures that both runs have."""
        return sorted(self.here.keys() & self.recorded.figures.keys())

    @property
    def different(self) -> list[str]:
        """Names of the figures that are not equal to `DIGITS` digits, most different first."""
        names = [name for name in self.compared if not self._is_equal(name)]
        return sorted(names, key=lambda name: -abs(self._difference(name)))

    @property
    def missing(self) -> list[str]:
        """Names of the recorded figures that this run does not have, and of others it has."""
        return sorted(self.here.keys() ^ self.recorded.figures.keys())

    @property
    def equal(self) -> bool:
        return bool(self.compared) and not self.different and not self.missing

    def _difference(self, name: str) -> float:
        return self.here[name] - self.recorded.figures[name]

    def _is_equal(self, name: str) -> bool:
        here, recorded = self.here[name], self.recorded.figures[name]
        return (math.isnan(here) and math.isnan(recorded)) or (
            abs(here - recorded) <= 0.5 * 10**-DIGITS
        )

    def sentence(self) -> str:
        """Whether the figures equal the recorded ones, and which differ most."""
        title = f"the recorded ones of `{self.recorded.name}` ({self.recorded.id})"
        if not self.recorded.figures:
            return f"the run {self.recorded.id} recorded no test figures to compare with"
        if not self.here:
            return "no test figures yet: they come with the stage `evaluate`"
        number = len(self.compared)
        exact = sum(self.here[name] == self.recorded.figures[name] for name in self.compared)
        if self.different:
            shown = "; ".join(
                f"{name} {self.here[name]:.4f} (recorded: {self.recorded.figures[name]:.4f})"
                for name in self.different[:_SHOWN]
            )
            more = len(self.different) - _SHOWN
            text = (
                f"{len(self.different)} of {counted(number, 'test figure')} differ from {title}: "
                f"{shown}" + (f"; {more} more" if more > 0 else "")
            )
        else:
            text = (
                f"{counted(number, 'test figure')}, all equal to {title} to {DIGITS} digits "
                f"({exact} exactly)"
            )
        if self.missing:
            text += f"; only one of the two has {', '.join(self.missing[:_SHOWN])}"
            more = len(self.missing) - _SHOWN
            text += f" and {more} more" if more > 0 else ""
        if not self.worked:
            text += (
                "; every stage was in this workspace already and nothing was made again, so this "
                "repeats nothing: give an empty folder with --workspace"
            )
        return text

    def as_json(self) -> dict[str, Any]:
        return {
            "run": self.recorded.id,
            "name": self.recorded.name,
            "owner": self.recorded.owner,
            "equal": self.equal,
            "digits": DIGITS,
            "versions": {
                name: {"recorded": recorded, "here": here}
                for name, (recorded, here) in self.versions.items()
            },
            "figures": {
                name: {"recorded": self.recorded.figures.get(name), "here": self.here.get(name)}
                for name in sorted(self.here.keys() | self.recorded.figures.keys())
            },
        }


def _short(version: str) -> str:
    """A version, or the first digits of a commit."""
    commit, plus, dirty = version.partition("+")
    return f"{commit[:12]}{plus}{dirty}" if len(commit) == 40 else version


def _missing(job: JobConfig) -> Iterator[tuple[str, str]]:
    """Keys of the job that name a file or folder which this machine lacks, with the path."""
    paths: list[tuple[str, str | None]] = []
    for number, corpus in enumerate(job.corpora):
        paths += [(f"corpora.{number}.path", corpus.path)]
        paths += [(f"corpora.{number}.audio_root", corpus.audio_root)]
    speech, copies = job.features.speech, job.features.augmentation
    paths += [("features.speech.model", _folder(speech.model))]
    paths += [
        (f"features.speech.additional.{number}.model", _folder(part.model))
        for number, part in enumerate(speech.additional)
    ]
    paths += [("features.text.model", _folder(job.features.text.model))]
    paths += [("features.augmentation.rooms", copies.rooms)]
    paths += [("features.augmentation.noise_folder", copies.noise_folder)]
    for key, path in paths:
        if path is not None and "://" not in path and not Path(path).exists():
            yield key, path


def _folder(model: str) -> str | None:
    """An encoder that is named by an absolute path, not by a name of the hub."""
    return model if Path(model).is_absolute() else None
