"""A trained model with its weights in 8 bits: in memory to be scored, or as a model folder."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import fields
from pathlib import Path

from safetensors.torch import save as save_tensors

from multistill.errors import UsageError
from multistill.models.build import EmotionModel
from multistill.models.files import WEIGHTS, ModelInfo, load_model, read_model_config, save_model
from multistill.models.int8 import from_int8, to_int8


def rounded(model: EmotionModel) -> EmotionModel:
    """A copy that answers as the model does once it was saved in 8 bits and loaded again."""
    copied = deepcopy(model)
    copied.load_state_dict(from_int8(to_int8(model.state_dict())))
    return copied


def stored_bytes(model: EmotionModel, *, int8: bool) -> int:
    """Size of the model's weights file."""
    tensors = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    return len(save_tensors(to_int8(tensors) if int8 else tensors))


def quantize(folder: Path, out: Path) -> int:
    """Write a model folder once more with its weights in 8 bits.

    Returns:
        size of the new weights file in bytes.

    Raises:
        UsageError: `out` holds a model.
        MultistillError: `folder` is not a model folder, or is damaged.
    """
    if (out / WEIGHTS).exists():
        raise UsageError(f"{out} holds a model; give another folder for the one in 8 bits")
    config = read_model_config(folder)
    info = ModelInfo(**{each.name: config[each.name] for each in fields(ModelInfo)})
    save_model(load_model(folder), out, info, int8=True)
    return (out / WEIGHTS).stat().st_size
