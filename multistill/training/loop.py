"""The training loop of one model. Pure PyTorch: it also runs in Ray Train workers and in trials."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from multistill.errors import MultistillError
from multistill.features.collate import shard_for_rank
from multistill.hardware import default_device
from multistill.inference.predict import predict
from multistill.models.base import keeping_sequences
from multistill.models.joint import (
    JointModel,
    Model,
    build_model,
    load_trained_state,
    trained_state,
)
from multistill.models.parts import is_of_classifier
from multistill.training.augmentation import StateAugmentation
from multistill.training.averaging import WeightAverage, trained_tensors, trained_weights
from multistill.training.checkpoint import (
    Checkpoint,
    Progress,
    differences,
    load_checkpoint,
    newest_epoch,
    newest_steps,
    save_checkpoint,
)
from multistill.training.consolidation import QuadraticPenalty
from multistill.training.data import TrainingData, halves, split_micro_batches
from multistill.training.distributed import ProcessGroup
from multistill.training.encoder_groups import layer_schedule
from multistill.training.epochs import EpochPlanner
from multistill.training.nonfinite import REPORT, NonFiniteCheck
from multistill.training.objective import Objective, validation_metrics
from multistill.training.optimizer import NamedAdamW, uses_bfloat16
from multistill.training.parts import load_start, to_training_mode
from multistill.training.prefetch import MicroBatch, Prefetcher
from multistill.training.reports import EpochReport, TrainingInterrupted
from multistill.training.schedule import derived_seed, learning_rate
from multistill.training.selection import epoch_score
from multistill.training.step import FlatGradients, MicroBatchMemoryError, training_step
from multistill.training.task import TrainingTask
from multistill.typing import IntArray

_OBJECTIVE_PREFIX = "objective."

CPU_MICRO_BATCH_VALUES = 2**20
"""Padded frames times width of a micro-batch on a CPU. Smaller micro-batches fit into the caches,
and their clips are of more similar length, so they hold less padding."""


def fit(
    task: TrainingTask,
    *,
    group: ProcessGroup = ProcessGroup(),  # noqa: B008 - frozen
    state_dir: Path,
    device: torch.device | str | None = None,
    data: TrainingData | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[EpochReport]:
    """Train a model; yields after every epoch, once its checkpoint is on disk.

    Resumes after the newest intact checkpoint in `state_dir`; a finished training yields
    nothing. Random generators are seeded with (seed, step, rank) every step, so a resumed
    training gives the weights of an uninterrupted one.

    Args:
        group: the processes that train this model together; all call `fit` with equal arguments.
        state_dir: on storage that all of them can read; rank 0 writes it.
        data: opened data, to share it between tasks; default: opened here.
        stop: asked in every step, must not take long. If it is true on any rank, all of them
            stop after the same step.

    Raises:
        TrainingInterrupted: `stop` was true; the step's checkpoint is on disk.
        MultistillError: there are no training rows, the checkpoint belongs to another task, or a
            loss is not finite (raised on all ranks), or a GPU runs out of memory (raised on its
            rank).
    """
    training = _Training(
        task, group, state_dir, torch.device(device or default_device()), data, stop
    )
    training.resume()
    while not training.progress.stopped:
        try:
            report = training.run_epoch()
        except (torch.OutOfMemoryError, MicroBatchMemoryError) as error:
            raise MultistillError(
                f"`{task.name}` does not fit into the GPU's memory; set `train.batch_frames` "
                "(padded frames computed at the same time) or lower it"
            ) from error
        yield report


class _Training:
    """State of `fit`: model, optimizer and progress of one training."""

    def __init__(
        self,
        task: TrainingTask,
        group: ProcessGroup,
        state_dir: Path,
        device: torch.device,
        data: TrainingData | None,
        stop: Callable[[], bool],
    ) -> None:
        self.task, self.group, self.state_dir, self.device = task, group, state_dir, device
        self.stop = stop
        self.config = task.train
        self.data = data or TrainingData.open(task)
        valid = self.data.valid
        by_class = self.config.metric not in ("loss", "ccc")
        if len(valid) and by_class and (valid.labels < 0).all():
            raise MultistillError(
                f"`{task.name}`: the votes of all validation utterances tie, so "
                f"`train.metric: {self.config.metric}` cannot be measured; use `metric: loss`"
            )
        if len(valid) and self.config.metric == "ccc" and not valid.varies:
            raise MultistillError(
                f"`{task.name}`: no two validation utterances with features differ in a dimension "
                "of `tasks`, so there is no CCC to choose epochs by; use `train.metric: loss`"
            )
        store = self.data.store
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(task.seed)
            model = build_model(task.spec, store.audio_dim, store.text_dim, task.load_encoders())
            # After the model, so that a student and its control start from equal weights.
            objective = Objective(task, self.data.train, model.pooled_dim)
        if model.dimension_scale is not None:
            model.dimension_scale.fit(self.data.train.dimensions)
        augmentation = self.config.augmentation
        changes_states = augmentation.changes_states
        statistics = self.data.statistics(task) if model.standardizes or changes_states else None
        if model.standardizes and statistics is not None:
            model.fit_standardization(statistics)
        load_start(model, task)
        self.model: Model = model.to(device)
        self.objective = objective.to(device)
        objective_parameters = self.objective.named_parameters(_OBJECTIVE_PREFIX.rstrip("."))
        named_parameters = [
            (name, parameter)
            for name, parameter in (*self.model.named_parameters(), *objective_parameters)
            if parameter.requires_grad
        ]
        for _, parameter in named_parameters:
            group.broadcast(parameter.data)
        self.parameters = dict(named_parameters)
        self.penalty: QuadraticPenalty | None = None
        if task.fisher is not None:
            kept = {
                name: parameter
                for name, parameter in self.parameters.items()
                if not (task.new_classifier and is_of_classifier(name, self.model))
            }
            self.penalty = QuadraticPenalty(kept, Path(task.fisher), task.fisher_weight)
        schedule = layer_schedule(self.model, task)
        self.starts = schedule.starts
        self.flat = FlatGradients(self.parameters.values(), device)
        self.optimizer = NamedAdamW(named_parameters, self.config.weight_decay, schedule.rates)
        self.halvings = 0
        self.planner = EpochPlanner(task, self.data)
        self.average: WeightAverage | None = None
        if self.config.average_epochs:
            steps = self.config.average_epochs * self.planner.steps
            self.average = WeightAverage(self.model, steps)
        if self.config.compile:
            self.model.compile(dynamic=True)
        # Audio states are neither read nor padded for a text model.
        self.max_frames = self.config.max_frames if self.model.spec.reads_audio else 0
        self.prefetcher = Prefetcher(
            self.data.copies or store,
            device,
            self.max_frames,
            self.data.context,
            StateAugmentation(augmentation, statistics, task.spec, self.data.classes)
            if augmentation.enabled
            else None,
        )
        self.progress = Progress(identity={**task.identity(), "features": self.data.identity()})

    @property
    def result(self) -> Model:
        """The model that is validated and exported."""
        return self.model if self.average is None else self.average.model

    @property
    def _depends_on_batch(self) -> bool:
        """Whether the loss of a row depends on the other rows of its micro-batch."""
        network = self.model.head if isinstance(self.model, JointModel) else self.model
        return self.objective.depends_on_batch or network.depends_on_batch

    @property
    def _micro_batch_frames(self) -> int | None:
        """Limit of padded frames per micro-batch; None: the whole batch."""
        requested = self.config.batch_frames
        if requested is not None or self.device.type != "cpu" or self._depends_on_batch:
            return requested
        network = self.model.head if isinstance(self.model, JointModel) else self.model
        width = network.frame_width
        if isinstance(self.model, JointModel):
            width = max(width, *(encoder.dim for _, encoder in self.model.trainable_encoders()))
        return max(1, CPU_MICRO_BATCH_VALUES // width)

    def resume(self) -> None:
        """Load the newest checkpoint. Rank 0 chooses it, so that all ranks load the same one."""
        epoch = newest_epoch(self.state_dir)[0] if self.group.is_main else 0
        steps = newest_steps(self.state_dir, epoch) if self.group.is_main else 0
        shared = torch.tensor([epoch, steps], dtype=torch.float64, device=self.device)
        epoch, steps = map(int, self.group.broadcast(shared).tolist())
        if not epoch and not steps:
            return
        checkpoint = load_checkpoint(self.state_dir, epoch, self.device, steps=steps)
        changed = differences(checkpoint.progress.identity, self.progress.identity)
        if changed:
            raise MultistillError(
                f"the checkpoint in {self.state_dir} belongs to another training: {changed[0]}; "
                "remove the folder to start from scratch"
            )
        if self.average is None:
            load_trained_state(self.model, checkpoint.model)
        else:
            load_trained_state(self.model, trained_weights(checkpoint.optimizer))
            self.average.load(checkpoint.model, checkpoint.progress.step)
        self.objective.load_state_dict(
            {
                name.removeprefix(_OBJECTIVE_PREFIX): checkpoint.optimizer[name]
                for name in self._objective_tensors()
            }
        )
        self.optimizer.load_state_dict(checkpoint.optimizer)
        self.progress = checkpoint.progress

    def run_epoch(self) -> EpochReport:
        started = time.perf_counter() - self.progress.begun.get("seconds", 0.0)
        epoch = self.progress.epoch + 1
        self._unfreeze(epoch)
        with (
            torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []),
            keeping_sequences(self.model, self.objective.reads_sequences),
        ):
            train_loss = self._train(epoch, started)
        train_seconds = time.perf_counter() - started
        metrics = {
            "train_loss": train_loss,
            "learning_rate": self._learning_rate(self.progress.step - 1),
            **self._validate(),
            "seconds": time.perf_counter() - started,
            "samples_per_second": self.data.passes * len(self.data.train) / train_seconds,
        }
        return self._finish_epoch(epoch, metrics)

    def _unfreeze(self, epoch: int) -> None:
        """Train the layers whose epoch has come; the others cost no gradients."""
        changed = False
        for name, start in self.starts.items():
            parameter, trains = self.parameters[name], epoch > start
            if parameter.requires_grad != trains:
                parameter.requires_grad_(trains)
                parameter.grad = None
                changed = True
        if changed:
            self.flat = FlatGradients(self.parameters.values(), self.device)

    def _learning_rate(self, step: int) -> float:
        config = self.config
        total = config.epochs * self.planner.steps
        return learning_rate(step, total, config.learning_rate, config.warmup)

    def _train(self, epoch: int, started: float) -> float:
        """Train for one epoch, or for the rest of one; returns the mean loss over its rows."""
        config, train, group = self.config, self.data.train, self.group
        to_training_mode(self.model, self.task)
        planned = self.planner.plan(epoch)
        batches = planned.batches
        parts = [self._micro_batch_places(batch, planned.lengths) for batch in batches]
        non_finite = NonFiniteCheck(train.ids, self.state_dir / REPORT, epoch, group)
        done = int(self.progress.begun.get("steps", 0))
        total_loss = self.progress.begun.get("loss", 0.0)
        while done < len(batches):
            micro_batches = self.prefetcher.micro_batches(
                train, (places for batch in parts[done:] for places in batch), planned
            )
            try:
                for batch, own in zip(batches[done:], parts[done:], strict=True):
                    torch.manual_seed(derived_seed(self.task.seed, self.progress.step, group.rank))
                    result = training_step(
                        islice(micro_batches, len(own)),
                        self._sample_losses,
                        len(batch),
                        self.flat,
                        self.optimizer,
                        learning_rate=self._learning_rate(self.progress.step),
                        clip_norm=config.clip_norm,
                        group=group,
                        stop=self.stop(),
                    )
                    if self.average is not None:
                        self.average.update(self.model)
                    self.progress.step += 1
                    done += 1
                    total_loss += non_finite.check(result, planned.rows[batch], self.progress.step)
                    if non_finite.stop:
                        break
            except MicroBatchMemoryError:
                if self._depends_on_batch or max(map(len, parts[done])) == 1:
                    raise
                self.halvings += 1
                parts[done:] = [halves(places) for places in parts[done:]]
            if non_finite.stop:
                break
        total_loss += non_finite.finish()
        if non_finite.stop:
            self._interrupt(done, total_loss, time.perf_counter() - started)
        return total_loss / len(planned.rows)

    def _interrupt(self, steps: int, loss: float, seconds: float) -> NoReturn:
        """Save what has been done of the epoch."""
        self.progress.begun = {"steps": float(steps), "loss": loss, "seconds": seconds}
        self._save()
        raise TrainingInterrupted(self.progress.epoch, steps)

    def _micro_batch_places(self, batch: IntArray, lengths: IntArray) -> list[IntArray]:
        """This rank's places of a batch, in the micro-batches that they are computed in."""
        places = list(
            split_micro_batches(
                shard_for_rank(batch, self.group.rank, self.group.size),
                lengths,
                self.config.accumulation,
                self._micro_batch_frames,
            )
        )
        for _ in range(self.halvings):
            places = halves(places)
        return places

    def _sample_losses(self, micro_batch: MicroBatch) -> Tensor:
        states = micro_batch.states
        with self._autocast():
            output = self.model(
                states.audio,
                states.audio_mask,
                states.text,
                states.text_mask,
                micro_batch.context,
                micro_batch.context_mask,
                micro_batch.mixing if self.config.augmentation.mixes_pooled else None,
            )
        progress = self.progress.step / (self.config.epochs * self.planner.steps)
        losses: Tensor = self.objective(output, micro_batch, progress)
        # Once per row, so that the mean over the rows of a batch has it once.
        return losses if self.penalty is None else losses + self.penalty()

    def _autocast(self) -> AbstractContextManager[Any]:
        enabled = uses_bfloat16(self.config.precision, self.device)
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def _validate(self) -> dict[str, float]:
        """Metrics over all validation rows; every rank predicts its share of the rows."""
        valid = self.data.valid
        if not len(valid):
            return {}
        local_rows = shard_for_rank(np.arange(len(valid)), self.group.rank, self.group.size)
        classes = self.task.spec.num_classes
        values = np.zeros((len(valid), self.task.spec.outputs), dtype=np.float32)
        with self._autocast():
            outputs = predict(
                self.result,
                self.data.store,
                [valid.ids[row] for row in local_rows],
                self.device,
                self.max_frames,
                context=self.data.context,
                keep_pooled=False,
            )
        values[local_rows] = np.concatenate([outputs.logits, outputs.dimensions], axis=1)
        values = self.group.sum(torch.from_numpy(values).to(self.device)).cpu().numpy()
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if len(bad):
            raise MultistillError(
                f"the outputs for {len(bad)} validation utterances are not finite (first: "
                f"{valid.ids[int(bad[0])]}); check its features, or lower `train.learning_rate`"
            )
        metrics = validation_metrics(self.task, values[:, :classes], values[:, classes:], valid)
        return {f"valid_{name}": value for name, value in metrics.items()}

    def _finish_epoch(self, epoch: int, metrics: Mapping[str, float]) -> EpochReport:
        """Update the progress and write the checkpoint of the epoch."""
        config, progress = self.config, self.progress
        progress.history.append({"epoch": float(epoch), **metrics})
        score = epoch_score(progress.history, config.metric, config.select_window)
        if progress.best_epoch == 0 or score > progress.best:
            progress.best_epoch, progress.best = epoch, score
        progress.epoch = epoch
        patient = config.patience is None or epoch - progress.best_epoch < config.patience
        progress.stopped = epoch >= config.epochs or not patient
        progress.begun = {}
        self._save()
        return EpochReport(epoch, dict(metrics), progress.stopped)

    def _save(self) -> None:
        """Write the checkpoint of the epoch, or of the steps of one."""
        if self.group.is_main:
            optimizer = {**self.optimizer.state_dict(), **self._objective_tensors()}
            if self.average is not None:
                optimizer |= trained_tensors(self.model)
            checkpoint = Checkpoint(self.progress, trained_state(self.result), optimizer)
            save_checkpoint(self.state_dir, checkpoint)

    def _objective_tensors(self) -> dict[str, Tensor]:
        """Trained weights that are not part of the model; saved with the optimizer's state."""
        tensors = self.objective.state_dict()
        return {f"{_OBJECTIVE_PREFIX}{name}": tensor for name, tensor in tensors.items()}
