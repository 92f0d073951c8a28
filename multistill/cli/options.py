"""What the commands share: options, the loading of a job, printing."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multistill.cli.streams import prints_unicode
from multistill.workspace import to_json

if TYPE_CHECKING:
    from multistill.config import JobConfig

JobFile = Annotated[Path, typer.Argument(metavar="JOB.yaml", help="the job file")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="override a value, e.g. --set search.trials=40; repeat it for several",
    ),
]
WorkspaceFolder = Annotated[
    str | None,
    typer.Option(
        "--workspace", metavar="PATH", help="where artifacts are stored (default: the job file's)"
    ),
]
NotifyCommand = Annotated[
    str | None,
    typer.Option(
        "--notify-command",
        metavar="COMMAND",
        envvar="MULTISTILL_NOTIFY_COMMAND",
        help="gets a JSON message on its standard input when the run ends, fails or has a champion",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="print the result as JSON")]
Debug = Annotated[bool, typer.Option("--debug", help="show the traceback of an error")]
_ADDRESS = typer.Option(
    "--address",
    metavar="ADDR",
    envvar="RAY_ADDRESS",
    help="URL of the Ray dashboard (job server), e.g. http://HEAD:8265",
)
Address = Annotated[str, _ADDRESS]
SubmitAddress = Annotated[str | None, _ADDRESS]

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="a model folder, a finished job of the workspace (its best student), or "
        "models:/NAME@champion, models:/NAME/VERSION, runs:/ID of MLflow",
    ),
]
Only = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="CLASS", help="a possible class; repeat it for several"),
]
UnsureBelow = Annotated[
    float | None,
    typer.Option("--unsure-below", help="probability below which there is no label"),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        "--temperature",
        help="of the probabilities, in place of the one fitted on validation; 1: none",
    ),
]
Device = Annotated[
    str | None, typer.Option("--device", help="cpu or cuda; default: a GPU if available")
]
JobWorkspace = Annotated[
    Path, typer.Option("--workspace", metavar="PATH", help="where the job ran")
]


def with_debug(function: Callable[..., None]) -> Callable[..., None]:
    """The command with a `--debug` option, which `multistill.cli.app.main` reads."""

    @functools.wraps(function)
    def command(*arguments: Any, debug: bool, **options: Any) -> None:
        function(*arguments, **options)

    signature = inspect.signature(function, eval_str=True)
    debug = inspect.Parameter(
        "debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Debug
    )
    parameters = [*signature.parameters.values(), debug]
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def load_job(
    job: Path,
    overrides: Sequence[str] | None,
    workspace: str | None,
    *,
    for_cluster: bool = False,
) -> JobConfig:
    """The job of a file with the command line's overrides."""
    from multistill.pipeline import jobfile

    extra = [] if workspace is None else [f"workspace={json.dumps(workspace)}"]
    return jobfile.load(job, [*(overrides or []), *extra], for_cluster=for_cluster)


def print_json(value: Any) -> None:
    # Escapes are JSON's own where the console lacks a character: those of Python are not JSON.
    print(to_json(value, indent=2, ensure_ascii=not prints_unicode()))


def print_text(text: str, *, html: bool = False) -> None:
    """Print a table or a page as it is.

    Characters of a page that the console lacks become references, which every browser reads.
    """
    if html and not prints_unicode():
        text = text.encode("ascii", "xmlcharrefreplace").decode("ascii")
    print(text, end="")
