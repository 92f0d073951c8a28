"""A small learnable corpus, tasks on it, and ways to run them, for the training tests."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from multistill.config import CLASSES, DistillationConfig, TrainConfig
from multistill.corpora.manifest import (
    UNLABELLED,
    classes_of,
    manifest_schema,
    read_manifest,
    write_manifest,
)
from multistill.distillation.targets import write_soft_targets, write_states
from multistill.errors import MultistillError
from multistill.features.copies import copy_name
from multistill.features.distorted import key_of
from multistill.features.store import FeatureStore
from multistill.features.store_writer import Clip, finish_store, read_marker, shard_writer
from multistill.models.files import load_model, read_model_config
from multistill.models.presets import resolve
from multistill.training.checkpoint import best_weights
from multistill.training.data import TrainingData
from multistill.training.distributed import ProcessGroup
from multistill.training.export import export
from multistill.training.loop import fit
from multistill.training.reports import EpochReport
from multistill.training.task import TrainingTask
from multistill.workspace import read_json

AUDIO_DIM, TEXT_DIM = 12, 8

Corpus = tuple[Path, Path]
"""Manifest and feature store."""


def make_corpus(
    folder: Path,
    rows: int = 90,
    *,
    broken: int | None = None,
    quarantined: int = 2,
    offset: float = 0.0,
    classes: Sequence[str] = CLASSES,
    unlabelled: int = 0,
) -> tuple[Path, Path]:
    """Manifest and store of `rows` utterances whose states point in the direction of their class.

    Sessions 0 to 7 are for training, 8 for validation, 9 for test; session = row % 10.

    Args:
        broken: a row whose audio holds a NaN.
        quarantined: number of rows at the end that are not in the store.
        offset: added to all states, whose deviation is 1. Those of pretrained encoders have
            dimensions whose mean is several times the deviation.
        classes: of which the first four, or both of two, have utterances.
        unlabelled: every so many rows have no class, and the rows before them no valence; 0: none.
    """
    random = np.random.default_rng(7)
    directions = random.normal(size=(len(classes), AUDIO_DIM + TEXT_DIM)).astype(np.float32)
    table: list[dict[str, Any]] = []
    clips = []
    for row in range(rows):
        label = int(random.integers(0, min(4, len(classes))))
        tied = row % 17 == 0
        shares = np.full(len(classes), 0.14 / len(classes), np.float32)
        shares[label] += 0.86
        if tied:
            shares[:] = 0
            shares[[0, label or 1]] = 0.5
        unknown = bool(unlabelled) and row % unlabelled == 0
        if unknown:
            shares[:] = 0
        session = row % 10
        split = "test" if session == 9 else "valid" if session == 8 else "train"
        name = f"utt-{row:03d}"
        table.append(
            {
                "utterance_id": name,
                "corpus": "test",
                "session": f"s{session}",
                "dialogue": f"s{session}",
                "turn": row // 10,
                "speaker": f"p{session}",
                "audio_path": f"{name}.wav",
                "num_samples": 16_000,
                "sample_rate": 16_000,
                "duration_s": 1.0,
                "text": name,
                "text_raw": name,
                "label": None if tied or unknown else classes[label],
                "valence": None
                if unlabelled and (row + 1) % unlabelled == 0
                else 1.0 + label + 0.1 * float(directions[label, 0]),
                "arousal": 4.5 - label,
                "label_soft": shares.tolist(),
                "split": split,
                "fold": -1 if split == "test" else session % 4,
                "group": f"s{session}",
                "audio_digest": "",
            }
        )
        frames, tokens = int(random.integers(5, 40)), int(random.integers(0, 7))
        audio = random.normal(size=(frames, AUDIO_DIM)).astype(np.float32)
        text = random.normal(size=(tokens, TEXT_DIM)).astype(np.float32)
        audio += directions[label, :AUDIO_DIM] + offset
        text += directions[label, AUDIO_DIM:] + offset
        if row == broken:
            audio[0, 0] = np.nan
        clips.append(Clip(name, audio, text))
    folder.mkdir(parents=True, exist_ok=True)
    manifest = write_manifest(pa.Table.from_pylist(table, schema=manifest_schema(classes)), folder)
    store = folder / "features"
    with shard_writer(store, 0, "float32", AUDIO_DIM, TEXT_DIM, {}) as writer:
        writer.append(clips[: rows - quarantined])
    marker = read_marker(store, 0)
    assert marker is not None
    finish_store(
        store,
        [marker],
        {
            "dtype": "float32",
            "audio_dim": AUDIO_DIM,
            "text_dim": TEXT_DIM,
            "speech": {"name": "test-speech", "trained": False},
            "text": {"name": "test-text", "trained": False},
        },
    )
    return manifest, store


def without_labels(corpus: tuple[Path, Path], sessions: Sequence[int], folder: Path) -> Corpus:
    """The corpus with these training sessions as clips of a corpus without labels."""
    rows = read_manifest(corpus[0]).to_pylist()
    classes = classes_of(read_manifest(corpus[0]))
    for row in rows:
        if row["session"] in {f"s{number}" for number in sessions}:
            row |= dict.fromkeys(("label", "votes", "valence", "arousal", "dominance"))
            row |= {"label_soft": [0.0] * len(classes), "split": UNLABELLED, "fold": -1}
    folder.mkdir(parents=True)
    table = pa.Table.from_pylist(rows, schema=manifest_schema(classes))
    return write_manifest(table, folder), corpus[1]


def as_two(corpus: Corpus, folder: Path) -> Corpus:
    """The corpus as `first` and `second`, which take turns by ten clips, so that all parts have
    both."""
    rows = read_manifest(corpus[0]).to_pylist()
    for number, row in enumerate(rows):
        row["corpus"] = "second" if number // 10 % 2 else "first"
    schema = manifest_schema(classes_of(read_manifest(corpus[0])))
    folder.mkdir(parents=True, exist_ok=True)
    return write_manifest(pa.Table.from_pylist(rows, schema=schema), folder), corpus[1]


def make_copies(corpus: tuple[Path, Path], folder: Path, copies: int) -> Path:
    """A store of copies of the training clips, longer by a frame; the last clip has only one."""
    store = FeatureStore(corpus[1])
    ids = TrainingData.open(make_task(corpus)).train.ids
    random = np.random.default_rng(8)
    with shard_writer(folder, 0, "float32", AUDIO_DIM, TEXT_DIM, {}) as writer:
        for copy in range(1, copies + 1):
            for name in ids[: len(ids) - (copy > 1)]:
                audio = np.concatenate([store.audio(name), store.audio(name)[-1:]])
                audio = audio + random.normal(size=audio.shape).astype(np.float32)
                key = key_of(copy_name(copy), name)
                writer.append([Clip(key, audio, np.zeros((0, TEXT_DIM), np.float32))])
    marker = read_marker(folder, 0)
    assert marker is not None
    dims = {"audio_dim": AUDIO_DIM, "text_dim": TEXT_DIM}
    finish_store(folder, [marker], {"dtype": "float32", **dims})
    return folder


def make_task(corpus: tuple[Path, Path], name: str = "model", **train: Any) -> TrainingTask:
    """A small student without dropout, so that runs can be compared."""
    manifest, store = corpus
    spec = resolve(
        "small-student",
        {
            "width": 16,
            "heads": 2,
            "feedforward": 32,
            "classifier": 16,
            "dropout": 0.0,
            "classifier_dropout": 0.0,
            "wide_dropout": 0.0,
            "modality_dropout": 0.0,
        },
    )
    settings = {"epochs": 4, "batch_size": 16, "learning_rate": 3e-3, **train}
    return TrainingTask(
        name=name,
        role="student",
        spec=spec,
        train=TrainConfig.model_validate(settings),
        seed=3,
        manifest=str(manifest),
        features=str(store),
    )


def trained(task: TrainingTask, folder: Path) -> dict[str, Any]:
    """The entry `training` of config.json after a real training."""
    data = TrainingData.open(task)
    for _ in fit(task, state_dir=folder / "state", data=data, device="cpu"):
        pass
    export(task, data, folder / "state", folder)
    training: dict[str, Any] = read_model_config(folder)["training"]
    return training


def with_dropout(task: TrainingTask, **spec: Any) -> TrainingTask:
    changes = {
        "dropout": 0.2,
        "classifier_dropout": 0.2,
        "modality_dropout": 0.2,
        "wide_dropout": 0.2,
        **spec,
    }
    return replace(task, spec=replace(task.spec, **changes))


def with_teacher(task: TrainingTask, path: Path, weight: float) -> TrainingTask:
    """The task as a student of a teacher with random logits."""
    ids = TrainingData.open(task).train.ids
    logits = np.random.default_rng(0).normal(size=(len(ids), 7)) * 3
    write_soft_targets(path, ids, logits, "random", np.full(len(ids), -1))
    distillation = DistillationConfig(temperature=3.0, weight=weight)
    return replace(task, soft_targets=str(path), distillation=distillation)


def with_states(
    task: TrainingTask, path: Path, folds: int = 1, **distillation: float
) -> TrainingTask:
    """The task as a student whose teachers, one per fold, have one pooled vector per class."""
    student = with_teacher(task, path, 0.0)
    train = TrainingData.open(task).train
    fold = np.arange(len(train)) % folds
    vectors = np.random.default_rng(1).normal(size=(folds, 7, 10)).astype(np.float32)
    states = np.stack([vectors[f].T @ shares for f, shares in zip(fold, train.shares, strict=True)])
    logits = np.zeros((len(train), 7))
    write_soft_targets(path, train.ids, logits, "t", fold if folds > 1 else fold - 1)
    order = np.random.default_rng(2).permutation(len(train))
    write_states(path, order, fold[order], states[order])
    return replace(student, distillation=DistillationConfig(weight=0.0, **distillation))


def run(task: TrainingTask, state: Path, **more: Any) -> list[EpochReport]:
    """Train on the CPU until the end."""
    return list(fit(task, state_dir=state, device="cpu", **more))


def losses(reports: list[EpochReport], name: str = "train_loss") -> list[float]:
    """A metric of every epoch."""
    return [report.metrics[name] for report in reports]


def weights(state: Path) -> torch.Tensor:
    """The best weights as one vector."""
    tensors, _ = best_weights(state)
    return torch.cat([tensors[name].flatten().double() for name in sorted(tensors)])


def assert_equals_single_process(
    folder: Path, task: TrainingTask, state: Path, tolerance: float
) -> None:
    """Compare losses and weights of a result with an uninterrupted training in this process."""
    reports = run(task, state)
    history = read_json(folder / "history.json")["epochs"]
    assert [epoch["train_loss"] for epoch in history] == pytest.approx(
        losses(reports), abs=tolerance
    )
    expected, _ = best_weights(state)
    weights = load_model(folder).state_dict()
    for name, tensor in expected.items():
        if name.endswith("key_value.bias"):
            # Softmax is invariant to a shift of all keys: the gradient of the key bias is
            # rounding error, which Adam scales to full steps, and which depends on the number
            # of threads.
            shift, value = tensor.chunk(2)
            assert shift.abs().max() < 0.1
            torch.testing.assert_close(weights[name].chunk(2)[1], value, atol=tolerance, rtol=0)
        else:
            torch.testing.assert_close(weights[name], tensor, atol=tolerance, rtol=0)


class ThreadGroup:
    """Ranks as threads, with the same sums as between processes.

    Attributes:
        collectives: number of sums so far.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = threading.Barrier(size, timeout=60)
        self.shared: list[torch.Tensor] = []
        self.collectives = 0

    def process_group(self, rank: int) -> ProcessGroup:
        def all_reduce(tensor: torch.Tensor) -> None:
            if self.barrier.wait() == 0:
                self.shared = []
                self.collectives += 1
            self.barrier.wait()
            self.shared.append(tensor.clone())
            self.barrier.wait()
            total = torch.stack(sorted(self.shared, key=lambda t: t.double().sum().item())).sum(0)
            tensor.copy_(total)
            self.barrier.wait()

        return ProcessGroup(rank, self.size, all_reduce)

    def fit(self, task: TrainingTask, state: Path) -> list[list[EpochReport]]:
        """Train on all ranks; returns the reports of each, or raises the first error."""
        reports: list[list[EpochReport]] = [[] for _ in range(self.size)]
        failed: list[BaseException] = []

        def work(rank: int) -> None:
            try:
                reports[rank] = run(task, state, group=self.process_group(rank))
            except BaseException as error:
                failed.append(error)
                if not isinstance(error, MultistillError):  # those are raised on all ranks
                    self.barrier.abort()

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        errors = [error for error in failed if not isinstance(error, threading.BrokenBarrierError)]
        if errors:
            raise errors[0]
        return reports
