"""`multistill doctor`: checks of this machine and of what a job depends on.

Each check is a function that yields findings; a check that raises becomes a finding itself.
Nothing is changed, and no secret is printed.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import socket
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multistill.config.secrets import has_secret
from multistill.tracking.redaction import redact

if TYPE_CHECKING:
    from multistill.config import JobConfig

GIB = 2**30
MIN_MEMORY = 4 * GIB
MIN_WORKSPACE = 5 * GIB
MIN_TEMPORARY = GIB // 2
RAY_TIMEOUT_SECONDS = 90.0
TRACKING_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        sentence: the result, human-readable.
        fix: what to do; empty if `ok`.
    """

    name: str
    ok: bool
    sentence: str
    fix: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


Check = Callable[["JobConfig | None"], Iterator[Finding]]


def examine(job: JobConfig | None = None) -> list[Finding]:
    """Run all checks; with a job, also of its workspace, corpora, encoders, server and cluster."""
    checks: list[tuple[str, Check]] = [
        ("machine", _machine),
        ("disk", _disk),
        ("audio", _audio),
        ("gpu", _gpu),
        ("corpora", _corpora),
        ("encoders", _encoders),
        ("tracking", _tracking),
        ("stages", _stages),
        ("secrets", _secrets),
        ("ray", _ray),
    ]
    findings: list[Finding] = []
    for name, check in checks:
        try:
            findings += check(job)
        except Exception as error:
            text = redact(f"{type(error).__name__}: {error}")
            findings.append(Finding(name, False, text, "report this as a bug"))
    return findings


def render(findings: list[Finding]) -> None:
    """Print the findings, with the fix below each problem."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, markup=False, emoji=False)
    for finding in findings:
        mark = Text("ok   ", "green") if finding.ok else Text("wrong", "bold red")
        console.print(mark, f"{finding.name:<9}", Text(finding.sentence), soft_wrap=True)
        if finding.fix:
            console.print(" " * 15, Text(f"-> {finding.fix}"), soft_wrap=True)


def _machine(job: JobConfig | None) -> Iterator[Finding]:
    from multistill.hardware import cores

    yield Finding(
        "machine",
        True,
        f"Python {platform.python_version()} on {platform.system()}, {cores()} cores",
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if memory < MIN_MEMORY:
        yield Finding(
            "machine",
            False,
            f"{memory / GIB:.1f} GiB of memory; Ray and one model need {MIN_MEMORY / GIB:.0f} GiB",
            "use a larger machine, or a cluster with `multistill submit`",
        )


def _disk(job: JobConfig | None) -> Iterator[Finding]:
    from multistill.cluster.scratch import MIN_FREE, scratch_folder, scratch_problem

    workspace = Path(job.workspace if job else "workspace").absolute()
    existing = next(folder for folder in [workspace, *workspace.parents] if folder.is_dir())
    if not os.access(existing, os.W_OK):
        yield Finding(
            "disk",
            False,
            f"the workspace {workspace} cannot be written",
            "choose another with --workspace",
        )
    folders = [(f"the workspace {workspace}", existing, MIN_WORKSPACE)]
    temporary = Path(tempfile.gettempdir())
    scratch = scratch_folder().absolute()
    if problem := scratch_problem():
        yield Finding("disk", False, *problem)
    else:
        existing = next(folder for folder in [scratch, *scratch.parents] if folder.is_dir())
        folders.append((f"Ray's scratch folder {scratch}", existing, MIN_FREE))
    if temporary != scratch:
        folders.append((f"temporary files in {temporary}", temporary, MIN_TEMPORARY))
    for what, folder, minimum in folders:
        free = shutil.disk_usage(folder).free
        ok = free >= minimum
        fix = "" if ok else f"free some space: at least {minimum / GIB:.0f} GiB are recommended"
        yield Finding("disk", ok, f"{free / GIB:.1f} GiB free for {what}", fix)
    shared = Path("/dev/shm")  # noqa: S108 - the memory file system Ray uses
    size = shutil.disk_usage(shared).total if shared.is_dir() else GIB
    if size < GIB:
        yield Finding(
            "disk",
            False,
            f"{shared} has only {size / 2**20:.0f} MiB, so Ray stores its objects on disk",
            "start the container with --shm-size=2g or more",
        )


def _audio(job: JobConfig | None) -> Iterator[Finding]:
    import soundfile

    formats = soundfile.available_formats()
    ok = {"WAV", "FLAC", "OGG"} <= set(formats)
    fix = "" if ok else "reinstall soundfile: its wheels contain a complete libsndfile"
    yield Finding("audio", ok, f"libsndfile {soundfile.__libsndfile_version__}", fix)


def _gpu(job: JobConfig | None) -> Iterator[Finding]:
    from multistill.hardware import local_gpus

    devices = local_gpus()
    if devices == 0:
        yield Finding("gpu", True, "no NVIDIA GPU on this machine: everything runs on the CPU")
        return
    import torch

    if not torch.cuda.is_available():
        yield Finding(
            "gpu",
            False,
            f"{devices} NVIDIA GPUs, but torch {torch.__version__} cannot use them",
            "install the driver that this torch version needs, or a torch build with CUDA",
        )
        return
    names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
    yield Finding("gpu", True, f"{torch.cuda.device_count()} x {', '.join(sorted(names))}")


def _corpora(job: JobConfig | None) -> Iterator[Finding]:
    for corpus in job.corpora if job else []:
        if corpus.path is None:
            yield Finding("corpora", True, f"{corpus.title}: packaged")
            continue
        exists = Path(corpus.path).exists()
        fix = "" if exists else "correct its `path`, or mount its storage"
        sentence = f"{corpus.title}: {corpus.path} {'exists' if exists else 'is missing'}"
        yield Finding("corpora", exists, sentence, fix)


def _encoders(job: JobConfig | None) -> Iterator[Finding]:
    if job is None:
        return
    from multistill.encoders.packaged import PACKAGED
    from multistill.encoders.registry import BUILT_IN_SPEECH, BUILT_IN_TEXT

    speech, text = job.features.speech, job.features.text
    for what, model, revision, built_in in [
        *(("speech", part.model, part.revision, set(BUILT_IN_SPEECH)) for part in speech.parts),
        ("text", text.model, text.revision, set(BUILT_IN_TEXT)),
    ]:
        if model in built_in and (weights := PACKAGED.get(model)):
            stored = weights.is_stored()
            where = weights.folder if stored else "not on this machine"
            fix = "" if stored else f"run `{weights.command}`"
            yield Finding(
                "encoders",
                stored,
                f"{what}: the weights of {model} are {'in ' if stored else ''}{where}",
                fix,
            )
        elif model not in built_in:
            yield _weights(what, model, revision)
        elif model.startswith("untrained-"):
            yield Finding("encoders", True, f"{what}: {model} is a stand-in with untrained weights")
        else:
            yield Finding("encoders", True, f"{what}: {model} needs no weights")


def _weights(what: str, model: str, revision: str | None) -> Finding:
    from huggingface_hub import try_to_load_from_cache

    from multistill.encoders import hub

    folder = Path(model)
    if folder.is_absolute():
        ok = (folder / "config.json").is_file()
        fix = "" if ok else "give a folder written by save_pretrained"
        return Finding("encoders", ok, f"{what}: {model} is a folder", fix)

    if isinstance(try_to_load_from_cache(model, "config.json", revision=revision), str):
        return Finding("encoders", True, f"{what}: {model} is in the local cache")
    if os.environ.get("HF_HUB_OFFLINE", "0") not in {"", "0"}:
        return Finding(
            "encoders",
            False,
            f"{what}: {model} is not in the local cache, and HF_HUB_OFFLINE is set",
            f"run `hf download {shlex.quote(model)}` on a machine with network access, or give a "
            "folder",
        )
    try:
        hub.resolve(model, revision)
    except hub.UnavailableModelError as error:
        return Finding(
            "encoders",
            False,
            f"{what}: {error}",
            f"correct the name, connect this machine to the model hub, or run "
            f"`hf download {shlex.quote(model)}` where it is connected and copy the folder",
        )
    return Finding("encoders", True, f"{what}: {model} will be downloaded on the first run")


def _tracking(job: JobConfig | None) -> Iterator[Finding]:
    from multistill.config import TrackingConfig
    from multistill.databases import problem_of, sqlite_file
    from multistill.tracking import tracking_uri
    from multistill.tracking.journal import Journal
    from multistill.tracking.owner import Owner, current_owner
    from multistill.tracking.replay import foreign_journals
    from multistill.tracking.server import RecordRejectedError, Server, ServerUnavailableError

    workspace = Path(job.workspace if job else "workspace").absolute()
    uri = tracking_uri(job.tracking if job else TrackingConfig(), workspace)
    address = redact(uri)
    database = sqlite_file(uri)
    is_server = uri.startswith(("http://", "https://"))
    if database == workspace / "mlflow.db" and not database.exists():
        yield Finding("tracking", True, f"{address} will be created on the first run")
    elif not is_server and (problem := problem_of(uri)):
        sentence, _, fix = problem.rpartition("; ")
        yield Finding("tracking", False, f"{address} cannot be used: {sentence}", fix)
    elif database is not None and not database.exists():
        yield Finding("tracking", True, f"{address} will be created on the first run")
    else:
        errors: list[Exception] = []
        server = Server(uri, "multistill doctor", workspace)

        def ping() -> None:
            try:
                server.ping()
            except (ServerUnavailableError, RecordRejectedError) as error:
                errors.append(error)

        thread = threading.Thread(target=ping, daemon=True)
        thread.start()
        thread.join(TRACKING_TIMEOUT_SECONDS)
        if thread.is_alive() or errors:
            timeout = f"no answer within {TRACKING_TIMEOUT_SECONDS:.0f} s"
            reason = str(errors[0]) if errors else timeout
            yield Finding(
                "tracking",
                False,
                f"{address} does not answer ({reason})",
                "start the server, correct tracking.uri, or set tracking.required: false",
            )
        else:
            yield Finding("tracking", True, f"{address} answers")
    owner, spool = current_owner(uri), workspace / "tracking"
    for text in foreign_journals(spool, owner):
        yield Finding("tracking", True, text)
    abandoned = Journal.abandoned(spool, lambda header: owner.may_send(Owner.of(header)))
    unsent = sum(journal.unsent for journal in abandoned)
    for journal in abandoned:
        journal.release()
    if unsent:
        yield Finding(
            "tracking",
            True,
            f"{unsent} records of earlier runs of {owner.name} are not yet sent; the next run "
            "with their server sends them",
        )


def _stages(job: JobConfig | None) -> Iterator[Finding]:
    """What the stages need outside the workspace, such as the database of a search."""
    if job is None:
        return
    from multistill.encoders.preflight import missing_weights
    from multistill.pipeline.recipes import steps_of
    from multistill.workspace import Workspace

    problems = [
        text for step in steps_of(job, Workspace(job.workspace)) for text in step.problems()
    ]
    told = set(missing_weights(job.features))  # by `_encoders`
    for text in problems:
        if text in told:
            continue
        sentence, _, fix = text.rpartition("; ")
        yield Finding("stages", False, sentence, fix)
    if not problems:
        yield Finding("stages", True, "nothing that the stages need is out of reach")


def _secrets(job: JobConfig | None) -> Iterator[Finding]:
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if has_secret(uri):
        yield Finding(
            "secrets",
            False,
            "MLFLOW_TRACKING_URI contains a password, which other programs may log",
            "use MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
        )
    home = Path.home()
    paths = [home / ".mlflow" / "credentials", home / ".ray" / "auth_token"]
    token_path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if token_path:
        paths.append(Path(token_path).expanduser())
        if not paths[-1].is_file() or not paths[-1].stat().st_size:
            yield Finding(
                "secrets",
                False,
                f"RAY_AUTH_TOKEN_PATH is {token_path}, which does not exist or is empty",
                "write the cluster's token into that file, or unset the variable",
            )
    readable_by_others = [
        path
        for path in paths
        if path.is_file()
        and path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH)
        and path.parent.stat().st_mode & (stat.S_IXGRP | stat.S_IXOTH)
        and home.stat().st_mode & (stat.S_IXGRP | stat.S_IXOTH)
    ]
    for path in readable_by_others:
        command = f"chmod 600 {shlex.quote(str(path))}"
        yield Finding("secrets", False, f"{path} can be read by other users", f"run `{command}`")
    if not readable_by_others:
        yield Finding("secrets", True, "no credentials are readable by other users")


def _ray(job: JobConfig | None) -> Iterator[Finding]:
    from multistill import cluster
    from multistill.cluster.address import SHARED
    from multistill.cluster.session import RayStartError
    from multistill.config import ResourcesConfig
    from multistill.errors import MultistillError

    resources = job.resources if job else ResourcesConfig()
    try:
        socket.gethostbyname(socket.gethostname())
    except OSError:
        yield Finding(
            "ray",
            False,
            f"the machine's host name `{socket.gethostname()}` does not resolve",
            "add it to /etc/hosts",
        )
    try:
        with cluster.start(resources) as available:
            import ray

            task = ray.remote(num_cpus=1)(_nothing).remote()
            ray.get(task, timeout=RAY_TIMEOUT_SECONDS)
            where = f"the cluster at {resources.address}" if resources.address else "a local Ray"
            size = f"{available.get('CPU', 0):g} CPUs, {available.get('GPU', 0):g} GPUs"
            note = f"; {SHARED}" if resources.address else ""
            yield Finding("ray", True, f"Ray {ray.__version__}: {where} runs tasks ({size}){note}")
    except RayStartError as error:
        yield Finding("ray", False, error.sentence, error.fix)
    except MultistillError as error:
        sentence, _, fix = str(error).partition("; ")
        yield Finding("ray", False, sentence, fix)
    except TimeoutError:
        yield Finding(
            "ray",
            False,
            f"Ray started, but ran no task within {RAY_TIMEOUT_SECONDS:.0f} s",
            "check that the machine is not overloaded and no firewall blocks local connections",
        )


def _nothing() -> None:
    """Do nothing: a task that checks only that Ray runs tasks."""
