"""The models of continual learning as they answer: body and classifier, fold by fold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from multistill.evaluation.courses import Answers
from multistill.evaluation.utterances import Utterances
from multistill.features.store import FeatureStore
from multistill.hardware import default_device
from multistill.inference.predict import dialogue_context, predict_logits
from multistill.metrics.classification import distributions, log_probabilities, softmax
from multistill.models.build import count_parameters
from multistill.models.files import load_model, read_model_config
from multistill.models.joint import Model
from multistill.models.parts import classifier_modules
from multistill.typing import DoubleArray, IntArray


@dataclass(frozen=True)
class FoldModels:
    """The models of one fold.

    Attributes:
        manifest: its folder.
        folders: of each model, by name, those of every seed.
    """

    manifest: Path
    folders: Mapping[str, Sequence[Path]]


class Models:
    """Predictions of every model that answers, each computed once.

    Args:
        clips: of every fold, those that are answered.
    """

    def __init__(
        self, folds: Sequence[FoldModels], clips: Sequence[Utterances], store: FeatureStore
    ) -> None:
        self.folds, self.clips, self.store = folds, clips, store
        self.device = default_device()
        self._known: dict[tuple[Path, Path], DoubleArray] = {}

    @cached_property
    def seeds(self) -> int:
        return len(next(iter(self.folds[0].folders.values())))

    def distributions(self, body: str, classifier: str, seed: int) -> DoubleArray:
        """Calibrated distributions [N, C] for the clips of all folds, one after another."""
        return np.concatenate(
            [
                self._predict(fold, own, fold.folders[body][seed], fold.folders[classifier][seed])
                for fold, own in zip(self.folds, self.clips, strict=True)
            ]
        )

    def _predict(
        self, fold: FoldModels, clips: Utterances, body: Path, classifier: Path
    ) -> DoubleArray:
        key = (body, classifier)
        if key not in self._known:
            model, config = load_model(body), read_model_config(classifier)
            if classifier != body:
                _take_classifier(model, load_model(classifier))
            context = dialogue_context(model, self.store, fold.manifest)
            outputs = predict_logits(
                model,
                self.store,
                clips.ids,
                self.device,
                max_frames=config["max_frames"],
                context=context,
            )
            found = distributions(outputs, config["output"])
            self._known[key] = softmax(log_probabilities(found) / (config["temperature"] or 1.0))
        return self._known[key]

    def parameters(self, name: str) -> dict[str, int]:
        """Of a model: how many its training changed, and how many it has."""
        folder = self.folds[0].folders[name][0]
        model, config = load_model(folder), read_model_config(folder)
        trained = int(config["training"]["trained_parameters"])
        frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
        return {"trained": trained, "total": count_parameters(model) + frozen}


def _take_classifier(model: Model, source: Model) -> None:
    """Give a model the classifier of another one of the same architecture."""
    own = classifier_modules(model)
    with torch.no_grad():
        for name, module in classifier_modules(source).items():
            own[name].load_state_dict(module.state_dict())


def answer(
    answers: Answers,
    learnt: Sequence[str],
    models: Models,
    where: Mapping[str, IntArray],
    given: bool,
    seed: int,
) -> tuple[DoubleArray, float]:
    """Distributions [N, C] of one seed, and how many clips of learnt corpora met their own.

    Args:
        given: whether the corpus of each clip is known.
    """
    own = {name: models.distributions(*answers[name], seed) for name in learnt}
    stacked = np.stack([own[name] for name in learnt])
    if given:
        place = np.full(stacked.shape[1], len(learnt) - 1)  # the newest, for what is not learnt
        for number, name in enumerate(learnt):
            place[where[name]] = number
    else:
        place = stacked.max(axis=2).argmax(axis=0)
    rows = np.concatenate([where[name] for name in learnt])
    truth = np.concatenate([np.full(len(where[n]), i) for i, n in enumerate(learnt)])
    return stacked[place, np.arange(len(place))], float((place[rows] == truth).mean())
