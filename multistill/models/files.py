"""Model folders: `model.safetensors` and `config.json`. Nothing is ever unpickled.

config.json holds all that an application needs to use the model: the architecture (`spec`,
which includes the number of previous turns), the classes in order (`labels`), the kind of
output (`output`), the number of audio frames read (`max_frames`), the encoders it was trained
with, including all their settings (`encoders`), the type in which their states were stored
(`dtype`), and the temperature that calibrates its probabilities (`temperature`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from multistill.config import CLASSES
from multistill.errors import MultistillError
from multistill.models.build import EmotionModel, build
from multistill.models.int8 import from_int8, to_int8
from multistill.models.spec import ModelSpec
from multistill.workspace import read_json, write_atomic, write_json

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
FORMAT = 3
_PICKLES = ("*.pt", "*.pth", "*.bin", "*.pkl", "*.ckpt")

Role = Literal["teacher", "student", "control"]
Output = Literal["logits", "shares"]


@dataclass(frozen=True)
class ModelInfo:
    """Contents of config.json besides the architecture.

    Attributes:
        role: purpose of the model; a control is a student trained without a teacher.
        labels: the classes in the order of the outputs.
        output: `logits` become probabilities by softmax; `shares` are estimates of the vote
            shares, from a model trained with the published squared error.
        max_frames: number of audio frames that the model reads of a clip; None: all.
        encoders: `speech` and `text`: name, revision, dimension and settings (layers and their
            combination, windows, seconds or tokens read), enough to compute the states.
        dtype: type in which the states were stored (`features.dtype`), which rounds them.
        temperature: by which logarithms of probabilities are divided, fitted on validation
            (`multistill.metrics.calibration`); None: they are not calibrated.
        training: human-readable summary of the training.
    """

    role: Role
    labels: Sequence[str] = CLASSES
    output: Output = "logits"
    max_frames: int | None = None
    encoders: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "float16"
    temperature: float | None = None
    training: Mapping[str, Any] = field(default_factory=dict)


class DamagedModelError(MultistillError):
    """The files are missing, incomplete or changed; an older copy of the model may be intact."""


def save_model(model: EmotionModel, folder: Path, info: ModelInfo, *, int8: bool = False) -> None:
    """Write the weights, then the config with their checksum.

    Args:
        int8: round the weights to 8 bits (`multistill.models.int8`).

    Raises:
        ValueError: the info names another number of classes than the model has outputs.
    """
    if len(info.labels) != model.spec.num_classes:
        raise ValueError(f"{len(info.labels)} labels and {model.spec.num_classes} outputs")
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: tensor.detach().to("cpu").contiguous() for name, tensor in model.state_dict().items()
    }
    if int8:
        state = to_int8(state)
    data = save_tensors(state, metadata={"format": "pt"})
    config = {
        "format": FORMAT,
        "role": info.role,
        "labels": list(info.labels),
        "output": info.output,
        "spec": model.spec.to_dict(),
        "audio_dim": model.audio_dim,
        "text_dim": model.text_dim,
        "max_frames": info.max_frames,
        "encoders": dict(info.encoders),
        "dtype": info.dtype,
        "temperature": info.temperature,
        "training": dict(info.training),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    write_atomic(folder / WEIGHTS, data)
    write_json(folder / CONFIG, config)


def read_model_config(folder: Path) -> dict[str, Any]:
    """Read config.json of a model folder.

    Raises:
        DamagedModelError: it is missing or not JSON.
        MultistillError: it has another format version, or the folder holds pickles only.
    """
    try:
        config = read_json(folder / CONFIG)
    except FileNotFoundError:
        pickles = [path.name for kind in _PICKLES for path in sorted(folder.glob(kind))]
        if pickles:
            raise MultistillError(
                f"{folder / pickles[0]} is a pickled checkpoint, which can execute arbitrary "
                f"code and is never loaded; save it as {WEIGHTS} with {CONFIG}"
            ) from None
        raise DamagedModelError(
            f"{folder} is not a model folder: {CONFIG} is missing; pass the folder that holds "
            f"{WEIGHTS}"
        ) from None
    except ValueError as error:
        raise DamagedModelError(
            f"{folder / CONFIG} is damaged ({error}); remove the folder and run the job again"
        ) from error
    if not isinstance(config, dict) or "sha256" not in config or "spec" not in config:
        raise DamagedModelError(f"{folder / CONFIG} is not the config of a multistill model")
    if config.get("format") != FORMAT:
        raise MultistillError(
            f"{folder / CONFIG} has format {config.get('format')}, this version reads {FORMAT}; "
            "use the version of multistill that wrote it"
        )
    return config


def load_model(folder: Path, expect: Mapping[str, Any] | None = None) -> EmotionModel:
    """Load a saved model on the CPU, in eval mode.

    Args:
        expect: required values of config.json, e.g. `audio_dim`, `text_dim`, `labels`, `spec` or
            `encoders`; nested mappings are compared field by field.

    Raises:
        DamagedModelError: truncated or changed files.
        MultistillError: names the first field that differs from `expect`.
    """
    config = read_model_config(folder)
    for name, value in (expect or {}).items():
        _compare(folder, name, config.get(name), value)
    spec = ModelSpec.from_dict(config["spec"])
    model = build(spec, int(config["audio_dim"]), int(config["text_dim"]))
    load_weights(model, folder / WEIGHTS, config["sha256"])
    return model.eval()


def load_weights(model: torch.nn.Module, path: Path, sha256: str) -> None:
    """Load a safetensors file with the given checksum into the model.

    Raises:
        DamagedModelError: the file is missing, truncated or changed.
        MultistillError: a tensor is missing, unexpected or of another shape.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DamagedModelError(
            f"{path} is missing; remove its folder and run the job again"
        ) from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise DamagedModelError(
            f"{path} is damaged: its checksum differs from the one in {CONFIG}; remove its "
            "folder and run the job again"
        )
    try:
        state = from_int8(load_tensors(data))
    except SafetensorError as error:
        raise DamagedModelError(f"{path} is not a safetensors file ({error})") from error
    expected = model.state_dict()
    for name in sorted(set(expected) | set(state)):
        file_shape = list(state[name].shape) if name in state else "missing"
        model_shape = list(expected[name].shape) if name in expected else "missing"
        if file_shape != model_shape:
            raise MultistillError(
                f"{path}: the tensor {name} is {file_shape} in the file and {model_shape} in the "
                "model; the weights belong to another architecture"
            )
    model.load_state_dict(state)


def _compare(folder: Path, name: str, value: Any, expected: Any) -> None:
    if isinstance(value, Mapping) and isinstance(expected, Mapping):
        for key in sorted(set(value) | set(expected)):
            _compare(folder, f"{name}.{key}", value.get(key), expected.get(key))
        return
    if isinstance(expected, tuple):
        expected = list(expected)
    if value != expected:
        raise MultistillError(
            f"the model in {folder} does not match: {name} is {value!r} in its {CONFIG}, expected "
            f"{expected!r}; use a model and features of the same job"
        )
