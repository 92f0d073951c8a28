"""A trained model as a folder to hand over: weights, a program for torch alone, and a card.

`Predictor.load` reads the folder, whatever the model. `program.pt2` needs no code of this package,
and holds raw weights and JSON, no pickle.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open

from multistill.export.card import Report, card
from multistill.export.programs import Traced, quiet
from multistill.export.to_mlflow import copy_model
from multistill.models.files import WEIGHTS, read_model_config
from multistill.models.int8 import SCALES
from multistill.workspace import to_json, write_atomic

PROGRAM, CARD = "program.pt2", "README.md"

_PREDICTOR = """\
from multistill import Predictor

predictor = Predictor.load(".")  # this folder
prediction = predictor.predict({arguments})
print(prediction.label, prediction.distribution, prediction.dimensions)
"""
_SAMPLES = """\
import wave

import numpy as np
import torch

with wave.open("clip.wav") as file:  # one channel of 16 bits at 16 kHz
    assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 16000)
    samples = np.frombuffer(file.readframes(file.getnframes()), np.int16) / np.float32(32768)
program = torch.export.load("program.pt2").module()  # torch alone
with torch.no_grad():
    answer = program(
        samples=torch.from_numpy(samples)[None],
        lengths=torch.tensor([len(samples)]),{text}
    )
"""
_NO_TEXT = """
        text=torch.zeros(1, 1, {width}),  # states of the transcript; none here
        text_mask=torch.zeros(1, 1, dtype=torch.bool),"""
_STATES = """\
import torch

program = torch.export.load("program.pt2").module()  # torch alone; reads states of the encoders
with torch.no_grad():
    answer = program(
{inputs}
    )
"""
_CLASSES = """\
labels = {labels}
print(dict(zip(labels, answer["distribution"][0].tolist(), strict=True)))
"""
_DIMENSIONS = """\
print(dict(zip({dimensions}, answer["dimensions"][0].tolist(), strict=True)))
"""


def write_folder(
    folder: Path, out: Path, name: str, traced: Traced | None, report: Report | None
) -> None:
    """Write a model folder with its program and its card.

    Args:
        out: an existing folder.
        name: of the model.
        traced: None where the model does not become a graph.
        report: report.json of the model's job.

    Raises:
        MultistillError: `folder` is not a model folder.
    """
    config = read_model_config(folder)
    copy_model(folder, out)
    if traced is not None:
        with quiet():
            torch.export.save(traced.program, out / PROGRAM)
    with safe_open(str(folder / WEIGHTS), "pt") as weights:
        int8 = any(key.endswith(SCALES) for key in weights.keys())  # noqa: SIM118
    text = card(config, name, report, examples(config["spec"]["modality"], traced), int8=int8)
    write_atomic(out / CARD, text)


def examples(modality: str, traced: Traced | None) -> list[str]:
    """Code that predicts a clip with the folder as the working directory."""
    arguments = {"audio": '"clip.wav"', "text": 'text="정말 기뻐요"'}.get(
        modality, '"clip.wav", "정말 기뻐요"'
    )
    found = [_PREDICTOR.format(arguments=arguments)]
    if traced is None:
        return found
    inputs = traced.example(4)
    if traced.reads == "states":
        lines = [f"        {name}={_call(each)}," for name, each in inputs.items()]
        code = _STATES.format(inputs="\n".join(lines))
    else:
        width = inputs["text"].shape[2] if "text" in inputs else None
        code = _SAMPLES.format(text=_NO_TEXT.format(width=width) if width else "")
    if labels := traced.config["labels"]:
        code += _CLASSES.format(labels=to_json(labels, ensure_ascii=False))
    if dimensions := traced.config["spec"].get("dimensions"):
        code += _DIMENSIONS.format(dimensions=to_json(dimensions))
    return [*found, code]


def _call(like: torch.Tensor) -> str:
    """Code that makes an input of 100 frames or tokens."""
    shape = ", ".join(map(str, (1, 100, *like.shape[2:])))
    if like.dtype == torch.bool:
        return f"torch.ones({shape}, dtype=torch.bool)"
    return f"torch.randn({shape})"
