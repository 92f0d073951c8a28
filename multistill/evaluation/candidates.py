"""Models to score: trained heads loaded from their folders, and the linear probe baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from multistill.corpora.manifest import read_classes
from multistill.errors import MultistillError
from multistill.evaluation.utterances import Utterances
from multistill.features.collate import collate
from multistill.features.store import FeatureStore
from multistill.inference.latency import time_each
from multistill.inference.predict import dialogue_context, predict
from multistill.inference.quantize import rounded, stored_bytes
from multistill.metrics.classification import distributions, sigmoid
from multistill.metrics.detection import Detected
from multistill.models.build import count_parameters
from multistill.models.context import StateStore
from multistill.models.files import HISTORY, Output, load_model, read_model_config
from multistill.models.joint import JointModel, Model
from multistill.models.probe import fit_probe
from multistill.models.sparse import PointConv, multiply_accumulates
from multistill.models.spec import Encoder, Modality, ModelSpec
from multistill.typing import DoubleArray, FloatArray
from multistill.workspace import read_json

MAX_PROBE_CLIPS = 20_000
"""Limit of training clips for the probe: it is a reference value, not a product."""


@dataclass(frozen=True)
class Candidate:
    """A model to score.

    Attributes:
        role: `teacher`, `student` or `control`.
        folders: written by `save_model`; several form an ensemble (mean of probabilities).
        repeats: folders of the same trained from other seeds, those of one seed each. The metrics
            of the candidate are those of `folders`; comparisons use the means over all seeds.
        compare_to: name of the candidate it is compared with (a student's control).
        label_share: name of a student, and the share of the training labels that this candidate
            was given of it; scored apart from the other models (`multistill.evaluation.
            label_shares`).
    """

    name: str
    role: str
    folders: Sequence[str | Path]
    compare_to: str | None = None
    mlflow_run_id: str | None = None
    repeats: Sequence[Sequence[str | Path]] = ()
    label_share: tuple[str, float] | None = None


class Predicted(NamedTuple):
    """What a candidate predicts of N clips.

    Attributes:
        probabilities: distributions [N, C].
        dimensions: [N, D].
        detected: bool [N, C], classes above the thresholds of a model of `one-vs-rest`; None for
            other models.
    """

    probabilities: DoubleArray
    dimensions: DoubleArray
    detected: Detected | None


class LoadedModel:
    """The heads of a candidate (usually one) in memory."""

    def __init__(
        self,
        candidate: Candidate,
        store: FeatureStore,
        manifest: Path,
        device: torch.device,
        dimensions: Sequence[str] = (),
        with_classes: bool = True,
    ) -> None:
        self.candidate = candidate
        self.store = store
        self.device = device
        classes = read_classes(manifest)
        self.members: list[Model] = [
            load_model(Path(folder), {"labels": list(classes) if with_classes else []}).to(device)
            for folder in candidate.folders
        ]
        for folder, model in zip(candidate.folders, self.members, strict=True):
            if model.spec.dimensions != tuple(dimensions):
                has, wanted = (
                    ", ".join(names) or "none" for names in (model.spec.dimensions, dimensions)
                )
                raise MultistillError(
                    f"the model `{candidate.name}` in {folder} has the dimensions {has}, and the "
                    f"job's tasks have {wanted}; use a model of the same job"
                )
        self.spec = spec_of_ensemble([model.spec for model in self.members])
        configs = [read_model_config(Path(folder)) for folder in candidate.folders]
        config = configs[0]
        self.trainings: list[dict[str, Any]] = [
            {**each["training"], "seconds": _seconds(Path(folder))}
            for each, folder in zip(configs, candidate.folders, strict=True)
        ]
        self.max_frames: int | None = config["max_frames"]
        self.output: Output = config["output"]
        self.thresholds: list[list[float] | None] = [each.get("thresholds") for each in configs]
        longest = max(self.members, key=lambda model: model.spec.context_turns)
        self.context = dialogue_context(longest, store, manifest)

    def probabilities(self, ids: list[str], store: FeatureStore | None = None) -> DoubleArray:
        """Mean of the members' distributions, [N, C]; arguments as of `predict`."""
        return self.predict(ids, store).probabilities

    def predict(self, ids: list[str], store: FeatureStore | None = None) -> Predicted:
        """Means over the members.

        Args:
            store: of the clips' states; default: that of the model. Previous turns are always
                those of the model's store.
        """
        outputs = [
            predict(
                model,
                store or self.store,
                ids,
                device=self.device,
                max_frames=self.max_frames,
                context=self.context,
                keep_pooled=False,
            )
            for model in self.members
        ]
        return Predicted(
            np.mean([distributions(each.logits, self.output) for each in outputs], axis=0)
            if self.spec.num_classes
            else np.zeros((len(ids), 0)),
            np.mean([each.dimensions for each in outputs], axis=0, dtype=np.float64),
            self._detected([each.logits for each in outputs]),
        )

    def _detected(self, logits: Sequence[FloatArray]) -> Detected | None:
        """Classes that are detected [N, C] by the means of the members' outputs and thresholds."""
        thresholds = [each for each in self.thresholds if each is not None]
        if self.output != "one-vs-rest" or len(thresholds) < len(self.thresholds):
            return None
        probabilities = np.mean([sigmoid(each) for each in logits], axis=0)
        return np.asarray(probabilities >= np.mean(thresholds, axis=0))

    @property
    def trains_encoder(self) -> bool:
        """Whether a member was trained with an encoder."""
        return any(isinstance(model, JointModel) for model in self.members)

    @property
    def layers_read(self) -> dict[Encoder, int]:
        """As of `ModelSpec`; a model that runs an encoder itself reads all that the store keeps."""
        return {} if self.trains_encoder else self.spec.layers_read

    def in_int8(self, ids: list[str]) -> DoubleArray:
        """`probabilities` with the weights rounded to 8 bits."""
        other = copy(self)
        other.members = [rounded(model) for model in self.members]
        return other.probabilities(ids)

    def head_bytes(self, *, int8: bool) -> int:
        """Size of the weights files of the heads."""
        return sum(stored_bytes(model, int8=int8) for model in self.members)

    def head_ms(self, ids: Sequence[str]) -> list[float]:
        """Milliseconds of the model alone at batch size 1, with the states already in memory.

        Of a model that was trained with an encoder, the trained part of the encoder is included.
        """

        def forward(inputs: tuple[torch.Tensor, ...]) -> None:
            for model in self.members:
                model(*inputs)

        milliseconds, _ = time_each(forward, [self._inputs(name) for name in ids], self.device)
        return milliseconds

    def multiply_accumulates(self, ids: Sequence[str]) -> dict[str, float] | None:
        """Mean per clip, in millions: `dense` as computed, `active` at active points alone.

        None for models without maps of points that are chosen or padded
        (`multistill.models.sparse`).
        """
        counted = [m for m in self.members if any(isinstance(x, PointConv) for x in m.modules())]
        if not counted or not ids:
            return None
        counts = [
            [multiply_accumulates(model, *self._inputs(name)) for name in ids] for model in counted
        ]
        dense, active = np.mean(counts, axis=1).sum(axis=0) / 1e6
        return {"dense": float(dense), "active": float(active)}

    def _inputs(self, utterance: str) -> tuple[torch.Tensor, ...]:
        batch = collate(self.store, [utterance], self.max_frames).to(self.device)
        states = (batch.audio, batch.audio_mask, batch.text, batch.text_mask)
        if self.context is None:
            return states
        turns = self.context.batch([utterance])
        return *states, *(tensor.to(self.device) for tensor in turns)

    def describe(self, encoders: Mapping[str, Any]) -> dict[str, Any]:
        """Identity and parameter counts, as in metrics.json.

        Args:
            encoders: result of `describe_encoders`.
        """
        candidate = self.candidate
        # Layers below the trained ones are counted with the encoders.
        held = sum(_parameters_held(model) for model in self.members)
        spec = None if self.trains_encoder else self.spec
        return {
            "name": candidate.name,
            "role": candidate.role,
            "modality": self.spec.modality,
            "params_trainable": sum(count_parameters(model) for model in self.members),
            "params_unused": sum(model.unused_parameters() for model in self.members),
            "params_end_to_end": params_end_to_end(held, self.spec.modality, encoders, spec),
            "bytes": self.head_bytes(int8=False),
            "members": len(self.members),
            "output": self.output,
            "compare_to": candidate.compare_to,
            "mlflow_run_id": candidate.mlflow_run_id,
            "training": list(self.trainings),
        }


def _seconds(folder: Path) -> float | None:
    """How long a training took, by the times of its epochs; None without its history.

    Not in config.json, which is the same for equal trainings.
    """
    try:
        epochs = read_json(folder / HISTORY)["epochs"]
    except FileNotFoundError:  # a copy of the model alone
        return None
    return float(sum(epoch["seconds"] for epoch in epochs))


def _parameters_held(model: Model) -> int:
    """Parameters of a model, those of its encoders that are not trained included."""
    if isinstance(model, JointModel):
        return sum(parameter.numel() for parameter in model.parameters())
    return count_parameters(model)


def spec_of_ensemble(members: Sequence[ModelSpec]) -> ModelSpec:
    """Of a head like the first member, with all encoders that any member needs."""
    first = members[0]
    heard = {(spec.speech_encoder, spec.speech_layer) for spec in members if spec.reads_audio}
    read = {spec.text_layer for spec in members if spec.reads_text}
    encoders = {encoder for encoder, _ in heard}
    same = len({spec.modality for spec in members}) == 1
    return first.reading(
        modality=first.modality if same else "multimodal",
        speech_encoder=encoders.pop() if len(encoders) == 1 else None,
        speech_layer=next(iter(heard))[1] if len(heard) == 1 else None,
        text_layer=read.pop() if len(read) == 1 else None,
    )


def describe_encoders(info: Mapping[str, Any]) -> dict[str, Any]:
    """Per modality: name, whether its weights were trained (None: it has none), parameters, layers.

    Args:
        info: of the feature store.
    """
    keys = ("name", "trained", "params", "layers", "layer_params", "parts")
    return {
        modality: {key: info[modality].get(key) for key in keys} for modality in ("speech", "text")
    }


def params_end_to_end(
    head: int, modality: Modality, encoders: Mapping[str, Any], spec: ModelSpec | None = None
) -> int | None:
    """Parameters of the head and the encoders that it needs; None if an encoder's is unknown.

    Args:
        spec: of a head that may read one of several speech encoders or stored layers; the others,
            and the layers above it, do not count.
    """
    needed = {"audio": ("speech",), "text": ("text",), "multimodal": ("speech", "text")}[modality]
    counts = {name: encoders[name]["params"] for name in needed}
    if spec is not None:
        described = {name: encoders[name] for name in needed}
        if (title := spec.encoder_read) is not None:
            [described["speech"]] = [p for p in encoders["speech"]["parts"] if p["title"] == title]
            counts["speech"] = described["speech"]["params"]
        for name, layer in spec.layers_read.items():
            index = described[name]["layers"][spec.stored_layers(name).index(layer)]
            counts[name] = described[name]["layer_params"][str(index)]
    return None if None in counts.values() else head + sum(counts.values())


def probe_baseline(
    modality: Modality,
    store: StateStore,
    train: Utterances,
    valid: Utterances,
    test: Utterances,
    encoders: Mapping[str, Any],
) -> tuple[dict[str, Any], DoubleArray]:
    """Fit a linear probe on pooled states, choose its penalty on validation, apply it to test.

    Returns:
        the probe's entry of metrics.json and its distributions on test, [N, C].
    """
    rows = evenly_spaced(len(train), MAX_PROBE_CLIPS)
    chosen = evenly_spaced(len(valid), MAX_PROBE_CLIPS)
    fitted = fit_probe(
        store,
        [train.ids[row] for row in rows],
        train.shares[rows],
        modality=modality,
        valid_ids=[valid.ids[row] for row in chosen],
        valid_shares=valid.shares[chosen],
    )
    description = {
        "name": f"linear probe, {modality}",
        "role": "probe",
        "modality": modality,
        "params_trainable": fitted.params_trainable,
        "params_end_to_end": params_end_to_end(fitted.params_trainable, modality, encoders),
        "clips": len(rows),
        "inverse_penalty": fitted.inverse_penalty,
        "validation": fitted.validation,
    }
    return description, fitted.predict(store, test.ids).astype(np.float64)


def evenly_spaced(size: int, limit: int) -> np.ndarray:
    """At most `limit` row numbers out of `size`, evenly spaced."""
    return np.linspace(0, size - 1, min(size, limit)).astype(np.int64)


def device_name(device: torch.device) -> str:
    """The hardware that latency was measured on, human-readable."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU (threads: {torch.get_num_threads()})"
