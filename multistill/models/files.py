"""Model folders: `model.safetensors` and `config.json`. Nothing is ever unpickled.

A model that was trained together with an encoder also has `encoder.safetensors`: what training
changed of the encoder. The base is never in it; config.json holds its name and revision. Of a
slimmed encoder it has all weights, and config.json the `architecture`: the base is not needed.

config.json holds all that an application needs to use the model: the architecture (`spec`,
which includes the number of previous turns), the classes in order (`labels`), the kind of
output (`output`), the number of audio frames read (`max_frames`), the encoders it was trained
with, including all their settings (`encoders`), the type in which their states were stored
(`dtype`), and the temperature that calibrates its probabilities (`temperature`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file

from multistill.config import CLASSES
from multistill.damaged import reading
from multistill.errors import MultistillError
from multistill.models.int8 import from_int8, to_int8
from multistill.models.joint import JointModel, Model, build_model
from multistill.models.spec import Encoder, ModelSpec
from multistill.models.tensors_file import write_tensors
from multistill.workspace import atomic_path, read_json, write_json

WEIGHTS = "model.safetensors"
ENCODER_WEIGHTS = "encoder.safetensors"
CONFIG = "config.json"
HISTORY = "history.json"
"""Of the training, with a record of every epoch; beside a model of a job alone."""
FORMAT = 3
_MAX_SIZE = 2**20
"""Of any width or number in `spec`, far beyond every real one."""
if TYPE_CHECKING:
    from multistill.encoders.source import EncoderSource

_PICKLES = ("*.pt", "*.pth", "*.bin", "*.pkl", "*.ckpt")

Role = Literal["teacher", "student", "control"]
Output = Literal["logits", "shares", "one-vs-rest"]


class _Config(BaseModel):
    """What every reader of config.json relies on."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    sha256: str
    spec: dict[str, Any]
    labels: list[str]
    output: Output
    audio_dim: int
    text_dim: int
    max_frames: int | None = Field(ge=1)
    encoders: dict[str, dict[str, Any]]
    dtype: str
    temperature: float | None = Field(gt=0)
    training: dict[str, Any]


@dataclass(frozen=True)
class ModelInfo:
    """Contents of config.json besides the architecture.

    Attributes:
        role: purpose of the model; a control is a student trained without a teacher.
        labels: the classes in the order of the outputs.
        output: `logits` become probabilities by softmax; `shares` are estimates of the vote
            shares, from a model trained with the published squared error; `one-vs-rest` are logits
            of each class against the rest, which become probabilities by a sigmoid.
        thresholds: of these probabilities, in the order of `labels`, from which a class is
            detected (`multistill.metrics.detection`); None without such outputs or validation.
        max_frames: number of audio frames that the model reads of a clip; None: all.
        encoders: `speech` and `text`: name, revision, dimension and settings (layers and their
            combination, windows, seconds or tokens read), enough to compute the states.
        dtype: type in which the states were stored (`features.dtype`), which rounds them.
        temperature: by which logarithms of probabilities are divided, fitted on validation
            (`multistill.metrics.calibration`); None: they are not calibrated.
        training: human-readable summary of the training.
        trained: the encoders that were trained with the model, as they were before.
    """

    role: Role
    labels: Sequence[str] = CLASSES
    output: Output = "logits"
    max_frames: int | None = None
    encoders: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "float16"
    temperature: float | None = None
    thresholds: Sequence[float] | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    trained: Mapping[Encoder, EncoderSource] = field(default_factory=dict)


class DamagedModelError(MultistillError):
    """The files are missing, incomplete or changed; an older copy of the model may be intact."""


def save_model(model: Model, folder: Path, info: ModelInfo, *, int8: bool = False) -> None:
    """Write the weights, then the config with their checksum.

    Args:
        int8: round the weights to 8 bits (`multistill.models.int8`).

    Raises:
        ValueError: the info names another number of classes than the model has outputs.
    """
    if len(info.labels) != model.spec.num_classes:
        raise ValueError(f"{len(info.labels)} labels and {model.spec.num_classes} outputs")
    folder.mkdir(parents=True, exist_ok=True)
    head = model.head if isinstance(model, JointModel) else model
    sha256 = _write_tensors(folder / WEIGHTS, head.state_dict(), int8=int8)
    encoders = dict(info.encoders)
    if isinstance(model, JointModel):
        changed = model.trained_encoder_state()
        digest = _write_tensors(folder / ENCODER_WEIGHTS, changed, int8=int8) if changed else None
        for name, encoder in model.trainable_encoders():
            entry = _trained_entry(encoders.get(name, {}), info.trained[name], digest)
            if (architecture := encoder.architecture()) is not None:
                entry["training"]["architecture"] = architecture
            encoders[name] = entry
    config = {
        "format": FORMAT,
        "role": info.role,
        "labels": list(info.labels),
        "output": info.output,
        "spec": model.spec.to_dict(),
        "audio_dim": model.audio_dim,
        "text_dim": model.text_dim,
        "max_frames": info.max_frames,
        "encoders": encoders,
        "dtype": info.dtype,
        "temperature": info.temperature,
        "thresholds": None if info.thresholds is None else list(info.thresholds),
        "training": dict(info.training),
        "sha256": sha256,
    }
    write_json(folder / CONFIG, config)


def _write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], *, int8: bool) -> str:
    """Write a safetensors file; returns its SHA-256."""
    with atomic_path(path, concurrent=True) as partial:
        write_tensors(partial, to_int8(tensors) if int8 else tensors, {"format": "pt"})
        with partial.open("rb") as stream:
            os.fsync(stream.fileno())
        digest = _sha256(partial)
    return digest


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _trained_entry(
    entry: Mapping[str, Any], source: EncoderSource, digest: str | None
) -> dict[str, Any]:
    """What config.json holds of an encoder that was trained with the model.

    Args:
        digest: of encoder.safetensors; None if the model left the encoder as it was.
    """
    base = source.base()
    return {
        **entry,
        "settings": source.config.model_dump(mode="json"),
        "training": {
            "kind": source.config.train.kind,
            "base": base["name"],
            "revision": base["revision"],
            "seed": source.seed,
            "sha256": digest,
        },
    }


def read_model_config(folder: Path) -> dict[str, Any]:
    """Read config.json of a model folder.

    Raises:
        DamagedModelError: it is missing, not JSON, or a field that all models have is.
        MultistillError: it has another format version, or the folder holds pickles only.
    """
    try:
        config = read_json(folder / CONFIG)
    except (FileNotFoundError, NotADirectoryError):
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
    try:
        _Config.model_validate(config)
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise DamagedModelError(
            f"{folder / CONFIG} is damaged ({reason}); remove the folder and run the job again"
        ) from error
    return config


def load_model(folder: Path, expect: Mapping[str, Any] | None = None) -> Model:
    """Load a saved model on the CPU, in eval mode.

    Args:
        expect: required values of config.json, e.g. `audio_dim`, `text_dim`, `labels`, `spec` or
            `encoders`; nested mappings are compared field by field.

    Raises:
        DamagedModelError: truncated or changed files.
        MultistillError: names the first field that differs from `expect`; or an encoder that was
            trained with the model cannot be loaded, or is another one by now.
    """
    config = read_model_config(folder)
    for name, value in (expect or {}).items():
        _compare(folder, name, config.get(name), value)
    with reading(folder / CONFIG):
        spec = ModelSpec.from_dict(config["spec"])
        dims = int(config["audio_dim"]), int(config["text_dim"])
        if len(config["labels"]) != spec.num_classes:
            raise ValueError(f"{len(config['labels'])} labels and {spec.num_classes} outputs")
        sources = trained_encoders_of(folder, config)
        if not sources:
            _refuse_size(spec, dims, folder / WEIGHTS)
        # What such an encoder is made of is in this file.
        slimmed = {name: source.load() for name, source in sources.items() if source.architecture}
    others = {name: source.load() for name, source in sources.items() if name not in slimmed}
    model = build_model(spec, *dims, {**others, **slimmed})
    if isinstance(model, JointModel):
        load_weights(model.head, folder / WEIGHTS, config["sha256"])
        expected = model.trained_encoder_state()
        if expected:
            digest = next(each["training"]["sha256"] for each in _trained_entries(config).values())
            tensors = _verified_tensors(folder / ENCODER_WEIGHTS, digest, expected)
            model.load_trained_encoder_state(tensors)
    else:
        load_weights(model, folder / WEIGHTS, config["sha256"])
    return model.eval()


def _refuse_size(spec: ModelSpec, dims: tuple[int, int], weights: Path) -> None:
    """Refuse a config that claims more than the weights hold, before memory is taken for it.

    Raises:
        ValueError: a size is implausible.
    """
    sizes = [value for value in vars(spec).values() if isinstance(value, int)]
    if max([*sizes, *dims]) > _MAX_SIZE:
        raise ValueError(f"a size of the model is {max([*sizes, *dims])}")
    held = weights.stat().st_size if weights.exists() else 0
    with torch.device("meta"):
        tensors = build_model(spec, *dims, {}).state_dict().values()
    elements = sum(tensor.numel() for tensor in tensors)
    if elements > max(held, _MAX_SIZE):  # no type takes less than a byte
        raise ValueError(f"the model has {elements} weights, more than {weights.name} can hold")


def _trained_entries(config: Mapping[str, Any]) -> dict[Encoder, Mapping[str, Any]]:
    sections: tuple[Encoder, Encoder] = ("speech", "text")
    entries = {name: config["encoders"].get(name, {}) for name in sections}
    return {name: entry for name, entry in entries.items() if "training" in entry}


def trained_encoders_of(folder: Path, config: Mapping[str, Any]) -> dict[Encoder, EncoderSource]:
    """The encoders that a model was trained with, as they were before.

    Args:
        config: config.json of the folder.

    Raises:
        MultistillError: the weights of one are not here, or are not those of the training.
    """
    from multistill.encoders.source import EncoderSource

    sources: dict[Encoder, EncoderSource] = {}
    for name, entry in _trained_entries(config).items():
        base = entry["training"]
        values = {"config": entry["settings"], **base}
        source = EncoderSource.from_dict(name, values)
        if source.architecture is not None:
            sources[name] = source.slimmed(ModelSpec.from_dict(config["spec"]).slim)
            continue
        found = source.current_revision()
        if (source.config.model, found) != (base["base"], base["revision"]):
            raise MultistillError(
                f"the model in {folder} was trained on `{base['base']}` (revision "
                f"{base['revision']}), and `{source.config.model}` is {found} here: what was "
                "trained belongs to another base; restore those weights, or train again"
            )
        sources[name] = source
    return sources


def load_weights(model: torch.nn.Module, path: Path, sha256: str) -> None:
    """Load a safetensors file with the given checksum into the model.

    Raises:
        DamagedModelError: the file is missing, truncated or changed.
        MultistillError: a tensor is missing, unexpected or of another shape.
    """
    model.load_state_dict(_verified_tensors(path, sha256, model.state_dict()))


def _verified_tensors(
    path: Path, sha256: str, expected: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Tensors of a file, with the names and shapes of `expected`; errors as of `load_weights`."""
    try:
        digest = _sha256(path)
    except FileNotFoundError:
        raise DamagedModelError(
            f"{path} is missing; remove its folder and run the job again"
        ) from None
    if digest != sha256:
        raise DamagedModelError(
            f"{path} is damaged: its checksum differs from the one in {CONFIG}; remove its "
            "folder and run the job again"
        )
    try:
        state = from_int8(load_file(path))
    except SafetensorError as error:
        raise DamagedModelError(f"{path} is not a safetensors file ({error})") from error
    for name in sorted(set(expected) | set(state)):
        file_shape = list(state[name].shape) if name in state else "missing"
        model_shape = list(expected[name].shape) if name in expected else "missing"
        if file_shape != model_shape:
            raise MultistillError(
                f"{path}: the tensor {name} is {file_shape} in the file and {model_shape} in the "
                "model; the weights belong to another architecture"
            )
    return state


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
