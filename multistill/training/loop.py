"""The loop that trains one model: pure PyTorch, the same alone, under Ray Train and in a trial."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multistill.config import CLASSES
from multistill.errors import MultistillError
from multistill.features.collate import plan_batches, shard_for_rank
from multistill.hardware import default_device
from multistill.inference.predict import predict_logits
from multistill.models.build import EmotionModel, build
from multistill.training.checkpoint import (
    Checkpoint,
    Progress,
    differing,
    load_checkpoint,
    newest_epoch,
    save_checkpoint,
)
from multistill.training.data import TrainingData, micro_batches
from multistill.training.distributed import ProcessGroup
from multistill.training.nonfinite import REPORT, NonFiniteCheck
from multistill.training.objective import Objective, sampling_weights, scores
from multistill.training.optimizer import NamedAdamW, runs_bfloat16
from multistill.training.prefetch import MicroBatch, Prefetcher
from multistill.training.schedule import derived_seed, learning_rate
from multistill.training.step import FlatGradients, training_step
from multistill.training.task import TrainingTask
from multistill.typing import IntArray

_OBJECTIVE = "objective."

CPU_STATES = 2**20
"""Padded positions times width of a piece on a CPU: what stays in its caches computes faster,
and the shorter pieces are, the less of them is padding."""


@dataclass(frozen=True)
class EpochReport:
    """What one epoch came to.

    Attributes:
        epoch: 1 for the first.
        metrics: train_loss, learning_rate, seconds, samples_per_second and, where there are
            validation rows, valid_loss, valid_accuracy, valid_uar, valid_macro_f1 and
            valid_weighted_f1. Equal on all ranks but for the times.
        best: the best epoch so far by the task's metric.
        stop: nothing follows: the last epoch, or no gain within the task's patience.
    """

    epoch: int
    metrics: dict[str, float]
    best: bool
    stop: bool


def fit(
    task: TrainingTask,
    *,
    world: ProcessGroup = ProcessGroup(),  # noqa: B008 - frozen
    state_dir: Path,
    device: torch.device | str | None = None,
    data: TrainingData | None = None,
) -> Iterator[EpochReport]:
    """Train, and yield after every epoch, when its checkpoint is on disk.

    Continues after the newest whole checkpoint in `state_dir`; a training that is already
    finished yields nothing. Random numbers are drawn from (seed, epoch, rank) afresh every
    epoch, so a continued training gives the weights of an uninterrupted one.

    Args:
        world: the workers that train this model together; all call `fit` with equal arguments.
        state_dir: on storage that every worker sees; the first rank writes it.
        data: opened rows, to share between tasks; default: opened here.
    Raises:
        MultistillError: no rows, a checkpoint of another task, a loss that is not finite, or
            a GPU that is too small. Raised on all ranks alike but for the last.
    """
    training = _Training(task, world, state_dir, torch.device(device or default_device()), data)
    training.resume()
    while not training.progress.stopped:
        try:
            report = training.run_epoch()
        except torch.OutOfMemoryError as error:
            raise MultistillError(
                f"`{task.name}` does not fit into the GPU's memory; set `train.batch_frames` "
                "(padded frames computed at once) or lower the value it has"
            ) from error
        yield report


class _Training:
    """One model in training: what `fit` advances epoch by epoch."""

    def __init__(
        self,
        task: TrainingTask,
        world: ProcessGroup,
        state_dir: Path,
        device: torch.device,
        data: TrainingData | None,
    ) -> None:
        self.task, self.world, self.state_dir, self.device = task, world, state_dir, device
        self.config = task.train
        self.data = data or TrainingData.open(task)
        valid = self.data.valid
        if len(valid) and self.config.metric != "loss" and (valid.winner < 0).all():
            raise MultistillError(
                f"`{task.name}`: no validation utterance has a winning class, so "
                f"`train.metric: {self.config.metric}` cannot be measured; use `metric: loss`"
            )
        store = self.data.store
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(task.seed)
            model = build(task.spec, store.audio_dim, store.text_dim)
            # After the model, whose weights are those of its control.
            objective = Objective(task, self.data.train, model.pooled_dim)
        self.model: EmotionModel = model.to(device)
        self.objective = objective.to(device)
        named = [
            *self.model.named_parameters(),
            *((f"{_OBJECTIVE}{name}", p) for name, p in self.objective.named_parameters()),
        ]
        for _, parameter in named:
            world.broadcast(parameter.data)
        self.flat = FlatGradients([parameter for _, parameter in named], device)
        self.optimizer = NamedAdamW(named, self.config.weight_decay)
        if self.config.compile:
            self.model.compile(dynamic=True)
        # A text model's audio is neither read nor padded.
        self.max_frames = self.config.max_frames if self.model.spec.reads_audio else 0
        self.prefetcher = Prefetcher(store, device, self.max_frames, self.data.context)
        self.progress = Progress(identity={**task.identity(), "features": self.data.identity()})

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.data.train) // self.config.batch_size)

    @property
    def _piece_frames(self) -> int | None:
        """Most padded frames that are computed at once; None: all of a batch."""
        wish = self.config.batch_frames
        if wish is not None or self.device.type != "cpu" or self.objective.over_batch:
            return wish
        return CPU_STATES // self.model.spec.width

    def resume(self) -> None:
        """Take up the newest checkpoint. The first rank decides which, so that all agree."""
        found = newest_epoch(self.state_dir)[0] if self.world.is_main else 0
        agreed = torch.tensor([float(found)], device=self.device)
        epoch = int(self.world.broadcast(agreed).item())
        if not epoch:
            return
        checkpoint = load_checkpoint(self.state_dir, epoch, self.device)
        changed = differing(checkpoint.progress.identity, self.progress.identity)
        if changed:
            raise MultistillError(
                f"the checkpoint in {self.state_dir} belongs to another training: {changed[0]}; "
                "remove the folder to start anew"
            )
        self.model.load_state_dict(checkpoint.model)
        self.objective.load_state_dict(
            {
                name.removeprefix(_OBJECTIVE): checkpoint.optimizer[name]
                for name in self._beside_the_model()
            }
        )
        self.optimizer.load(checkpoint.optimizer)
        self.progress = checkpoint.progress

    def run_epoch(self) -> EpochReport:
        started = time.perf_counter()
        epoch = self.progress.epoch + 1
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(derived_seed(self.task.seed, epoch, self.world.rank))
            train_loss = self._train(epoch)
        trained = time.perf_counter() - started
        metrics = {
            "train_loss": train_loss,
            "learning_rate": self._rate(self.progress.step - 1),
            **self._validate(),
            "seconds": time.perf_counter() - started,
            "samples_per_second": len(self.data.train) / trained,
        }
        return self._conclude(epoch, metrics)

    def _rate(self, step: int) -> float:
        config = self.config
        total = config.epochs * self.steps_per_epoch
        return learning_rate(step, total, config.learning_rate, config.warmup)

    def _train(self, epoch: int) -> float:
        """One pass over the training rows; returns the mean loss over them."""
        config, train, world = self.config, self.data.train, self.world
        self.model.train()
        rows = self._epoch_rows(epoch)
        lengths = train.lengths[rows]
        batches = [
            rows[batch]
            for batch in plan_batches(lengths, config.batch_size, seed=self.task.seed, epoch=epoch)
        ]
        cut = [
            list(
                micro_batches(
                    shard_for_rank(batch, world.rank, world.size),
                    train.lengths,
                    config.accumulation,
                    self._piece_frames,
                )
            )
            for batch in batches
        ]
        pieces = self.prefetcher.pieces(train, (part for parts in cut for part in parts))
        non_finite = NonFiniteCheck(train.ids, self.state_dir / REPORT, epoch, world)
        total = 0.0
        for batch, parts in zip(batches, cut, strict=True):
            result = training_step(
                islice(pieces, len(parts)),
                self._sample_losses,
                len(batch),
                self.flat,
                self.optimizer,
                rate=self._rate(self.progress.step),
                clip_norm=config.clip_norm,
                world=world,
            )
            self.progress.step += 1
            total += non_finite.check(result, batch, self.progress.step)
        return (total + non_finite.finish()) / len(rows)

    def _epoch_rows(self, epoch: int) -> IntArray:
        count = len(self.data.train)
        if not self.config.oversample:
            return np.arange(count, dtype=np.int64)
        random = np.random.default_rng((self.task.seed, epoch, count))
        drawn = random.choice(count, count, p=sampling_weights(self.data.train.shares))
        return drawn.astype(np.int64)

    def _sample_losses(self, piece: MicroBatch) -> Tensor:
        states = piece.states
        with self._autocast():
            output = self.model(
                states.audio,
                states.audio_mask,
                states.text,
                states.text_mask,
                piece.context,
                piece.context_mask,
            )
        progress = self.progress.step / (self.config.epochs * self.steps_per_epoch)
        losses: Tensor = self.objective(output, piece, progress)
        return losses

    def _autocast(self) -> AbstractContextManager[Any]:
        enabled = runs_bfloat16(self.config.precision, self.device)
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def _validate(self) -> dict[str, float]:
        """Metrics over all validation rows; every rank predicts its share of them."""
        valid = self.data.valid
        if not len(valid):
            return {}
        mine = shard_for_rank(np.arange(len(valid)), self.world.rank, self.world.size)
        logits = np.zeros((len(valid), len(CLASSES)), dtype=np.float32)
        with self._autocast():
            logits[mine] = predict_logits(
                self.model,
                self.data.store,
                [valid.ids[row] for row in mine],
                self.device,
                self.max_frames,
                context=self.data.context,
            )
        gathered = self.world.sum(torch.from_numpy(logits).to(self.device)).cpu().numpy()
        broken = np.flatnonzero(~np.isfinite(gathered).all(axis=1))
        if len(broken):
            raise MultistillError(
                f"the outputs for {len(broken)} validation utterances are not finite (first: "
                f"{valid.ids[int(broken[0])]}); look at the clip and its features"
            )
        found = scores(self.config, gathered, valid)
        return {f"valid_{name}": value for name, value in found.items()}

    def _conclude(self, epoch: int, metrics: Mapping[str, float]) -> EpochReport:
        """Judge the epoch and write its checkpoint."""
        config, progress = self.config, self.progress
        best = progress.best_epoch == 0 or self._rank(metrics, epoch) > progress.best
        if best:
            progress.best_epoch, progress.best = epoch, self._rank(metrics, epoch)
        progress.epoch = epoch
        patient = config.patience is None or epoch - progress.best_epoch < config.patience
        progress.stopped = epoch >= config.epochs or not patient
        progress.history.append({"epoch": float(epoch), **metrics})
        if self.world.is_main:
            model = self.model.state_dict()
            optimizer = {**self.optimizer.tensors(), **self._beside_the_model()}
            save_checkpoint(self.state_dir, Checkpoint(progress, model, optimizer))
        return EpochReport(epoch, dict(metrics), best, progress.stopped)

    def _beside_the_model(self) -> dict[str, Tensor]:
        """Weights that are trained and thrown away: kept with the optimiser's state."""
        own = self.objective.state_dict()
        return {f"{_OBJECTIVE}{name}": tensor for name, tensor in own.items()}

    def _rank(self, metrics: Mapping[str, float], epoch: int) -> list[float]:
        """What the best epoch has most of: the metric, then (small sets tie) a low loss.

        Without validation rows there is nothing to judge by, and the newest weights count.
        """
        if not len(self.data.valid):
            return [float(epoch)]
        loss = -metrics["valid_loss"]
        if self.config.metric == "loss":
            return [loss]
        return [metrics[f"valid_{self.config.metric}"], loss]
