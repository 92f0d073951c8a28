"""Outputs of a saved teacher over many utterances, stored in parts so that runs can resume."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from multistill.distillation.targets import joined, sequence_tensors, sequences_of
from multistill.features.store import FeatureStore
from multistill.inference.predict import Outputs, dialogue_context, predict
from multistill.models.context import DialogueContext
from multistill.models.files import load_model, read_model_config
from multistill.models.joint import Model
from multistill.models.tensors_file import write_tensors
from multistill.workspace import atomic_path, canonical

PART_ROWS = 4096
"""Utterances per part: seconds of work on a GPU, a minute or two on a CPU."""


class Teacher:
    """A saved model that predicts over a feature store.

    Args:
        folder: of the model.
        manifest: for models that read previous turns.
        parts: folder for finished parts. The name of a part is a hash of model, utterances and
            settings, so a later call reuses exactly its own parts.
        keep_pooled: also return the pooled states.
        keep_sequences: also return the sequences before they are pooled.
    """

    def __init__(
        self,
        folder: Path,
        store: FeatureStore,
        manifest: Path,
        parts: Path,
        *,
        keep_pooled: bool = False,
        keep_sequences: bool = False,
    ) -> None:
        self.folder, self.store, self.manifest, self.parts = folder, store, manifest, parts
        self.keep_pooled, self.keep_sequences = keep_pooled, keep_sequences
        config = read_model_config(folder)
        self.max_frames: int | None = config["max_frames"]
        self._loaded: tuple[Model, DialogueContext | None] | None = None

    def predict(self, ids: Sequence[str], part_rows: int = PART_ROWS) -> Outputs:
        """Outputs in the order of `ids`, which must not be empty."""
        starts = range(0, len(ids), part_rows)
        parts = [self._predict_part(ids[start : start + part_rows]) for start in starts]
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return Outputs(
            np.concatenate([part.logits for part in parts]),
            np.concatenate(pooled) if pooled else None,
            np.concatenate([part.dimensions for part in parts]),
            joined([part.sequences for part in parts]),
        )

    def _predict_part(self, ids: Sequence[str]) -> Outputs:
        kept = [self.keep_pooled, self.keep_sequences]
        settings = [str(self.folder), self.max_frames, *kept, list(ids)]
        name = hashlib.sha256(canonical(settings).encode()).hexdigest()[:24]
        file = self.parts / f"{name}.safetensors"
        try:
            tensors = load_file(file)
            none = np.zeros((len(ids), 0), np.float32)
            dimensions = tensors.get("dimensions", none)
            sequences = sequences_of(tensors)
            return Outputs(tensors["logits"], tensors.get("pooled"), dimensions, sequences)
        except (FileNotFoundError, SafetensorError):  # not computed yet, or truncated by a crash
            pass
        if self._loaded is None:
            model = load_model(self.folder)
            self._loaded = model, dialogue_context(model, self.store, self.manifest)
        model, context = self._loaded
        outputs = predict(
            model,
            self.store,
            ids,
            max_frames=self.max_frames,
            context=context,
            keep_pooled=self.keep_pooled,
            keep_sequences=self.keep_sequences,
        )
        tensors = {"logits": outputs.logits, **sequence_tensors(outputs.sequences)}
        if outputs.dimensions.shape[1]:
            tensors["dimensions"] = outputs.dimensions
        if outputs.pooled is not None:
            tensors["pooled"] = outputs.pooled
        with atomic_path(file, concurrent=True) as temporary:
            write_tensors(temporary, tensors)
        return outputs
