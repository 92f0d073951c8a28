"""One door to all formats: find a model, write it, say what was written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from multistill.errors import UsageError
from multistill.inference.predictor import title_of
from multistill.inference.source import found_model
from multistill.models.files import load_model, read_model_config

if TYPE_CHECKING:
    from multistill.export.programs import Traced

Format = Literal["onnx", "folder", "mlflow"]


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        out: the folder.
        files: name -> bytes, of files directly in it and of folders as a whole.
        reads: `samples` or `states` of a graph; None without a graph.
        notes: sentences about what is in the graph, and how it was compared.
    """

    out: Path
    files: dict[str, int]
    reads: str | None = None
    notes: list[str] = field(default_factory=list)


def export(
    model: str | Path,
    out: Path,
    form: Format,
    *,
    workspace: Path = Path("workspace"),
    int8: bool = False,
    head_only: bool = False,
) -> Export:
    """Write a trained model for use elsewhere.

    Args:
        model: as of `Predictor.load`.
        out: the folder to write; it does not exist, or is empty.
        workspace: where the job ran; its report is what a model card says about results.
        int8: also write the ONNX graph in 8 bits.
        head_only: write the head alone as a graph, also where all could be.

    Raises:
        UsageError: there is no such model, `out` is in use, a package is missing, or the options
            do not fit.
        MultistillError: the model folder is damaged, or the graph answers otherwise than the model.
    """
    if (int8 or head_only) and form == "mlflow":
        raise UsageError("--int8 and --head are for graphs; leave them out with --format mlflow")
    if int8 and form == "folder":
        raise UsageError(
            "--int8 is for --format onnx; for a folder, export what `multistill quantize` writes"
        )
    if form == "onnx":
        from multistill.export.to_onnx import require_packages

        require_packages()
    with _new_folder(out) as partial, found_model(model, workspace) as (folder, title):
        name = title or title_of(folder, read_model_config(folder))
        reads: str | None = None
        notes: list[str] = []
        if form == "onnx":
            reads, notes = _onnx(folder, partial, name, int8, head_only)
        elif form == "folder":
            reads, notes = _folder(folder, partial, name, [workspace, *_own(folder)], head_only)
        else:
            _mlflow(folder, partial, name)
    return Export(out, {each.name: _bytes(each) for each in sorted(out.iterdir())}, reads, notes)


def _onnx(folder: Path, out: Path, name: str, int8: bool, head_only: bool) -> tuple[str, list[str]]:
    from multistill.export.programs import trace
    from multistill.export.to_onnx import INT8, MODEL, largest_difference, write_int8, write_onnx

    traced = trace(folder, head_only=head_only)
    difference = write_onnx(traced, out / MODEL, name)
    notes = [*_on_states(traced), f"{MODEL}: logits within {difference:.1g} of torch's"]
    if int8:
        write_int8(out / MODEL, out / INT8)
        difference = largest_difference(traced, out / INT8)
        notes.append(f"{INT8}: logits of random clips within {difference:.1g} of torch's")
    return traced.reads, notes


def _folder(
    folder: Path, out: Path, name: str, workspaces: list[Path], head_only: bool
) -> tuple[str | None, list[str]]:
    from multistill.export.card import find_report
    from multistill.export.programs import trace, why_no_graph
    from multistill.export.to_folder import PROGRAM, write_folder

    config = read_model_config(folder)
    report = find_report(config, workspaces)
    notes = []
    if report is None:
        notes.append("no finished job has this model, so its card has no test results")
    why = why_no_graph(config)
    traced = None if why else trace(folder, head_only=head_only)
    if traced is None:
        load_model(folder)  # a damaged one is not handed over
        notes.append(f"without {PROGRAM}: the model does not become a graph, since {why}")
    else:
        notes += _on_states(traced)
    write_folder(folder, out, name, traced, report)
    return (None if traced is None else traced.reads), notes


def _mlflow(folder: Path, out: Path, name: str) -> None:
    from multistill.export.to_mlflow import write_mlflow
    from multistill.inference.encoders import features_of

    # MLflow would write a model that cannot be loaded, and say so in its log alone.
    model = load_model(folder)
    features_of(read_model_config(folder), model.spec, name)
    write_mlflow(folder, out)


def _on_states(traced: Traced) -> list[str]:
    if traced.why_states:
        return [f"the graph reads states of encoders, not recordings: {traced.why_states}"]
    if "text" in traced.shapes:
        return ["of text the graph reads states of the encoder; text_mask is False without any"]
    return []


def _own(folder: Path) -> list[Path]:
    """The workspace of a model folder that a job wrote."""
    return [folder.resolve().parent.parent]


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder that becomes `out` when the context ends without an error.

    An empty folder is filled and not replaced: it may be a link, a mount, or where the shell is.

    Raises:
        UsageError: `out` is in use, or cannot be written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out {out} is in use; give a folder that is empty or does not exist")
    exists = out.exists()
    partial = (out if exists else out.parent).absolute() / f".{out.name}.{os.getpid()}.partial"
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise UsageError(
            f"--out {out} cannot be written ({error.strerror or error}); give another folder"
        ) from error
    try:
        yield partial
        if exists:
            for each in partial.iterdir():
                each.replace(out / each.name)
        else:
            partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(each.stat().st_size for each in files if each.is_file())
