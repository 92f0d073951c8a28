"""Submitting a job file to Slurm: the batch script is written into the workspace and sent.

    <workspace>/slurm/<name>-<digest>/   job.yaml, and a script and a log of each part

The script starts `multistill.pipeline.slurm_job` on the first node of the allocation.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import shutil
import string
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multistill.cluster.jobs import JOB_FILE, slug_of
from multistill.errors import MultistillError, UsageError
from multistill.workspace import write_atomic

if TYPE_CHECKING:
    from multistill.config import JobConfig

PROGRAM = "multistill.pipeline.slurm_job"
SAVE_BEFORE = 300
"""Seconds before the time limit: Slurm may send the signal a minute earlier, and a step or a
shard ends in between."""
_OWN = {
    *("--array", "--begin", "--chdir", "--dependency", "--error", "--job-name", "--nodes"),
    *("--ntasks", "--ntasks-per-node", "--open-mode", "--output", "--parsable", "--requeue"),
    *("--no-requeue", "--signal", "--wait", "--wrap", "--time", "--partition", "--account"),
    *("--gpus-per-node", "--cpus-per-task", "-a", "-b", "-D", "-d", "-e", "-J", "-N", "-n"),
    *("-o", "-t", "-p", "-A", "-c", "-W"),
}
"""Options of sbatch that the script has already, or that would break it."""
_TIMES = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


@dataclass(frozen=True)
class SlurmRequest:
    """What is asked of Slurm, for every part of a job.

    Attributes:
        time: limit of an attempt, as sbatch takes it; None: the partition's.
        save_before: seconds before the time limit at which the run saves and is queued again.
        options: more options of sbatch, each as one word: `--constraint=a100`.
    """

    nodes: int = 1
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    gpus_per_node: str | None = None
    cpus_per_task: int | None = None
    save_before: int = SAVE_BEFORE
    options: Sequence[str] = ()

    def check(self) -> None:
        """Raises:
        UsageError: sbatch would refuse it, or the job could not save.
        """
        if self.time is not None:
            limit = seconds_of(self.time)
            if limit is None:
                raise UsageError(
                    f"--time {self.time}: write MINUTES, HOURS:MINUTES:SECONDS or DAYS-HOURS"
                )
            if limit <= self.save_before:
                raise UsageError(
                    f"--time {self.time} leaves no time before the run saves, {self.save_before} s "
                    "before the limit; raise --time or lower --save-before"
                )
        for option in self.options:
            name = re.split(r"[=\s]", option, maxsplit=1)[0]
            if not option.startswith("-") or "\n" in option or "\r" in option:
                raise UsageError(
                    f"--sbatch `{option}` is no option of sbatch; write one in one word, e.g. "
                    "--sbatch=--constraint=a100"
                )
            if name in _OWN or (name[:2] in _OWN and name[:2] != "--"):
                raise UsageError(
                    f"--sbatch `{option}`: the script sets {name} itself; remove it, or write "
                    "another script, from the one that --dry-run prints"
                )

    def directives(self, name: str, log: str, tasks: int) -> list[str]:
        """The options of sbatch in the script."""
        chosen = {
            "job-name": name,
            "nodes": self.nodes,
            "time": self.time,
            "partition": self.partition,
            "account": self.account,
            "gpus-per-node": self.gpus_per_node,
            "cpus-per-task": self.cpus_per_task,
            "output": log,
            "array": f"1-{tasks}" if tasks else None,
        }
        lines = [f"--{key}={_quoted(value)}" for key, value in chosen.items() if value is not None]
        return [*lines, *self.options]


@dataclass(frozen=True)
class Part:
    """One Slurm job, or array of them, of a job file; each part waits for the one before.

    Attributes:
        options: of `multistill run`.
        tasks: more options of every task of an array; empty: it is none.
    """

    name: str
    options: list[str] = field(default_factory=list)
    tasks: list[list[str]] = field(default_factory=list)


@dataclass(frozen=True)
class SlurmSubmission:
    """A job in Slurm's queue.

    Attributes:
        ids: of the parts, by name; those of a job that is queued already are found again.
        folder: of scripts and logs.
    """

    ids: dict[str, str]
    folder: Path
    submitted: bool

    def as_json(self) -> dict[str, Any]:
        return {
            "ids": self.ids,
            "folder": str(self.folder),
            "submitted": self.submitted,
            "commands": self.commands(),
        }

    def commands(self) -> dict[str, str]:
        """What shows the state and the logs, and what stops the job."""
        ids = ",".join(self.ids.values())
        return {
            "status": f"squeue --jobs={ids}",
            "logs": f"tail -F {shlex.quote(str(self.folder))}/*.log",
            "stop": f"scancel {ids.replace(',', ' ')}",
        }


def scripts(job: JobConfig, request: SlurmRequest, parts: Sequence[Part]) -> dict[Path, str]:
    """The batch script of every part, by the file that it would be written to.

    Raises:
        UsageError: the request cannot work.
    """
    request.check()
    folder = job_folder(job)
    logs = str(folder).replace("%", "%%")
    return {
        folder / f"{part.name}.sbatch": render(
            request,
            [sys.executable, "-m", PROGRAM, str(folder / JOB_FILE), *part.options],
            name=_slurm_name(job, part),
            log=f"{logs}/{part.name}-{'%A_%a' if part.tasks else '%j'}.log",
            tasks=part.tasks,
        )
        for part in parts
    }


def render(
    request: SlurmRequest,
    command: Sequence[str],
    *,
    name: str,
    log: str,
    tasks: Sequence[Sequence[str]] = (),
) -> str:
    """The batch script of a command."""
    template = string.Template(
        (resources.files("multistill") / "cluster" / "slurm.sbatch").read_text(encoding="utf-8")
    )
    of_tasks = [f"--task={shlex.join(options)}" for options in tasks]
    lines = [shlex.join(command), *(shlex.quote(option) for option in of_tasks)]
    directives = request.directives(name, log, len(tasks))
    return template.substitute(
        directives="\n".join(f"#SBATCH {line}" for line in directives),
        save_before=request.save_before,
        command=" \\\n    ".join(lines),
    )


def submit_to_slurm(
    job: JobConfig, request: SlurmRequest, parts: Sequence[Part]
) -> SlurmSubmission:
    """Write the scripts and send them; a job that is still queued or runs is not sent again.

    Args:
        job: with an absolute workspace on storage that all nodes share.

    Raises:
        UsageError: the request cannot work, or this machine has no Slurm.
        MultistillError: Slurm refuses the job.
    """
    written = scripts(job, request, parts)
    if shutil.which("sbatch") is None:
        raise UsageError(
            "there is no `sbatch` on the path; submit from a login node of the Slurm cluster, or "
            "print the script with --dry-run"
        )
    folder = job_folder(job)
    queued = {part.name: _queued(_slurm_name(job, part)) for part in parts}
    if found := {name: job_id for name, job_id in queued.items() if job_id}:
        return SlurmSubmission(found, folder, submitted=False)
    write_atomic(folder / JOB_FILE, job.to_yaml())
    ids: dict[str, str] = {}
    for path, text in written.items():
        write_atomic(path, text)
        waits = []
        if ids:  # a part whose predecessor failed would wait for ever
            waits = [f"--dependency=afterok:{[*ids.values()][-1]}", "--kill-on-invalid-dep=yes"]
        try:
            said = call_slurm("sbatch", "--parsable", *waits, str(path))
        except MultistillError:
            if ids:
                call_slurm("scancel", *ids.values())
            raise
        ids[path.stem] = said.strip().split(";")[0]
    return SlurmSubmission(ids, folder, submitted=True)


def job_folder(job: JobConfig) -> Path:
    """Of a job's scripts and logs; another content of the job file is another folder."""
    digest = hashlib.sha256(job.to_yaml().encode()).hexdigest()[:8]
    return Path(job.workspace) / "slurm" / f"{slug_of(job.name)}-{digest}"


def seconds_of(text: str) -> int | None:
    """Of a time limit as sbatch takes it: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S; None: no such."""
    match = _TIMES.fullmatch(text)
    if match is None:
        return None
    days, *rest = match.groups()
    numbers = [int(part) for part in rest if part is not None]
    if days is not None:
        hours, minutes, seconds = (*numbers, 0, 0)[:3]
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:
        hours, (minutes, seconds) = 0, (*numbers, 0)[:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def _slurm_name(job: JobConfig, part: Part) -> str:
    return f"{job_folder(job).name}-{part.name}"


def _quoted(value: object) -> str:
    """As sbatch reads it in a script."""
    text = str(value)
    return text if re.fullmatch(r"[\w@%+:,./-]+", text) else '"' + text.replace('"', '\\"') + '"'


def _queued(name: str) -> str | None:
    """Id of this user's job of that name in the queue."""
    ids = call_slurm("squeue", "--me", "--noheader", f"--name={name}", "--format=%F").split()
    return ids[0] if ids else None


def call_slurm(*command: str) -> str:
    """What one of Slurm's commands prints.

    Raises:
        MultistillError: it fails.
    """
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip()
        raise MultistillError(f"`{shlex.join(command)}` failed: {said}") from error
    return result.stdout
