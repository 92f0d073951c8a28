"""A saved teacher's outputs over many utterances, kept part by part so that a kill costs one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from multistill.features.store import FeatureStore
from multistill.inference.predict import Outputs, dialogue_context, predict
from multistill.models.build import EmotionModel
from multistill.models.context import DialogueContext
from multistill.models.files import Output, load_model, read_model_config
from multistill.workspace import atomic_path, canonical

PART_ROWS = 4096
"""Utterances of one part: seconds of work on a GPU, a minute or two on a CPU."""


class Teacher:
    """One saved model that answers over one feature store.

    Args:
        folder: of the model.
        parts: folder for finished parts. A later call finds them by model, utterances and
            settings, so an answer is never taken for another's.
        keep_pooled: give the pooled states too.
    """

    def __init__(
        self,
        folder: Path,
        store: FeatureStore,
        manifest: Path,
        parts: Path,
        *,
        keep_pooled: bool = False,
    ) -> None:
        self.folder, self.store, self.manifest, self.parts = folder, store, manifest, parts
        self.keep_pooled = keep_pooled
        config = read_model_config(folder)
        self.max_frames: int | None = config["max_frames"]
        self.output: Output = config["output"]
        self._loaded: tuple[EmotionModel, DialogueContext | None] | None = None

    def predict(self, ids: Sequence[str], part_rows: int = PART_ROWS) -> Outputs:
        """Outputs in the order of `ids`; at least one utterance."""
        cuts = range(0, len(ids), part_rows)
        found = [self._part(ids[start : start + part_rows]) for start in cuts]
        pooled = [part.pooled for part in found if part.pooled is not None]
        return Outputs(
            np.concatenate([part.logits for part in found]),
            np.concatenate(pooled) if pooled else None,
        )

    def _part(self, ids: Sequence[str]) -> Outputs:
        settings = [str(self.folder), self.max_frames, self.keep_pooled, list(ids)]
        name = hashlib.sha256(canonical(settings).encode()).hexdigest()[:24]
        file = self.parts / f"{name}.safetensors"
        try:
            tensors = load_file(file)
            return Outputs(tensors["logits"], tensors.get("pooled"))
        except (FileNotFoundError, SafetensorError):  # not there yet, or cut short by a crash
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
        )
        kept = {"logits": outputs.logits, "pooled": outputs.pooled}
        with atomic_path(file, concurrent=True) as temporary:
            save_file({key: value for key, value in kept.items() if value is not None}, temporary)
        return outputs
