"""Scores of a model that predicts one dimension, on the clips of the test part."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from multistill.corpora.manifest import dimension_array, read_manifest
from multistill.features.cache import open_store
from multistill.inference.predict import predict
from multistill.metrics.dimensions import dimension_metrics
from multistill.models.files import load_model, read_model_config


def dimension_scores(folds: Sequence[tuple[str, str]], features: str) -> dict[str, Any]:
    """CCC and RMSE over the test clips of all folds that have a value.

    Args:
        folds: folder of the manifest and of the model of each fold.

    Returns:
        `dimension`, `clips`, `ccc`, `rmse`; None where the values do not define it.
    """
    store = open_store(features)
    truths, predictions, name = [], [], ""
    for manifest, folder in folds:
        model = load_model(Path(folder))
        [name] = model.spec.dimensions
        rows = read_manifest(Path(manifest), ["utterance_id", "split", name])
        stored = set(store.ids)
        keep = [
            split == "test" and utterance in stored
            for split, utterance in zip(
                rows["split"].to_pylist(), rows["utterance_id"].to_pylist(), strict=True
            )
        ]
        rows = rows.filter(keep)
        frames = read_model_config(Path(folder))["max_frames"]
        ids = rows["utterance_id"].to_pylist()
        predictions.append(predict(model, store, ids, max_frames=frames).dimensions)
        truths.append(dimension_array(rows, [name]))
    truth, predicted = np.concatenate(truths), np.concatenate(predictions)
    found = dimension_metrics([name], predicted, truth)
    return {
        "dimension": name,
        "clips": int(np.isfinite(truth).sum()),
        "ccc": found.get(f"ccc_{name}"),
        "rmse": found.get(f"rmse_{name}"),
    }
