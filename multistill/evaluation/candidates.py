"""Trained heads and linear probes that answer from a feature store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from multistill.evaluation.utterances import Utterances
from multistill.features.collate import collate
from multistill.features.store import FeatureStore
from multistill.inference.latency import time_each
from multistill.inference.predict import dialogue_context, predict_logits
from multistill.metrics.classification import regressed, softmax
from multistill.models.build import EmotionModel, count_parameters
from multistill.models.files import Output, load_model, read_model_config
from multistill.models.probe import fit_probe
from multistill.models.spec import Modality, ModelSpec
from multistill.typing import DoubleArray

PROBE_CLIPS = 20_000
"""The probe is fitted on at most so many training clips: it is a yardstick, not a product."""


@dataclass(frozen=True)
class Candidate:
    """A model to score.

    Attributes:
        role: `teacher`, `student` or `control`.
        folders: of `save_model`; several are an ensemble (mean of probabilities).
        repeats: of the same model trained from other seeds, a folder each; the entry's own
            figures are those of `folders`, comparisons are of the means over all seeds.
        compare_to: name of the entry it is judged against (a student's control).
        params_note: shown beside its parameters.
    """

    name: str
    role: str
    folders: Sequence[str | Path]
    compare_to: str | None = None
    params_note: str | None = None
    mlflow_run_id: str | None = None
    repeats: Sequence[str | Path] = ()


class LoadedModel:
    """The heads of an entry (one, mostly), in memory."""

    def __init__(
        self, entry: Candidate, store: FeatureStore, manifest: Path, device: torch.device
    ) -> None:
        self.entry = entry
        self.store = store
        self.device = device
        self.members: list[EmotionModel] = [
            load_model(Path(folder)).to(device) for folder in entry.folders
        ]
        self.spec: ModelSpec = self.members[0].spec
        config = read_model_config(Path(entry.folders[0]))
        self.max_frames: int | None = config["max_frames"]
        self.output: Output = config["output"]
        longest = max(self.members, key=lambda model: model.spec.context_turns)
        self.context = dialogue_context(longest, store, manifest)

    def probabilities(self, ids: list[str]) -> DoubleArray:
        """Mean of the members' distributions, [N, 7]."""
        distribution = regressed if self.output == "shares" else softmax
        parts = [
            distribution(
                predict_logits(
                    model,
                    self.store,
                    ids,
                    device=self.device,
                    max_frames=self.max_frames,
                    context=self.context,
                )
            )
            for model in self.members
        ]
        return np.asarray(np.mean(parts, axis=0))

    def head_times(self, ids: Sequence[str]) -> list[float]:
        """Milliseconds of the head alone, one clip at a time, states already in memory."""

        def answer(inputs: tuple[torch.Tensor, ...]) -> None:
            for model in self.members:
                model(*inputs)

        taken, _ = time_each(answer, [self._inputs(name) for name in ids], self.device)
        return taken

    def _inputs(self, name: str) -> tuple[torch.Tensor, ...]:
        batch = collate(self.store, [name], self.max_frames).to(self.device)
        states = (batch.audio, batch.audio_mask, batch.text, batch.text_mask)
        if self.context is None:
            return states
        return *states, *(part.to(self.device) for part in self.context.batch([name]))

    def facts(self, used: Mapping[str, Any]) -> dict[str, Any]:
        """Who it is and what it costs, for metrics.json.

        Args:
            used: `encoders` of the store.
        """
        entry = self.entry
        head = sum(count_parameters(model) for model in self.members)
        return {
            "name": entry.name,
            "role": entry.role,
            "modality": self.spec.modality,
            "params_trainable": head,
            "params_end_to_end": end_to_end(head, self.spec.modality, used),
            "params_note": entry.params_note,
            "members": len(self.members),
            "output": self.output,
            "compare_to": entry.compare_to,
            "mlflow_run_id": entry.mlflow_run_id,
        }


def encoders(info: Mapping[str, Any]) -> dict[str, Any]:
    """Per modality: name, whether its weights were trained (None: it has none), parameters."""
    return {
        modality: {key: info[modality].get(key) for key in ("name", "trained", "params")}
        for modality in ("speech", "text")
    }


def end_to_end(head: int, modality: str, used: Mapping[str, Any]) -> int | None:
    """Parameters of the head and of the encoders that it needs; None where they are not told."""
    needed = {"audio": ("speech",), "text": ("text",), "multimodal": ("speech", "text")}[modality]
    counts = [used[name]["params"] for name in needed]
    return None if None in counts else head + sum(counts)


def probe(
    modality: Modality,
    store: FeatureStore,
    train: Utterances,
    test: Utterances,
    used: Mapping[str, Any],
) -> tuple[dict[str, Any], DoubleArray]:
    """A linear probe of mean-pooled states: facts and its distributions on test, [N, 7]."""
    chosen = evenly(len(train), PROBE_CLIPS)
    fitted = fit_probe(
        store, [train.ids[row] for row in chosen], train.shares[chosen], modality=modality
    )
    facts = {
        "name": f"linear probe, {modality}",
        "role": "probe",
        "modality": modality,
        "params_trainable": fitted.params_trainable,
        "params_end_to_end": end_to_end(fitted.params_trainable, modality, used),
        "clips": len(chosen),
    }
    return facts, fitted.predict(store, test.ids).astype(np.float64)


def evenly(size: int, most: int) -> np.ndarray:
    """At most `most` rows of `size`, evenly spaced."""
    return np.linspace(0, size - 1, min(size, most)).astype(np.int64)


def device_name(device: torch.device) -> str:
    """What latency was measured on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU (threads: {torch.get_num_threads()})"
