"""Linear probes of single encoder layers, where the feature store holds several side by side.

The layer of an encoder that carries most emotion is seldom the last, and often better than all
together. Every layer has a probe of its own, fitted in every fold as the linear probes are
(penalty chosen on validation). The best of several on test would be luck in part, so the layer to
quote is chosen inside each fold, too, by macro F1 on validation: `chosen` is its answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from multistill.evaluation.candidates import evenly_spaced
from multistill.evaluation.folds import FoldData
from multistill.evaluation.scoring import Scorer
from multistill.features.store import FeatureStore
from multistill.models.probe import fit_probe
from multistill.models.spec import Encoder, Modality
from multistill.typing import AnyArray, DoubleArray

MAX_CLIPS = 5_000
"""Limit of training clips, and of validation clips, per layer."""
MODALITIES: Mapping[Encoder, Modality] = {"speech": "audio", "text": "text"}
METRICS = ("uar", "macro_f1")


class LayerView:
    """A feature store of which one of several stored layers is read.

    Args:
        position: of the layer among those that are stored side by side, `count` of them.
    """

    def __init__(self, store: FeatureStore, encoder: Encoder, position: int, count: int) -> None:
        self.store = store
        width = (store.audio_dim if encoder == "speech" else store.text_dim) // count
        self._slice = slice(position * width, (position + 1) * width)
        self._modality = MODALITIES[encoder]
        self.audio_dim = width if encoder == "speech" else store.audio_dim
        self.text_dim = width if encoder == "text" else store.text_dim

    def __contains__(self, utterance_id: str, /) -> bool:
        return utterance_id in self.store

    def each(self, modality: str, ids: Iterable[str], /) -> Iterator[AnyArray]:
        values = self._slice if modality == self._modality else slice(None)
        return (states[:, values] for states in self.store.each(modality, ids))


def describe_layers(
    store: FeatureStore,
    folds: Sequence[FoldData],
    modalities: Sequence[Modality],
    scorer: Scorer,
) -> dict[str, dict[str, Any]]:
    """The entry `layers` of metrics.json: by encoder, the probes of its layers.

    Args:
        modalities: those that the models of the job read.

    Returns:
        per encoder `reason` why there are none, or None; then also `layers` (`layer`, the number of
        the hidden state, UAR and macro F1 with intervals, `validation`) and `chosen`, the same
        of the layer that validation chose, with the `layers` that it is in every fold.
    """
    found: dict[str, dict[str, Any]] = {}
    for encoder, modality in MODALITIES.items():
        layers = store.info[encoder].get("layers") or ()
        settings = store.info.get("settings", {}).get(encoder, {})
        if not {modality, "multimodal"} & {*modalities}:
            found[encoder] = {"reason": f"no model of this job reads the {encoder} encoder"}
        elif store.info[encoder].get("parts"):
            reason = "the feature store keeps several speech encoders side by side"
            found[encoder] = {"reason": reason}
        elif len(layers) < 2:
            reason = f"the feature store keeps one state of the {encoder} encoder"
            found[encoder] = {"reason": reason}
        elif settings.get("combine") != "concat":
            found[encoder] = {
                "reason": f"the feature store keeps the mean of {len(layers)} layers of the "
                f"{encoder} encoder (features.{encoder}.combine: mean)"
            }
        else:
            found[encoder] = _of_encoder(store, folds, encoder, list(layers), scorer)
    return found


def _of_encoder(
    store: FeatureStore,
    folds: Sequence[FoldData],
    encoder: Encoder,
    layers: Sequence[int],
    scorer: Scorer,
) -> dict[str, Any]:
    modality = MODALITIES[encoder]
    answers: list[list[DoubleArray]] = []  # by layer and fold
    validation: list[list[float | None]] = []
    for position in range(len(layers)):
        view = LayerView(store, encoder, position, len(layers))
        answers.append([])
        validation.append([])
        for fold in folds:
            rows = evenly_spaced(len(fold.train), MAX_CLIPS)
            chosen = evenly_spaced(len(fold.valid), MAX_CLIPS)
            probe = fit_probe(
                view,
                [fold.train.ids[row] for row in rows],
                fold.train.shares[rows],
                modality=modality,
                valid_ids=[fold.valid.ids[row] for row in chosen],
                valid_shares=fold.valid.shares[chosen],
            )
            answers[-1].append(probe.predict(view, fold.test.ids).astype(np.float64))
            validation[-1].append(probe.validation)

    def scored(parts: Sequence[DoubleArray]) -> dict[str, Any]:
        metrics = scorer.score_metrics(np.concatenate(parts))
        return {metric: metrics[metric] for metric in METRICS}

    described = [
        {
            "layer": layer,
            **scored(answers[position]),
            "validation": None
            if None in validation[position]
            else float(np.mean([score for score in validation[position] if score is not None])),
        }
        for position, layer in enumerate(layers)
    ]
    best = _chosen(validation)
    picked = None
    if best is not None:
        parts = [answers[position][fold] for fold, position in enumerate(best)]
        picked = {
            **scored(parts),
            "layers": [layers[position] for position in best],
        }
    return {
        "reason": None,
        "name": store.info[encoder]["name"],
        "layers": described,
        "chosen": picked,
        "together": f"linear probe, {modality}",
    }


def _chosen(validation: Sequence[Sequence[float | None]]) -> list[int] | None:
    """Of every fold the position of its best layer, the lowest of equals; None without scores."""
    if any(None in scores for scores in validation):
        return None
    table = np.array(validation, dtype=np.float64)
    return [int(position) for position in table.argmax(axis=0)]
