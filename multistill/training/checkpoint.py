"""Checkpoints of a running training: written atomically, verified on reading, no pickle.

    <state>/epoch-000003/   model.safetensors, optimizer.safetensors, state.json
    <state>/best-000002/    model.safetensors, state.json
    <state>/step-000003-000041/   as of an epoch: 41 steps of epoch 4, where it was interrupted

A checkpoint is written to a temporary folder, then renamed. `state.json` holds the SHA-256 of
every tensor file. The two newest epochs are kept, so a damaged newest checkpoint costs one
epoch, not the training. Files are not fsynced: that takes longer than an epoch of a small
student, and a killed process loses nothing by it. If a node crashes, the last seconds of
writing may be lost; the checksums detect that, and the epoch is trained again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from multistill.errors import MultistillError
from multistill.models.tensors_file import write_tensors
from multistill.workspace import atomic_path, canonical, read_json, to_json

Tensors = dict[str, torch.Tensor]

FORMAT = 1
_EPOCHS_TO_KEEP = 2
_RECORD = "state.json"
_EPOCH_PREFIX = "epoch-"
_BEST_PREFIX = "best-"
_STEP_PREFIX = "step-"


@dataclass
class Progress:
    """State of a training after `epoch` epochs; `best` is the score of `best_epoch`.

    Attributes:
        begun: what has been done of the next epoch: `steps`, their summed `loss`, `seconds`.
            Empty between two epochs.
    """

    epoch: int = 0
    step: int = 0
    best_epoch: int = 0
    best: list[float] = field(default_factory=list)
    stopped: bool = False
    history: list[dict[str, float]] = field(default_factory=list)
    identity: dict[str, Any] = field(default_factory=dict)
    begun: dict[str, float] = field(default_factory=dict)


@dataclass
class Checkpoint:
    """State of a training after an epoch, or after a step of one.

    Attributes:
        model: the weights that were validated; averaged ones if the training averages.
        optimizer: what else the training continues from, the trained weights included if
            `model` is an average.
    """

    progress: Progress
    model: Tensors
    optimizer: Tensors


def save_checkpoint(state_dir: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, then remove checkpoints that are no longer needed.

    The best weights are hard links to those of their epoch instead of a second copy.
    """
    progress = checkpoint.progress
    state_dir.mkdir(parents=True, exist_ok=True)
    files = {"model.safetensors": checkpoint.model, "optimizer.safetensors": checkpoint.optimizer}
    if progress.begun:
        steps = int(progress.begun["steps"])
        _write_folder(_step_folder(state_dir, progress.epoch, steps), files, progress)
        _prune_steps(state_dir, keep=(progress.epoch, steps))
        return
    folder = _epoch_folder(state_dir, progress.epoch)
    digests = _write_folder(folder, files, progress)
    if progress.best_epoch == progress.epoch:
        _write_folder(
            _best_folder(state_dir, progress.epoch),
            {"model.safetensors": checkpoint.model},
            progress,
            written=(folder, digests),
        )
    _prune(state_dir)


def load_checkpoint(
    state_dir: Path, epoch: int, device: torch.device | str = "cpu", *, steps: int = 0
) -> Checkpoint:
    """Load the checkpoint of an epoch.

    Args:
        steps: of the next epoch, where it was interrupted after so many.

    Raises:
        MultistillError: it is missing, truncated, modified or has another format version.
    """
    folder = _step_folder(state_dir, epoch, steps) if steps else _epoch_folder(state_dir, epoch)
    record = _read_record(folder)
    model = _load_tensors(folder, "model.safetensors", record, device)
    optimizer = _load_tensors(folder, "optimizer.safetensors", record, device)
    return Checkpoint(Progress(**record["progress"]), model, optimizer)


def newest_epoch(state_dir: Path) -> tuple[int, list[str]]:
    """Newest epoch whose files pass their checksums (0: none), and the problems of newer ones."""
    problems: list[str] = []
    for epoch in sorted(_epochs(state_dir, _EPOCH_PREFIX), reverse=True):
        folder = _epoch_folder(state_dir, epoch)
        try:
            record = _read_record(folder)
            for name in record["sha256"]:
                _verified_path(folder, name, record)
            best_epoch = int(record["progress"]["best_epoch"])
            if best_epoch:
                best_folder = _best_folder(state_dir, best_epoch)
                _verified_path(best_folder, "model.safetensors", _read_record(best_folder))
        except MultistillError as error:
            problems.append(str(error))
            continue
        return epoch, problems
    return 0, problems


def newest_steps(state_dir: Path, epoch: int) -> int:
    """Steps of the epoch after `epoch` that a checkpoint holds which passes its checksums."""
    for steps in sorted((s for after, s in _steps(state_dir) if after == epoch), reverse=True):
        folder = _step_folder(state_dir, epoch, steps)
        with contextlib.suppress(MultistillError):
            record = _read_record(folder)
            for name in record["sha256"]:
                _verified_path(folder, name, record)
            return steps
    return 0


def best_weights(state_dir: Path) -> tuple[Tensors, Progress]:
    """Load the weights of the best epoch so far, and the progress of the training.

    Raises:
        MultistillError: there is no checkpoint that passes its checksums.
    """
    epoch, problems = newest_epoch(state_dir)
    if not epoch:
        reason = problems[0] if problems else f"{state_dir} holds no checkpoint"
        raise MultistillError(
            f"no trained weights: {reason}; remove {state_dir} and run the job again"
        )
    progress = Progress(**_read_record(_epoch_folder(state_dir, epoch))["progress"])
    folder = _best_folder(state_dir, progress.best_epoch)
    return _load_tensors(folder, "model.safetensors", _read_record(folder), "cpu"), progress


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Fields in which two nested mappings differ, as dotted names with both values."""
    result: list[str] = []
    for key in sorted(set(old) | set(new)):
        before, after = old.get(key), new.get(key)
        name = f"{prefix}{key}"
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            result += differences(before, after, f"{name}.")
        elif before != after:
            result.append(f"`{name}` was {before!r} and is {after!r}")
    return result


def _epoch_folder(state_dir: Path, epoch: int) -> Path:
    return state_dir / f"{_EPOCH_PREFIX}{epoch:06d}"


def _step_folder(state_dir: Path, epoch: int, steps: int) -> Path:
    return state_dir / f"{_STEP_PREFIX}{epoch:06d}-{steps:06d}"


def _best_folder(state_dir: Path, epoch: int) -> Path:
    return state_dir / f"{_BEST_PREFIX}{epoch:06d}"


def _write_folder(
    folder: Path,
    files: Mapping[str, Tensors],
    progress: Progress,
    written: tuple[Path, Mapping[str, str]] | None = None,
) -> dict[str, str]:
    """Write the files and their record atomically.

    Args:
        written: a folder that holds the same files, and their digests.

    Returns:
        the SHA-256 of each file.
    """
    digests: dict[str, str] = {}
    with atomic_path(folder, concurrent=True) as partial:
        partial.mkdir()
        for file, tensors in files.items():
            if written is not None and _try_link(written[0] / file, partial / file):
                digests[file] = written[1][file]
            else:
                write_tensors(partial / file, tensors)
                digests[file] = _sha256(partial / file)
        record = {"format": FORMAT, "sha256": digests, "progress": vars(progress)}
        content = to_json({**record, "seal": _record_digest(record)})
        (partial / _RECORD).write_text(content, encoding="utf-8")
        if folder.exists():  # damaged, from an earlier attempt: this epoch was trained again
            shutil.rmtree(folder)
    return digests


def _try_link(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError:  # the file system has no hard links
        return False
    return True


def _prune_steps(state_dir: Path, keep: tuple[int, int] | None = None) -> None:
    for epoch, steps in _steps(state_dir):
        if (epoch, steps) != keep:
            shutil.rmtree(_step_folder(state_dir, epoch, steps), ignore_errors=True)


def _prune(state_dir: Path) -> None:
    _prune_steps(state_dir)  # all of them are of an epoch that has ended
    epochs = sorted(_epochs(state_dir, _EPOCH_PREFIX))
    for epoch in epochs[:-_EPOCHS_TO_KEEP]:
        shutil.rmtree(_epoch_folder(state_dir, epoch), ignore_errors=True)
    best_epochs: set[int] = set()
    for epoch in epochs[-_EPOCHS_TO_KEEP:]:
        with contextlib.suppress(MultistillError):
            record = _read_record(_epoch_folder(state_dir, epoch))
            best_epochs.add(int(record["progress"]["best_epoch"]))
    for epoch in _epochs(state_dir, _BEST_PREFIX):
        if epoch not in best_epochs:
            shutil.rmtree(_best_folder(state_dir, epoch), ignore_errors=True)


def _epochs(state_dir: Path, prefix: str) -> list[int]:
    if not state_dir.is_dir():
        return []
    suffixes = (entry.name.removeprefix(prefix) for entry in state_dir.glob(f"{prefix}*"))
    return [int(suffix) for suffix in suffixes if suffix.isdigit()]


def _steps(state_dir: Path) -> list[tuple[int, int]]:
    """Epoch and steps of every checkpoint within an epoch."""
    if not state_dir.is_dir():
        return []
    names = (entry.name.split("-") for entry in state_dir.glob(f"{_STEP_PREFIX}*"))
    return [
        (int(name[1]), int(name[2]))
        for name in names
        if len(name) == 3 and name[1].isdigit() and name[2].isdigit()
    ]


def _record_digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(dict(record)).encode()).hexdigest()


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / _RECORD
    try:
        record = dict(read_json(path))
        digest = record.pop("seal")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MultistillError(f"checkpoint file {path} cannot be read ({error})") from error
    if digest != _record_digest(record):
        raise MultistillError(f"checkpoint file {path} was modified (SHA-256)")
    if record["format"] != FORMAT:
        raise MultistillError(
            f"checkpoint {folder} has format {record['format']}, this version reads {FORMAT}"
        )
    return record


def _verified_path(folder: Path, name: str, record: Mapping[str, Any]) -> Path:
    """Path of a checkpoint's file, after comparing its checksum with the recorded one."""
    try:
        digest = _sha256(folder / name)
    except OSError as error:
        raise MultistillError(f"checkpoint file {folder / name} cannot be read: {error}") from error
    if digest != record["sha256"].get(name):
        raise MultistillError(f"checkpoint file {folder / name} is truncated or modified (SHA-256)")
    return folder / name


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _load_tensors(
    folder: Path, name: str, record: Mapping[str, Any], device: torch.device | str
) -> Tensors:
    path = _verified_path(folder, name, record)
    try:
        return load_file(path, device=str(device))
    except (SafetensorError, ValueError) as error:
        raise MultistillError(f"{path} is not a safetensors file ({error})") from error
