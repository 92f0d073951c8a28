"""A trained model with its weights in 8 bits: in memory to be scored, or as a model folder."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import fields
from pathlib import Path

from safetensors.torch import save as save_tensors

from multistill.errors import UsageError
from multistill.models.files import (
    ENCODER_WEIGHTS,
    WEIGHTS,
    ModelInfo,
    load_model,
    read_model_config,
    save_model,
    trained_encoders_of,
)
from multistill.models.int8 import from_int8, to_int8
from multistill.models.joint import Model, load_trained_state, trained_state


def rounded(model: Model) -> Model:
    """A copy that answers as the model does once it was saved in 8 bits and loaded again."""
    copied = deepcopy(model)
    load_trained_state(copied, from_int8(to_int8(trained_state(model))))
    return copied


def stored_bytes(model: Model, *, int8: bool) -> int:
    """Size of the model's weights files, without the base of an encoder that was trained."""
    tensors = {name: tensor.cpu() for name, tensor in trained_state(model).items()}
    return len(save_tensors(to_int8(tensors) if int8 else tensors))


def quantize(folder: Path, out: Path) -> tuple[int, int]:
    """Write a model folder once more with its weights in 8 bits.

    Returns:
        sizes of the weights files in bytes, before and after.

    Raises:
        UsageError: `out` holds a model.
        MultistillError: `folder` is not a model folder, or is damaged.
    """
    if (out / WEIGHTS).exists():
        raise UsageError(f"{out} holds a model; give another folder for the one in 8 bits")
    config = read_model_config(folder)
    recorded = {each.name: config[each.name] for each in fields(ModelInfo) if each.name in config}
    info = ModelInfo(**recorded, trained=trained_encoders_of(folder, config))
    save_model(load_model(folder), out, info, int8=True)
    return _weights_bytes(folder), _weights_bytes(out)


def _weights_bytes(folder: Path) -> int:
    files = [folder / WEIGHTS, folder / ENCODER_WEIGHTS]
    return sum(file.stat().st_size for file in files if file.exists())
