"""A trained model as an MLflow model: its folder and three lines of code, and no pickle."""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from multistill import __version__
from multistill.export.programs import quiet
from multistill.models.files import CONFIG, ENCODER_WEIGHTS, WEIGHTS, read_model_config
from multistill.models.spec import ModelSpec
from multistill.tracking.registry import CONTENT
from multistill.tracking.server import draw_no_progress_bars

CODE = Path(__file__).with_name("pyfunc_code.py")
TEXT = "오늘 정말 기뻐요"


def copy_model(folder: Path, out: Path) -> None:
    """Copy what a model folder needs, and not what a training left beside it."""
    out.mkdir(parents=True, exist_ok=True)
    for file in (WEIGHTS, ENCODER_WEIGHTS, CONFIG):
        if (folder / file).exists():
            shutil.copy2(folder / file, out / file)


def write_mlflow(folder: Path, out: Path) -> None:
    """Write a model folder as an MLflow model, with signature, input example and requirements.

    Args:
        out: a folder that does not exist, or is empty.

    Raises:
        MultistillError: `folder` is not a model folder.
    """
    import pandas as pd

    draw_no_progress_bars()
    from mlflow import pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types.schema import ColSpec, DataType, Schema

    config = read_model_config(folder)
    spec = ModelSpec.from_dict(config["spec"])
    reads = ["audio"] * spec.reads_audio + ["text"] * spec.reads_text
    numbers = [*(f"p_{label}" for label in config["labels"]), *spec.dimensions]
    signature = ModelSignature(
        Schema([ColSpec(DataType.string, name, required=len(reads) == 1) for name in reads]),
        Schema(
            [
                ColSpec(DataType.string, "label", required=False),
                *(ColSpec(DataType.double, name, required=False) for name in numbers),
                ColSpec(DataType.string, "error", required=False),
            ]
        ),
    )
    example = {"audio": _tone(), "text": TEXT}
    copied = out.with_name(f"{out.name}.model")
    copy_model(folder, copied / Path(CONTENT).name)
    try:
        with quiet():
            pyfunc.save_model(
                str(out),
                python_model=str(CODE),
                artifacts={"model": str(copied / Path(CONTENT).name)},
                signature=signature,
                input_example=pd.DataFrame({name: [example[name]] for name in reads}),
                pip_requirements=[f"multistill=={__version__}"],
                metadata=_described(config),
            )
    finally:
        shutil.rmtree(copied, ignore_errors=True)
    written = Model.load(str(out))
    flavour = written.flavors[pyfunc.FLAVOR_NAME]
    # Where the files were on this machine says nothing to another.
    flavour["model_code_path"] = CODE.name
    flavour["artifacts"]["model"]["uri"] = CONTENT
    written.save(str(out / "MLmodel"))


def _described(config: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("labels", "role", "sha256", "temperature")
    return {key: config[key] for key in keys} | {"training": config["training"].get("name")}


def _tone() -> str:
    """A quarter of a second of sound as the content of a file, in base64."""
    import soundfile

    time = np.arange(2000) / 8000
    samples = 0.5 * np.sin(2 * np.pi * 200 * time) * np.hanning(len(time))
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 8000, format="WAV", subtype="PCM_U8")
    return base64.b64encode(buffer.getvalue()).decode()
