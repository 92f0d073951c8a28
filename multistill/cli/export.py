"""`multistill export`: a trained model for ONNX Runtime, for torch alone, or for MLflow."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from multistill.cli.options import JobWorkspace, Json, Model, print_json


class Format(StrEnum):
    onnx = "onnx"
    folder = "folder"
    mlflow = "mlflow"


def export(
    model: Model,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="folder to write; new, or empty")
    ],
    form: Annotated[
        Format,
        typer.Option(
            "--format",
            help="onnx: a graph for ONNX Runtime; folder: weights, a program for torch alone and a "
            "model card; mlflow: a model that MLflow loads and serves",
        ),
    ],
    int8: Annotated[
        bool, typer.Option("--int8", help="with onnx: write the graph in 8 bits too")
    ] = False,
    head: Annotated[
        bool,
        typer.Option(
            "--head", help="the graph reads states of the encoder, also where it could read samples"
        ),
    ] = False,
    workspace: JobWorkspace = Path("workspace"),
    as_json: Json = False,
) -> None:
    """Write a trained model for use without this program: ONNX, a folder with a card, MLflow."""
    from multistill.export.formats import export as write

    done = write(model, out, form.value, workspace=workspace, int8=int8, head_only=head)
    if as_json:
        print_json({"out": str(out), "files": done.files, "reads": done.reads, "notes": done.notes})
        return
    for name, size in done.files.items():
        print(f"{out / name}: {size / 1e6:.2f} MB")
    for note in done.notes:
        print(note)
