"""A model on disk: `model.safetensors` and `config.json`. Nothing is ever unpickled.

config.json holds all that an application needs to use the model: its architecture (`spec`,
previous dialogue turns included), its classes in order (`labels`), what its outputs are
(`output`), how many audio frames it reads (`max_frames`), and the encoders whose states it
was trained on with all their settings (`encoders`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
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
from multistill.models.spec import ModelSpec
from multistill.workspace import read_json, write_atomic, write_json

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
FORMAT = 2
_PICKLES = ("*.pt", "*.pth", "*.bin", "*.pkl", "*.ckpt")


Role = Literal["teacher", "student", "control"]
Output = Literal["logits", "shares"]


@dataclass(frozen=True)
class ModelInfo:
    """What config.json says of a model beside its architecture.

    Attributes:
        role: what it was trained for; a control is a student without a teacher.
        output: `logits` become probabilities by softmax; `shares` are the vote shares themselves,
            from a model trained with the published squared error.
        max_frames: audio frames that it reads of a clip; None: all.
        encoders: `speech` and `text`: name, revision, dimension and settings (layers, how they
            are combined, windows, seconds or tokens read), so that the states can be computed.
        training: summary of the training, for people.
    """

    role: Role
    output: Output = "logits"
    max_frames: int | None = None
    encoders: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)


class DamagedModelError(MultistillError):
    """The files are incomplete or not what was written: an older checkpoint may still do."""


def save_model(model: EmotionModel, folder: Path, info: ModelInfo) -> None:
    """Write the weights, then the config that holds their checksum."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: tensor.detach().to("cpu").contiguous() for name, tensor in model.state_dict().items()
    }
    data = save_tensors(state, metadata={"format": "pt"})
    config = {
        "format": FORMAT,
        "role": info.role,
        "labels": list(CLASSES),
        "output": info.output,
        "spec": model.spec.to_dict(),
        "audio_dim": model.audio_dim,
        "text_dim": model.text_dim,
        "max_frames": info.max_frames,
        "encoders": dict(info.encoders),
        "training": dict(info.training),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    write_atomic(folder / WEIGHTS, data)
    write_json(folder / CONFIG, config)


def read_model_config(folder: Path) -> dict[str, Any]:
    """config.json of a saved model.

    Raises:
        DamagedModelError: it is missing or no JSON.
        MultistillError: it is of a newer format, or the folder only holds pickles.
    """
    try:
        config = read_json(folder / CONFIG)
    except FileNotFoundError:
        pickles = [path.name for kind in _PICKLES for path in sorted(folder.glob(kind))]
        if pickles:
            raise MultistillError(
                f"{folder / pickles[0]} is a pickled checkpoint, which can run any code and is "
                f"never loaded; save it again as {WEIGHTS} with {CONFIG}"
            ) from None
        raise DamagedModelError(
            f"{folder} is no model: {CONFIG} is missing; give the folder that holds {WEIGHTS}"
        ) from None
    except ValueError as error:
        raise DamagedModelError(
            f"{folder / CONFIG} is damaged ({error}); train the model again"
        ) from error
    if not isinstance(config, dict) or "sha256" not in config or "spec" not in config:
        raise DamagedModelError(f"{folder / CONFIG} is not the config of a multistill model")
    if config.get("format") != FORMAT:
        raise MultistillError(
            f"{folder / CONFIG} has format {config.get('format')}, this version reads {FORMAT}; "
            "use the multistill that wrote it"
        )
    return config


def load_model(folder: Path, expect: Mapping[str, Any] | None = None) -> EmotionModel:
    """The saved model on the CPU, in eval mode.

    Args:
        expect: config.json values that must hold, e.g. `audio_dim`, `text_dim`, `spec` or
            `encoders`; nested mappings are compared field by field.
    Raises:
        DamagedModelError: truncated or changed files.
        MultistillError: the first field that differs from `expect` or from our labels.
    """
    config = read_model_config(folder)
    wanted = {"labels": list(CLASSES), **(expect or {})}
    for name, value in wanted.items():
        _compare(folder, name, config.get(name), value)
    spec = ModelSpec.from_dict(config["spec"])
    model = build(spec, int(config["audio_dim"]), int(config["text_dim"]))
    load_weights(model, folder / WEIGHTS, config["sha256"])
    return model.eval()


def load_weights(model: torch.nn.Module, path: Path, sha256: str) -> None:
    """Fill the model from a safetensors file whose checksum is known.

    Raises:
        DamagedModelError: the file is missing, truncated or changed.
        MultistillError: a tensor is missing, superfluous or of another shape.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DamagedModelError(f"{path} is missing; train the model again") from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise DamagedModelError(
            f"{path} is damaged: its checksum is not the recorded one; use an earlier checkpoint "
            "or train the model again"
        )
    try:
        state = load_tensors(data)
    except SafetensorError as error:
        raise DamagedModelError(f"{path} is no safetensors file ({error})") from error
    own = model.state_dict()
    for name in sorted(set(own) | set(state)):
        found = list(state[name].shape) if name in state else "nothing"
        wanted = list(own[name].shape) if name in own else "nothing"
        if found != wanted:
            raise MultistillError(
                f"{path}: the tensor {name} is {found} in the file and {wanted} in the model; "
                "it belongs to a model of another shape"
            )
    model.load_state_dict(state)


def _compare(folder: Path, name: str, found: Any, wanted: Any) -> None:
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        for key in sorted(set(found) | set(wanted)):
            _compare(folder, f"{name}.{key}", found.get(key), wanted.get(key))
        return
    if isinstance(wanted, tuple):
        wanted = list(wanted)
    if found != wanted:
        raise MultistillError(
            f"the model in {folder} does not fit: {name} is {found!r} there and {wanted!r} here; "
            "use the model and the features of one job"
        )
