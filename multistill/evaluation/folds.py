"""Models and probes on the clips that their fold tests, joined over the folds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from multistill.config import EvaluationConfig
from multistill.errors import MultistillError
from multistill.evaluation.candidates import (
    Candidate,
    LoadedModel,
    describe_encoders,
    evenly_spaced,
    probe_baseline,
)
from multistill.evaluation.repetitions import PooledClips
from multistill.evaluation.scoring import Prediction, Scorer
from multistill.evaluation.utterances import (
    TrainingStatistics,
    Utterances,
    read_training_statistics,
    read_utterances,
)
from multistill.features.store import FeatureStore
from multistill.hardware import default_device
from multistill.inference.latency import EncoderLatency, percentiles
from multistill.metrics.calibration import fit_temperature
from multistill.metrics.classification import EPS, calibration_summary, softmax
from multistill.models.spec import Modality
from multistill.typing import DoubleArray

MAX_IN_SAMPLE_CLIPS = 2000


@dataclass(frozen=True)
class EvaluatedFold:
    """The models of one fold, or of the only one.

    Attributes:
        manifest: folder of the manifest with the fold's train, valid and test.
        name: of the fold.
        repetition: of the cross-validation, from 0.
    """

    manifest: Path
    candidates: Sequence[Candidate]
    name: str = ""
    repetition: int = 0


@dataclass(frozen=True)
class FoldData:
    """The clips with features of one fold, and its candidates by name."""

    name: str
    manifest: Path
    train: Utterances
    valid: Utterances
    test: Utterances
    training: TrainingStatistics
    candidates: Mapping[str, Candidate]
    repetition: int = 0


def open_fold(fold: EvaluatedFold, store: FeatureStore) -> FoldData:
    """Read the clips of a fold.

    Raises:
        MultistillError: no training clip has a label, or a group of a cross-validation's test
            part is in another part too.
    """
    train, valid, test = (
        read_utterances(fold.manifest, part, store) for part in ("train", "valid", "test")
    )
    known = {*train.groups, *valid.groups}
    if fold.name and (shared := sorted(known & {*test.groups})):
        raise MultistillError(
            f"fold {fold.name}: {', '.join(shared[:3])} is in the test part and outside it in "
            f"{fold.manifest}, so its models know who they are tested on; remove that folder and "
            "run the job again"
        )
    candidates = {candidate.name: candidate for candidate in fold.candidates}
    training = read_training_statistics(fold.manifest)
    return FoldData(
        fold.name, fold.manifest, train, valid, test, training, candidates, fold.repetition
    )


@dataclass(frozen=True)
class _Predicted:
    """One candidate in one fold: distributions on test, and what it was made of."""

    loaded: LoadedModel
    probabilities: DoubleArray
    temperature: float | None
    trainings: list[dict[str, Any]]
    seeds: list[DoubleArray]


class Evaluation:
    """Scores candidates and probes on one test set with one set of encoders."""

    def __init__(
        self,
        folds: Sequence[FoldData],
        tested: PooledClips,
        store: FeatureStore,
        scorer: Scorer,
        config: EvaluationConfig,
    ) -> None:
        self.folds = folds
        self.join = tested.join
        self.store = store
        self.scorer = scorer
        self.bins = config.calibration_bins
        self.device = default_device()
        self.encoders = describe_encoders(store.info)
        self.latency: EncoderLatency | None = None
        if config.latency_clips:
            first = folds[0]
            self.latency = EncoderLatency(
                first.manifest, store.info, first.test.ids, config.latency_clips, self.device
            )

    def score_candidate(self, candidate: Candidate) -> tuple[dict[str, Any], Prediction]:
        """A model's entry of metrics.json, and its predictions."""
        folds = [self._predict(fold, fold.candidates[candidate.name]) for fold in self.folds]
        probabilities = self.join([each.probabilities for each in folds])
        calibrated = None
        temperatures = [each.temperature for each in folds if each.temperature is not None]
        if len(temperatures) == len(folds):
            calibrated = self.join(
                [
                    softmax(_logits(each.probabilities) / temperature)
                    for each, temperature in zip(folds, temperatures, strict=True)
                ]
            )
        prediction = Prediction(
            candidate.name,
            probabilities,
            calibrated,
            float(np.mean(temperatures)) if calibrated is not None else None,
            candidate.compare_to,
        )
        loaded = folds[0].loaded
        model = loaded.describe(self.encoders) | self.scorer.score(prediction)
        model["training"] = [training for each in folds for training in each.trainings]
        if candidate.repeats:
            others = [self.join(seed) for seed in zip(*(f.seeds for f in folds), strict=True)]
            model["seeds"] = self.scorer.score_seeds(candidate.name, [probabilities, *others])
        if candidate.role == "teacher":
            model["in_sample"] = self._in_sample_calibration([each.loaded for each in folds])
        if self.latency is not None:
            model |= _latency(self.latency, loaded)
        return model, prediction

    def score_seeds(self, candidate: Candidate) -> dict[str, Any]:
        """Scores over the seeds of a candidate and what they were trained with, nothing else."""
        folds = [self._predict(fold, fold.candidates[candidate.name]) for fold in self.folds]
        seeds = zip(*([each.probabilities, *each.seeds] for each in folds), strict=True)
        probabilities = [self.join(seed) for seed in seeds]
        return {
            "seeds": self.scorer.score_seeds(candidate.name, probabilities),
            "training": [training for each in folds for training in each.trainings],
        }

    def score_probe(self, modality: Modality) -> tuple[dict[str, Any], Prediction]:
        """A linear probe's entry of metrics.json, and its predictions."""
        fitted = [
            probe_baseline(modality, self.store, fold.train, fold.valid, fold.test, self.encoders)
            for fold in self.folds
        ]
        probe = dict(fitted[0][0])
        entries = [entry for entry, _ in fitted]
        if len(entries) > 1:
            probe["inverse_penalty"] = None  # each fold chooses its own
            probe["clips"] = min(entry["clips"] for entry in entries)
            found = [entry["validation"] for entry in entries]
            probe["validation"] = None if None in found else float(np.mean(found))
        prediction = Prediction(probe["name"], self.join([each for _, each in fitted]))
        return probe | self.scorer.score(prediction), prediction

    def _predict(self, fold: FoldData, candidate: Candidate) -> _Predicted:
        """Distributions on the fold's test clips, with a temperature fitted on its validation."""

        def load(folders: Sequence[str | Path]) -> LoadedModel:
            chosen = replace(candidate, folders=folders)
            return LoadedModel(chosen, self.store, fold.manifest, self.device)

        loaded = load(candidate.folders)
        temperature = None
        if len(fold.valid):
            logits = _logits(loaded.probabilities(fold.valid.ids))
            temperature = fit_temperature(logits, fold.valid.truth)
        repeats = [load([folder]) for folder in candidate.repeats]
        return _Predicted(
            loaded,
            loaded.probabilities(fold.test.ids),
            temperature,
            [entry for each in (loaded, *repeats) for entry in each.trainings],
            [repeat.probabilities(fold.test.ids) for repeat in repeats],
        )

    def _in_sample_calibration(self, loaded: Sequence[LoadedModel]) -> dict[str, Any]:
        """A teacher's calibration on its training clips (at most `MAX_IN_SAMPLE_CLIPS`)."""
        truth, shares, probabilities = [], [], []
        for fold, model in zip(self.folds, loaded, strict=True):
            rows = evenly_spaced(len(fold.train), MAX_IN_SAMPLE_CLIPS // len(self.folds))
            probabilities.append(model.probabilities([fold.train.ids[row] for row in rows]))
            truth.append(fold.train.truth[rows])
            shares.append(fold.train.shares[rows])
        return calibration_summary(
            np.concatenate(truth), np.concatenate(probabilities), np.concatenate(shares), self.bins
        )


def _logits(probabilities: DoubleArray) -> DoubleArray:
    """Logits up to a constant, to which softmax is invariant; defined for an ensemble too."""
    return np.asarray(np.log(np.maximum(probabilities, EPS)))


def _latency(encoder_latency: EncoderLatency, loaded: LoadedModel) -> dict[str, Any]:
    spec, head_ms = loaded.spec, loaded.head_ms(encoder_latency.ids)
    end_to_end_ms = encoder_latency.end_to_end_ms(spec.modality, head_ms, spec.layers_read)
    latency: dict[str, Any] = {"latency_ms": percentiles(head_ms)}
    if end_to_end_ms is not None:
        latency["latency_end_to_end_ms"] = percentiles(end_to_end_ms)
        latency["real_time_factor"] = encoder_latency.real_time_factor(end_to_end_ms)
    return latency
