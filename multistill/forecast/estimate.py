"""Stages of a job from rates and counts: seconds, GPU-hours, bytes, each with its spread.

Nothing here reads a file but `Rates`, and nothing starts: the same rates and counts give the same
forecast.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from multistill.config import FeaturesConfig, SearchConfig
from multistill.errors import MultistillError
from multistill.features.shards import TARGET_SHARDS
from multistill.features.sizing import size_pools
from multistill.forecast.keys import START, stage_what, training_what
from multistill.forecast.pruner import epochs_of_search
from multistill.forecast.rates import Rate, Rates
from multistill.forecast.scale import DRIVER_SECONDS_PER_SHARD, Size
from multistill.forecast.spread import Spread
from multistill.hardware import Resources, gpus_or_default, limit_threads, slots
from multistill.search.capacity import concurrency, gpus_per_trial
from multistill.training.capacity import single_node_layout

NO_TIME = Spread(0.0, 0.0, 0.0)
NOMINAL_START = 4.0
"""Seconds of a worker's start on the machine of docs/performance.md, which `_PRIORS` are of."""
_PRIORS: Mapping[str, tuple[float, float]] = {
    "prepare": (1.0, 0.01),
    "features": (4.0, 0.0),
    "statistics": (2.5, 0.001),
    "distill": (1.7, 0.002),
    "evaluate": (7.0, 0.5),
    "probe": (3.0, 0.9),
    "report": (6.5, 0.0),
}
"""Seconds of a stage beyond what is measured, and seconds per unit of its work (`_work`), until a
run in the workspace has shown them."""
_GROUP = 14.0
"""Seconds from a training stage's begin to its first epoch, and from its last to its end."""
_TUNE = 10.0
_TRIAL = 1.5
"""Seconds of a search beyond epochs: its start, and each trial."""
PRIOR_FACTOR = 1.8
"""Within which a prior is right."""


@dataclass(frozen=True)
class Machine:
    """Where the job runs.

    Attributes:
        nodes: resources of every node.
        cores: of this machine, which limits a single node.
        devices: kinds of devices as rates name them, the likeliest first.
    """

    nodes: Sequence[Resources]
    cores: int
    devices: Sequence[str]

    @property
    def resources(self) -> dict[str, float]:
        names = {name for node in self.nodes for name in node}
        return {name: sum(node.get(name, 0.0) for node in self.nodes) for name in sorted(names)}


@dataclass(frozen=True)
class Counts:
    """What the manifest says. `train` to `test` are clips of one fold."""

    clips: int
    audio_seconds: float
    train: int
    valid: int
    test: int
    folds: int = 1


@dataclass(frozen=True)
class StageForecast:
    """What one stage will take.

    Attributes:
        seconds: None where nothing is known; `missing` then says what to measure.
        features_bytes, models_bytes: that it leaves in the workspace.
    """

    stage: str
    seconds: Spread | None
    gpu_hours: Spread = NO_TIME
    features_bytes: Spread = NO_TIME
    models_bytes: Spread = NO_TIME
    missing: str | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "seconds": self.seconds.as_json() if self.seconds else None,
            "gpu_hours": self.gpu_hours.as_json(),
            "features_bytes": self.features_bytes.as_json(),
            "models_bytes": self.models_bytes.as_json(),
            "missing": self.missing,
        }


@dataclass
class Estimator:
    """Forecasts stages.

    Attributes:
        used: the rates that the forecasts so far rest on, by title.
    """

    rates: Rates
    machine: Machine
    counts: Counts
    used: dict[str, Rate] = field(default_factory=dict)

    def other(self, stage: str, models: int = 0) -> StageForecast:
        """A stage that neither encodes nor trains.

        Args:
            models: trained models that exist by then, which `evaluate` scores.
        """
        measured = self._rate(stage_what(stage))
        if measured and (seconds := measured.get("seconds_per_unit")):
            return StageForecast(stage, seconds * self.units(stage, models))
        if stage not in _PRIORS:
            return StageForecast(stage, None, missing=f"{stage} (no run here has shown it)")
        fixed, each = _PRIORS[stage]
        work = self._work(stage, models)
        return StageForecast(stage, self._prior(fixed + each * work))

    def encoding_seconds(self, config: FeaturesConfig, what: Mapping[str, Any]) -> Spread | None:
        """Seconds in which encoders work, or wait for the driver, without their start.

        None where nothing is measured.
        """
        measured = self._rate(what)
        each = measured.get("seconds_per_audio_second") if measured else None
        if each is None:
            return None
        together, _ = self.encoders(config)
        working = each * (self.counts.audio_seconds / together)
        fed = self.shards(config) * DRIVER_SECONDS_PER_SHARD
        return Spread(max(working.low, fed), max(working.value, fed), max(working.high, fed))

    def encoders(self, config: FeaturesConfig) -> tuple[int, float]:
        """Encoder processes that work at the same time, and the GPUs of each."""
        audio = self.counts.audio_seconds
        try:
            pools = size_pools(config, self.machine.resources, self.shards(config), audio)
        except MultistillError:  # a cluster has more than this machine, or the run says so
            return config.encoders or 1, config.gpus_per_encoder or 0.0
        if pools.gpus_per_encoder or len(self.machine.nodes) > 1:
            return pools.encoders, pools.gpus_per_encoder
        return min(pools.encoders, self.machine.cores), 0.0

    def shards(self, config: FeaturesConfig) -> int:
        return max(TARGET_SHARDS, math.ceil(self.counts.audio_seconds / config.shard_seconds))

    def size(self, config: FeaturesConfig, what: Mapping[str, Any]) -> Size | None:
        """Corpus and cluster as what strains a driver; None where encoding is not measured."""
        rate = self._rate(what)
        each = rate.get("seconds_per_audio_second") if rate else None
        if rate is None or not each or not each.value:
            return None
        stored = rate.get("bytes_per_audio_second")
        return Size(
            hours=self.counts.audio_seconds / 3600,
            workers=self.encoders(config)[0],
            nodes=len(self.machine.nodes),
            worker_rate=1 / each.value,
            stored_bytes=stored.value if stored else 0.0,
            shard_seconds=self.counts.audio_seconds / self.shards(config),
            clip_seconds=self.counts.audio_seconds / max(1, self.counts.clips),
        )

    def encoding(self, config: FeaturesConfig, what: Mapping[str, Any]) -> StageForecast:
        """The features stage."""
        working = self.encoding_seconds(config, what)
        measured = self._rate(what)
        if working is None or measured is None:
            return StageForecast("features", None, missing="encoding")
        together, gpus = self.encoders(config)
        start = measured.get("start_seconds") or NO_TIME
        seconds = working + start + self._overhead("features", _PRIORS["features"][0])
        stored = measured.get("bytes_per_audio_second")
        return StageForecast(
            "features",
            seconds,
            gpu_hours=seconds * (together * gpus / 3600),
            features_bytes=stored * self.counts.audio_seconds if stored else NO_TIME,
        )

    def training(self, stage: str, rows: Sequence[Mapping[str, Any]]) -> StageForecast:
        """A stage of trainings.

        Args:
            rows: lines of `plan`: `rate`, `trainings`, `epochs`, `workers`, ..., all known.
        """
        if missing := self._missing(rows):
            return StageForecast(stage, None, missing=missing)
        epochs, longest, gpu_seconds, stored = NO_TIME, 0.0, NO_TIME, NO_TIME
        for row in rows:
            per_training = self._training_seconds(row)
            groups, _, gpus = self.layout(row, sum(int(each["trainings"]) for each in rows))
            epochs = epochs + per_training * (row["trainings"] / groups)
            longest = max(longest, per_training.value)
            gpu_seconds = gpu_seconds + per_training * (row["trainings"] * gpus)
            stored = stored + self._model_bytes(row)
        # Trainings are not divided: the last one runs alone.
        together = Spread(epochs.low, max(epochs.value, longest), max(epochs.high, longest))
        seconds = together + self._overhead(stage, _GROUP)
        return StageForecast(stage, seconds, gpu_seconds * (1 / 3600), models_bytes=stored)

    def search(
        self, config: SearchConfig, trial: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
    ) -> StageForecast:
        """The search stage: trials under the pruner at their concurrency, then `rows`.

        Args:
            trial: the line of the trials; `trainings` of it are those of all searches.
        """
        if missing := self._missing([trial, *rows]):
            return StageForecast("search", None, missing=missing)
        searches = max(1, round(trial["trainings"] / config.trials))
        grace = min(config.grace_epochs, trial["epochs"])
        one = epochs_of_search(config.trials, trial["epochs"], grace, config.reduction)
        together = max(1, concurrency(config, self.machine.nodes))
        of_trials = self._epoch_seconds(trial) * one * (searches / together)
        handling = self._prior((_TUNE + _TRIAL * config.trials / together) * searches)
        final = self.training("search", rows)
        assert final.seconds is not None
        gpus = gpus_per_trial(config, self.machine.nodes) * config.workers_per_trial
        gpu_hours = of_trials * (together * gpus / 3600) + final.gpu_hours
        return StageForecast(
            "search",
            of_trials + handling + final.seconds,
            gpu_hours,
            models_bytes=final.models_bytes,
        )

    def memory(self, encoding: Mapping[str, Any], keys: Sequence[str]) -> dict[str, int]:
        """Bytes of the largest encoder process, the largest training worker, and on its GPU."""
        encoder = self._rate(encoding)
        trainings = [rate for key in keys if (rate := self._rate(training_what(key)))]
        found = {
            "encoder_bytes": (encoder and encoder.largest("peak_bytes")) or 0,
            "training_bytes": max((r.largest("peak_bytes") or 0 for r in trainings), default=0),
            "gpu_bytes": max(
                (rate.largest("gpu_peak_bytes") or 0 for rate in [encoder, *trainings] if rate),
                default=0,
            ),
        }
        return {name: int(value) for name, value in found.items() if value}

    def checkpoint_bytes(self, rows: Sequence[Mapping[str, Any]]) -> int:
        """Bytes of the checkpoints of the trainings that run at the same time, at most."""
        found = 0.0
        for row in rows:
            rate = self._rate(training_what(row["rate"]))
            groups, _, _ = self.layout(row, int(row["trainings"] or 1))
            found = max(found, groups * ((rate and rate.largest("checkpoint_bytes")) or 0))
        return int(found)

    def _missing(self, rows: Sequence[Mapping[str, Any]]) -> str | None:
        unknown = [
            str(row["model"]) for row in rows if self._rate(training_what(row["rate"])) is None
        ]
        return f"training of {', '.join(unknown)}" if unknown else None

    def _training_seconds(self, row: Mapping[str, Any]) -> Spread:
        epochs = Spread(row["epochs"], row["epochs"], row["epochs"])
        if row.get("patience"):
            least = min(int(row["patience"]) + 1, row["epochs"])
            epochs = Spread(least, (least + row["epochs"]) / 2, row["epochs"])
        return self._epoch_seconds(row) * epochs

    def _epoch_seconds(self, row: Mapping[str, Any]) -> Spread:
        rate = self._rate(training_what(row["rate"]))
        assert rate is not None
        zero = NO_TIME
        per_row = rate.get("train_seconds_per_row") or zero
        per_valid = rate.get("valid_seconds_per_row") or zero
        fixed = rate.get("epoch_seconds") or zero
        rows = per_row * self.counts.train + per_valid * self.counts.valid
        return rows * (1 / max(1, row["workers"])) + fixed

    def layout(self, row: Mapping[str, Any], tasks: int) -> tuple[int, int, float]:
        """Trainings of a line's kind at the same time, threads of a worker, GPUs of a training."""
        nodes, workers = self.machine.nodes, int(row["workers"])
        requested = row["gpus_per_worker"]
        gpus = gpus_or_default(None if isinstance(requested, str) else requested, nodes)
        need = {"CPU": float(row["cpus_per_worker"]), **({"GPU": gpus} if gpus else {})}
        groups = max(1, min(tasks, slots(nodes, need) // workers))
        threads = max(1, int(row["cpus_per_worker"]))
        if len(nodes) == 1:
            groups, spare = single_node_layout(self.machine.cores, groups, workers)
            threads = max(threads, spare)
        return groups, limit_threads(threads), gpus * workers

    def _model_bytes(self, row: Mapping[str, Any]) -> Spread:
        rate = self._rate(training_what(row["rate"]))
        size = rate.largest("model_bytes") if rate else None
        total = float((size or 0) * row["trainings"])
        return Spread(total, total, total)

    def _overhead(self, stage: str, prior: float) -> Spread:
        measured = self._rate(stage_what(stage))
        seconds = measured.get("overhead_seconds") if measured else None
        return seconds or self._prior(prior)

    def _prior(self, seconds: float) -> Spread:
        start = self._rate(START)
        worker = (start.get("seconds") if start else None) or Spread.around(NOMINAL_START, 1.0)
        return Spread.around(seconds, PRIOR_FACTOR) * (worker.value / NOMINAL_START)

    def _rate(self, what: Mapping[str, Any]) -> Rate | None:
        for device in self.machine.devices:
            rate = self.rates.find(what, device)
            if rate is not None:
                self.used[rate.title] = rate
                return rate
        return None

    def _work(self, stage: str, models: int) -> float:
        counts = self.counts
        return {
            "prepare": counts.clips,
            "statistics": counts.train * counts.folds,
            "distill": counts.train * counts.folds,
            "evaluate": models,
            "probe": counts.folds,
        }.get(stage, 0)

    def units(self, stage: str, models: int) -> float:
        """The stage's work with its fixed part: seconds of it are compared per unit."""
        fixed, each = _PRIORS.get(stage, (0.0, 1.0))
        return fixed + each * (self._work(stage, models) if stage in _PRIORS else self.counts.clips)
