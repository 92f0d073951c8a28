"""Checkpoints of a training in hand: whole or absent, checked on reading, no pickle.

    <state>/epoch-000003/   model.safetensors, optimizer.safetensors, state.json
    <state>/best-000002/    model.safetensors, state.json

A checkpoint folder is filled beside its final name, then renamed. `state.json` carries the
SHA-256 of every tensor file. The two newest epochs are kept, so a newest one that was cut
short costs one epoch, not the training. Files are not forced to the disk: that takes longer
than an epoch of a small student, a killed process loses nothing by it, and what a crashed
node loses (some seconds of writing) is found by its checksum and trained again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from multistill.errors import MultistillError
from multistill.workspace import atomic_path, canonical, read_json

Tensors = dict[str, torch.Tensor]

FORMAT = 1
_KEPT = 2
_RECORD = "state.json"
_EPOCH = "epoch-"
_BEST = "best-"


@dataclass
class Progress:
    """Where a training stands after `epoch` epochs. `best` is what the best epoch is chosen by."""

    epoch: int = 0
    step: int = 0
    best_epoch: int = 0
    best: list[float] = field(default_factory=list)
    stopped: bool = False
    history: list[dict[str, float]] = field(default_factory=list)
    identity: dict[str, Any] = field(default_factory=dict)


@dataclass
class Checkpoint:
    progress: Progress
    model: Tensors
    optimizer: Tensors


def save_checkpoint(state_dir: Path, checkpoint: Checkpoint) -> None:
    """Write the checkpoint of `checkpoint.progress.epoch`, then drop what is not needed any more.

    The best weights are the same bytes as that epoch's, so they are linked, not written twice.
    """
    progress = checkpoint.progress
    state_dir.mkdir(parents=True, exist_ok=True)
    files = {"model.safetensors": checkpoint.model, "optimizer.safetensors": checkpoint.optimizer}
    folder = _commit(state_dir, f"{_EPOCH}{progress.epoch:06d}", files, progress)
    if progress.best_epoch == progress.epoch:
        _commit(
            state_dir,
            f"{_BEST}{progress.epoch:06d}",
            {"model.safetensors": checkpoint.model},
            progress,
            source=folder,
        )
    _prune(state_dir)


def load_checkpoint(state_dir: Path, epoch: int, device: torch.device | str = "cpu") -> Checkpoint:
    """The checkpoint of one epoch.

    Raises:
        MultistillError: it is missing, cut short, altered, or of another format.
    """
    folder = state_dir / f"{_EPOCH}{epoch:06d}"
    record = _record(folder)
    model = _tensors(folder, "model.safetensors", record, device)
    optimizer = _tensors(folder, "optimizer.safetensors", record, device)
    return Checkpoint(Progress(**record["progress"]), model, optimizer)


def newest_epoch(state_dir: Path) -> tuple[int, list[str]]:
    """Newest epoch whose files pass their checksums (0: none), and what ails newer ones."""
    problems: list[str] = []
    for epoch in sorted(_epochs(state_dir, _EPOCH), reverse=True):
        folder = state_dir / f"{_EPOCH}{epoch:06d}"
        try:
            record = _record(folder)
            for name in record["sha256"]:
                _verify(folder, name, record)
            best = int(record["progress"]["best_epoch"])
            if best:
                best_folder = state_dir / f"{_BEST}{best:06d}"
                _verify(best_folder, "model.safetensors", _record(best_folder))
        except MultistillError as error:
            problems.append(str(error))
            continue
        return epoch, problems
    return 0, problems


def best_weights(state_dir: Path, device: torch.device | str = "cpu") -> tuple[Tensors, Progress]:
    """Weights of the best epoch so far, and the training's progress."""
    epoch, problems = newest_epoch(state_dir)
    if not epoch:
        reason = problems[0] if problems else f"{state_dir} holds no checkpoint"
        raise MultistillError(f"no trained weights: {reason}; train again")
    progress = Progress(**_record(state_dir / f"{_EPOCH}{epoch:06d}")["progress"])
    folder = state_dir / f"{_BEST}{progress.best_epoch:06d}"
    return _tensors(folder, "model.safetensors", _record(folder), device), progress


def differing(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the fields in which two nested mappings differ, with both values."""
    found: list[str] = []
    for key in sorted(set(old) | set(new)):
        before, after = old.get(key), new.get(key)
        name = f"{prefix}{key}"
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += differing(before, after, f"{name}.")
        elif before != after:
            found.append(f"`{name}` was {before!r} and is {after!r}")
    return found


def _commit(
    state_dir: Path,
    name: str,
    files: Mapping[str, Tensors],
    progress: Progress,
    source: Path | None = None,
) -> Path:
    folder = state_dir / name
    with atomic_path(folder, concurrent=True) as partial:
        partial.mkdir()
        for file, tensors in files.items():
            if source is None or not _linked(source / file, partial / file):
                save_file(_plain(tensors), partial / file)
        digests = {file: _digest(partial / file) for file in files}
        record = {"format": FORMAT, "sha256": digests, "progress": vars(progress)}
        sealed = {**record, "seal": _seal(record)}
        (partial / _RECORD).write_text(json.dumps(sealed), encoding="utf-8")
        if folder.exists():  # a damaged one of an earlier attempt: this epoch is being redone
            shutil.rmtree(folder)
    return folder


def _linked(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError:  # file systems without hard links
        return False
    return True


def _prune(state_dir: Path) -> None:
    epochs = sorted(_epochs(state_dir, _EPOCH))
    for epoch in epochs[:-_KEPT]:
        shutil.rmtree(state_dir / f"{_EPOCH}{epoch:06d}", ignore_errors=True)
    needed: set[int] = set()
    for epoch in epochs[-_KEPT:]:
        with contextlib.suppress(MultistillError):
            record = _record(state_dir / f"{_EPOCH}{epoch:06d}")
            needed.add(int(record["progress"]["best_epoch"]))
    for epoch in _epochs(state_dir, _BEST):
        if epoch not in needed:
            shutil.rmtree(state_dir / f"{_BEST}{epoch:06d}", ignore_errors=True)


def _epochs(state_dir: Path, prefix: str) -> list[int]:
    if not state_dir.is_dir():
        return []
    found = (entry.name.removeprefix(prefix) for entry in state_dir.glob(f"{prefix}*"))
    return [int(number) for number in found if number.isdigit()]


def _seal(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(dict(record)).encode()).hexdigest()


def _record(folder: Path) -> dict[str, Any]:
    path = folder / _RECORD
    try:
        record = dict(read_json(path))
        seal = record.pop("seal")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MultistillError(f"checkpoint file {path} cannot be read ({error})") from error
    if seal != _seal(record):
        raise MultistillError(f"checkpoint file {path} is altered")
    if record["format"] != FORMAT:
        raise MultistillError(
            f"checkpoint {folder} is of format {record['format']}, this version reads {FORMAT}"
        )
    return record


def _verify(folder: Path, name: str, record: Mapping[str, Any]) -> Path:
    """Path of a checkpoint's file whose checksum is the recorded one."""
    try:
        digest = _digest(folder / name)
    except OSError as error:
        raise MultistillError(f"checkpoint file {folder / name} cannot be read: {error}") from error
    if digest != record["sha256"].get(name):
        raise MultistillError(f"checkpoint file {folder / name} is cut short or altered (SHA-256)")
    return folder / name


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _tensors(
    folder: Path, name: str, record: Mapping[str, Any], device: torch.device | str
) -> Tensors:
    path = _verify(folder, name, record)
    try:
        return load_file(path, device=str(device))
    except (SafetensorError, ValueError) as error:
        raise MultistillError(f"{path} is not a safetensors file ({error})") from error


def _plain(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    return {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
