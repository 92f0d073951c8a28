"""Weights of finished models that a training starts from (`TrainingTask.initial`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from multistill.errors import MultistillError
from multistill.models.base import Network
from multistill.models.files import load_model, read_model_config
from multistill.models.joint import JointModel, Model
from multistill.models.spec import ModelSpec

_ONLY_TRAINING = frozenset(
    {"dropout", "classifier_dropout", "modality_dropout", "wide_dropout", "train_encoder"}
)
"""Fields of a spec that change training, and not what the same weights compute."""


def load_initial(model: Model, initial: Mapping[str, str]) -> None:
    """Load the weights of finished models into modules of a model, buffers included.

    So centre and scale of states and of dimensions are those that the weights were trained with.
    Of an encoder that was trained together with such a model, the weights are taken over where
    `model` trains the encoder too.

    Args:
        model: on the CPU.
        initial: as of `TrainingTask`.

    Raises:
        MultistillError: there is no such module, it has another spec or shapes than the finished
            model, or a folder holds no intact model.
    """
    head = model.head if isinstance(model, JointModel) else model
    for name, folder in initial.items():
        target = _module(head, name)
        loaded = load_model(Path(folder))
        source = loaded.head if isinstance(loaded, JointModel) else loaded
        _compare(name, folder, source, target)
        target.load_state_dict(source.state_dict())
        if isinstance(loaded, JointModel):
            if not isinstance(model, JointModel):
                raise MultistillError(
                    f"the initial weights{_of(name)} in {folder} were trained together with their "
                    "encoder, and the model trains none; set `train_encoder` alike in both"
                )
            model.load_trained_encoder_state(loaded.trained_encoder_state())


def initial_record(initial: Mapping[str, str]) -> dict[str, Any]:
    """Where the initial weights come from, for config.json, by module.

    Returns:
        `fingerprint` in the model store, `name` of the training, and `sha256` of the weights.
    """
    records = {}
    for name, folder in initial.items():
        config = read_model_config(Path(folder))
        records[name] = {
            "fingerprint": Path(folder).name,
            "name": config["training"].get("name"),
            "sha256": config["sha256"],
        }
    return records


def _module(head: Network, name: str) -> Network:
    try:
        module = head.get_submodule(name)
    except AttributeError:
        module = None
    if not isinstance(module, Network):
        raise MultistillError(
            f"the network {head.spec.network} has no network `{name}` that initial weights could "
            "be loaded into; name one that it has"
        )
    return module


def _compare(name: str, folder: str, source: Network, target: Network) -> None:
    has = _fields(source.spec, source.audio_dim, source.text_dim)
    wanted = _fields(target.spec, target.audio_dim, target.text_dim)
    for field, value in wanted.items():
        if has[field] != value:
            raise MultistillError(
                f"the initial weights{_of(name)} in {folder} are of a model with {field} "
                f"{has[field]}, and the model that they are loaded into has {value}; set both alike"
            )


def _fields(spec: ModelSpec, audio_dim: int, text_dim: int) -> dict[str, Any]:
    """What decides the shapes of the weights, and what is computed with them."""
    values = {k: v for k, v in spec.to_dict().items() if k not in _ONLY_TRAINING}
    dims = {"audio_dim": audio_dim} if spec.reads_audio else {}
    return values | dims | ({"text_dim": text_dim} if spec.reads_text else {})


def _of(name: str) -> str:
    return f" of `{name}`" if name else ""
