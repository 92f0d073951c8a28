"""Models and probes on the clips that their fold tests, joined over the folds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
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
from multistill.evaluation.functionals import functionals_baselines
from multistill.evaluation.repetitions import PooledClips, first_of
from multistill.evaluation.robustness import Robustness
from multistill.evaluation.scoring import Prediction, Scorer
from multistill.evaluation.utterances import (
    TrainingStatistics,
    Utterances,
    read_training_statistics,
    read_utterances,
)
from multistill.features.functionals import Functionals
from multistill.features.initial_states import InitialStates, with_initial_states
from multistill.features.store import FeatureStore
from multistill.hardware import default_device
from multistill.inference.latency import EncoderLatency, percentiles
from multistill.metrics.calibration import fit_temperature
from multistill.metrics.classification import calibration_summary, log_probabilities, softmax
from multistill.metrics.detection import Detected, detection
from multistill.metrics.intervals import choose_clusters
from multistill.metrics.selective import threshold_for, threshold_for_risk
from multistill.models.spec import Modality
from multistill.typing import DoubleArray

MAX_IN_SAMPLE_CLIPS = 2000


@dataclass(frozen=True)
class EvaluatedFold:
    """The models of one fold, or of the only one.

    Attributes:
        manifest: folder of the manifest with the fold's train, valid and test.
        name: of the fold.
        trained_on: of a cross-corpus matrix, the corpus that alone trains the models.
        repetition: of the cross-validation, from 0.
    """

    manifest: Path
    candidates: Sequence[Candidate]
    name: str = ""
    trained_on: str | None = field(default=None, kw_only=True)
    repetition: int = field(default=0, kw_only=True)


@dataclass(frozen=True)
class FoldData:
    """The clips with features of one fold, and its candidates by name."""

    name: str
    manifest: Path
    train: Utterances
    valid: Utterances
    test: Utterances
    training: TrainingStatistics | None
    candidates: Mapping[str, Candidate]
    trained_on: str | None = None
    repetition: int = 0


def open_fold(
    fold: EvaluatedFold,
    store: FeatureStore,
    dimensions: Sequence[str] = (),
    with_classes: bool = True,
) -> FoldData:
    """Read the clips of a fold.

    Args:
        dimensions: that are read.
        with_classes: whether the job has classes; without them, `training` is None.

    Raises:
        MultistillError: no training clip has a label, or a group of a cross-validation's test
            part is in another part too.
    """
    train, valid, test = (
        read_utterances(fold.manifest, part, store, dimensions)
        for part in ("train", "valid", "test")
    )
    known = {*train.groups, *valid.groups}
    if fold.name and (shared := sorted(known & {*test.groups})):
        raise MultistillError(
            f"fold {fold.name}: {', '.join(shared[:3])} is in the test part and outside it in "
            f"{fold.manifest}, so its models know who they are tested on; remove that folder and "
            "run the job again"
        )
    candidates = {candidate.name: candidate for candidate in fold.candidates}
    training = read_training_statistics(fold.manifest) if with_classes else None
    return FoldData(
        fold.name,
        fold.manifest,
        train,
        valid,
        test,
        training,
        candidates,
        fold.trained_on,
        fold.repetition,
    )


@dataclass(frozen=True)
class _Predicted:
    """One candidate in one fold: distributions on test, and what it was made of.

    `temperature` and the thresholds of confidence (for the wanted coverage, and for the wanted
    risk if there is one) are of validation.

    Attributes:
        dimensions: [N, D] of the candidate and of its repeats.
        int8: distributions on test with the weights in 8 bits, of students.
        detected: classes of test clips [N, C], of a model of one class against the rest.
    """

    loaded: LoadedModel
    probabilities: DoubleArray
    temperature: float | None
    threshold: float | None
    risk_threshold: float | None
    trainings: list[dict[str, Any]]
    seeds: list[DoubleArray]
    dimensions: list[DoubleArray]
    int8: DoubleArray | None
    detected: Detected | None


class Evaluation:
    """Scores candidates and probes on one test set with one set of encoders."""

    def __init__(
        self,
        folds: Sequence[FoldData],
        tested: PooledClips,
        store: FeatureStore,
        scorer: Scorer | None,
        config: EvaluationConfig,
        dimensions: Sequence[str] = (),
        robustness: Robustness | None = None,
    ) -> None:
        self.dimensions = tuple(dimensions)
        self.robustness = robustness
        self.folds = folds
        self.join = tested.join
        self.store = store
        self.scorer = scorer
        self.bins = config.calibration_bins
        self.coverage = config.coverage
        self.risk = config.risk
        self.device = default_device()
        self.encoders = describe_encoders(store.info)
        self.latency: EncoderLatency | None = None
        if config.latency_clips:
            first = folds[0]
            self.latency = EncoderLatency(
                first.manifest, store.info, first.test.ids, config.latency_clips, self.device
            )

    @cached_property
    def states(self) -> FeatureStore | InitialStates:
        """What linear references read: states of a trained encoder are those before training."""
        return with_initial_states(self.store)

    def score_candidate(self, candidate: Candidate) -> tuple[dict[str, Any], Prediction]:
        """A model's entry of metrics.json, and its predictions."""
        folds = [self._predict(fold, fold.candidates[candidate.name]) for fold in self.folds]
        probabilities = self.join([each.probabilities for each in folds])
        calibrated = None
        temperatures = [each.temperature for each in folds if each.temperature is not None]
        if len(temperatures) == len(folds):
            calibrated = self.join(
                [
                    softmax(log_probabilities(each.probabilities) / temperature)
                    for each, temperature in zip(folds, temperatures, strict=True)
                ]
            )

        def thresholds(of: Sequence[float | None]) -> DoubleArray | None:
            """Those of the folds as one per clip; None if a fold has none."""
            if calibrated is None or None in of:
                return None
            every = zip(folds, of, strict=True)
            return self.join([np.full(len(each.probabilities), one, float) for each, one in every])

        prediction = Prediction(
            candidate.name,
            probabilities,
            calibrated,
            float(np.mean(temperatures)) if calibrated is not None else None,
            candidate.compare_to,
            thresholds([each.threshold for each in folds]),
            thresholds([each.risk_threshold for each in folds]),
            [self.join(seed) for seed in zip(*(f.dimensions for f in folds), strict=True)],
        )
        loaded = folds[0].loaded
        if self.robustness is not None and candidate.role != "control":
            parts = [(f.test.ids, p.loaded) for f, p in zip(self.folds, folds, strict=True)]
            clean = probabilities.argmax(axis=1)
            self.robustness.add(candidate.name, loaded.spec.modality, clean, parts)
        model = loaded.describe(self.encoders)
        if self.scorer is not None:
            model |= self._score_classes(self.scorer, candidate, prediction, folds)
        model["training"] = [training for each in folds for training in each.trainings]
        if self.latency is not None:
            model |= _latency(self.latency, loaded)
        return model, prediction

    def _score_classes(
        self,
        scorer: Scorer,
        candidate: Candidate,
        prediction: Prediction,
        folds: Sequence[_Predicted],
    ) -> dict[str, Any]:
        scored = scorer.score(prediction)
        if candidate.repeats:
            others = [self.join(seed) for seed in zip(*(f.seeds for f in folds), strict=True)]
            seeds = [prediction.probabilities, *others]
            scored["seeds"] = scorer.score_seeds(candidate.name, seeds)
        rounded = [each.int8 for each in folds if each.int8 is not None]
        if len(rounded) == len(folds):
            scored["int8"] = {
                "metrics": scorer.score_metrics(self.join(rounded)),
                "bytes": folds[0].loaded.head_bytes(int8=True),
            }
        detected = [each.detected for each in folds if each.detected is not None]
        if len(detected) == len(folds):
            first = first_of(self.join(detected), 2)
            clips = scorer.clips
            scored["detection"] = detection(first, clips.truth, clips.classes)
        if candidate.role == "teacher":
            scored["in_sample"] = self._in_sample_calibration([each.loaded for each in folds])
        return scored

    def score_seeds(self, candidate: Candidate) -> dict[str, Any]:
        """Scores over the seeds of a candidate and what they were trained with, nothing else."""
        assert self.scorer is not None
        folds = [self._predict(fold, fold.candidates[candidate.name]) for fold in self.folds]
        seeds = zip(*([each.probabilities, *each.seeds] for each in folds), strict=True)
        probabilities = [self.join(seed) for seed in seeds]
        return {
            "seeds": self.scorer.score_seeds(candidate.name, probabilities),
            "training": [training for each in folds for training in each.trainings],
        }

    def score_probe(self, modality: Modality) -> tuple[dict[str, Any], Prediction]:
        """A linear probe's entry of metrics.json, and its predictions."""
        encoders = describe_encoders(self.states.info)
        return self._score_reference(
            [
                probe_baseline(modality, self.states, f.train, f.valid, f.test, encoders)
                for f in self.folds
            ]
        )

    def score_functionals(
        self, functionals: Functionals
    ) -> Iterator[tuple[dict[str, Any], Prediction]]:
        """Entries of metrics.json of the baselines on functionals, and their predictions."""
        folds = [functionals_baselines(functionals, f.train, f.valid, f.test) for f in self.folds]
        for fitted in zip(*folds, strict=True):
            yield self._score_reference(fitted)

    def _score_reference(
        self, fitted: Sequence[tuple[dict[str, Any], DoubleArray]]
    ) -> tuple[dict[str, Any], Prediction]:
        """One entry of the entries of every fold and their distributions."""
        assert self.scorer is not None
        reference = _over_folds([entry for entry, _ in fitted], self.folds)
        prediction = Prediction(reference["name"], self.join([each for _, each in fitted]))
        return reference | self.scorer.score(prediction), prediction

    def _predict(self, fold: FoldData, candidate: Candidate) -> _Predicted:
        """Distributions on the fold's test clips, with a temperature fitted on its validation."""

        def load(folders: Sequence[str | Path]) -> LoadedModel:
            chosen = replace(candidate, folders=folders)
            return LoadedModel(
                chosen,
                self.store,
                fold.manifest,
                self.device,
                self.dimensions,
                with_classes=self.scorer is not None,
            )

        loaded = load(candidate.folders)
        temperature = threshold = risk_threshold = None
        if len(fold.valid) and self.scorer is not None:
            logits = log_probabilities(loaded.probabilities(fold.valid.ids))
            temperature = fit_temperature(logits, fold.valid.truth)
            if temperature is not None:
                confidence = softmax(logits / temperature).max(axis=1)
                labelled = fold.valid.truth >= 0
                threshold = threshold_for(confidence[labelled], self.coverage)
                if self.risk is not None:
                    correct = logits.argmax(axis=1) == fold.valid.truth
                    found = confidence[labelled], correct[labelled]
                    risk_threshold = threshold_for_risk(*found, self.risk)
        repeats = [load(folders) for folders in candidate.repeats]
        predicted = [each.predict(fold.test.ids) for each in (loaded, *repeats)]
        return _Predicted(
            loaded,
            predicted[0].probabilities,
            temperature,
            threshold,
            risk_threshold,
            [entry for each in (loaded, *repeats) for entry in each.trainings],
            [each.probabilities for each in predicted[1:]],
            [each.dimensions for each in predicted],
            loaded.in_int8(fold.test.ids)
            if candidate.role == "student" and self.scorer is not None
            else None,
            predicted[0].detected,
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


def describe_validation(
    parts: Sequence[FoldData], counted: Callable[[Utterances], int], split_by: str
) -> dict[str, Any]:
    """Clips and groups of the set on which epochs, temperatures and winners are chosen.

    Of several folds, the smallest.

    Args:
        counted: number of the clips that are scored.
    """
    valid = min((part.valid for part in parts), key=counted)
    clusters = choose_clusters(valid.groups, valid.sessions, valid.speakers, split_by)
    return {
        "clips": counted(valid),
        "groups": len({*valid.groups}),
        "unit": clusters.only or clusters.unit,
    }


def describe_fold(part: FoldData, counted: Callable[[Utterances], int]) -> dict[str, Any]:
    """Name and sizes of a fold; `counted` as of `describe_validation`."""
    return {
        "name": part.name,
        "clips": counted(part.test),
        "speakers": len(set(part.test.speakers)),
        "train": counted(part.train),
        "valid": counted(part.valid),
    }


def _over_folds(entries: Sequence[Mapping[str, Any]], folds: Sequence[FoldData]) -> dict[str, Any]:
    """One entry of a reference, from those of the folds; `missing` counts a test clip once."""
    reference = dict(entries[0])
    if len(entries) > 1:
        reference["inverse_penalty"] = None  # each fold chooses its own
        reference["clips"] = min(entry["clips"] for entry in entries)
        if "missing" in reference:
            # Other repetitions, and other corpora that train, test the same clips.
            reference["missing"] = sum(
                entry["missing"]
                for entry, fold in zip(entries, folds, strict=True)
                if fold.repetition == 0 and fold.trained_on == folds[0].trained_on
            )
        found = [entry["validation"] for entry in entries]
        reference["validation"] = None if None in found else float(np.mean(found))
    return reference


def _latency(encoder_latency: EncoderLatency, loaded: LoadedModel) -> dict[str, Any]:
    spec, head_ms = loaded.spec, loaded.head_ms(encoder_latency.ids)
    end_to_end_ms = encoder_latency.end_to_end_ms(
        spec.modality, head_ms, loaded.layers_read, spec.encoder_read
    )
    latency: dict[str, Any] = {"latency_ms": percentiles(head_ms)}
    if (counts := loaded.multiply_accumulates(encoder_latency.ids)) is not None:
        latency["multiply_accumulates"] = counts
    if end_to_end_ms is not None:
        latency["latency_end_to_end_ms"] = percentiles(end_to_end_ms)
        latency["real_time_factor"] = encoder_latency.real_time_factor(end_to_end_ms)
    return latency
