"""From a recording and its transcript to an emotion: decoding, encoders and head in one object.

The command `predict` goes through it, and so can an application.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from multistill.audio import SAMPLE_RATE
from multistill.audio.errors import UnusableClipError, describe
from multistill.config import FeaturesConfig
from multistill.errors import UsageError
from multistill.features.in_memory import StatesInMemory
from multistill.features.store import FeatureStore
from multistill.hardware import default_device
from multistill.inference.clip import Audio, Input, ReadClip, read_clip
from multistill.inference.encoders import ModelEncoders
from multistill.inference.predict import predict
from multistill.inference.source import check_temperature, found_model
from multistill.metrics.classification import EPS, distributions, log_probabilities, softmax
from multistill.models.context import DialogueContext
from multistill.models.files import load_model, read_model_config
from multistill.models.joint import Model
from multistill.models.spec import Modality
from multistill.typing import DoubleArray, FloatArray

__all__ = ["Audio", "Input", "Prediction", "Predictor"]


@dataclass(frozen=True)
class Prediction:
    """What a model says about one clip.

    Attributes:
        label: the most probable class; None where the model is unsure (`unsure_below`), and of a
            model of dimensions alone.
        distribution: class -> probability, calibrated; the sum is 1, over `only` if it is given.
        dimensions: valence, arousal and dominance from 1 to 5, those that the model predicts.
        milliseconds: `decode`, `speech`, `text`, `head`, `total`; a stage that did not run is
            absent.
        model: name and start of the checksum of the model, or its registered name and version.
        missing: modalities (`audio`, `text`) that the model reads and the clip lacks.
        notes: sentences about what was read otherwise than it was given, e.g. a cut transcript.
    """

    label: str | None
    distribution: dict[str, float]
    dimensions: dict[str, float]
    milliseconds: dict[str, float]
    model: str
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Predictor:
    """A trained model with the encoders whose states it reads, on one device.

    Made by `load`. A model that reads previous turns of a dialogue gets none: it predicts each
    clip as the first of its dialogue.

    Attributes:
        name: as in `Prediction.model`.
        labels: classes in the order of the outputs; empty for a model of dimensions alone.
        dimensions: that the model predicts.
        modality: `audio`, `text` or `multimodal`.
        temperature: by which the logarithms of probabilities are divided; 1: not at all.
        minimum_samples: length of the shortest recording at 16 kHz that can be predicted; 0 for a
            model of text alone.
        device: where model and encoders are.
        features: settings of the encoders, at the weights of the training.
        partial: only one of several speech encoders is read and loaded.
    """

    def __init__(
        self,
        model: Model,
        config: Mapping[str, Any],
        encoders: ModelEncoders,
        name: str,
        device: torch.device,
        temperature: float | None = None,
    ) -> None:
        self.name = name
        self.labels: tuple[str, ...] = tuple(config["labels"])
        self.dimensions: tuple[str, ...] = model.spec.dimensions
        self.modality: Modality = model.spec.modality
        fitted = config["temperature"] if temperature is None else temperature
        self.temperature: float = 1.0 if fitted is None else fitted
        self.minimum_samples = 0 if encoders.speech is None else encoders.speech.minimum_samples
        self.device = device
        self.features: FeaturesConfig = encoders.config
        self.partial = model.spec.encoder_read is not None and len(encoders.config.speech.parts) > 1
        self._model = model
        self._encoders = encoders
        self._output: str = config["output"]
        self._max_frames: int | None = config["max_frames"]

    @classmethod
    def load(
        cls,
        model: str | Path,
        device: str | None = None,
        *,
        workspace: str | Path = "workspace",
        temperature: float | None = None,
    ) -> Predictor:
        """Load a model and its encoders; Ray is not started, and pickles are not read.

        Args:
            model: a model folder; `models:/NAME@champion`, `models:/NAME/VERSION` or `runs:/ID`
                on the MLflow server; or the name of a finished job, of which the student with the
                best validation is taken.
            device: default: a GPU if available.
            workspace: where the job ran. If MLFLOW_TRACKING_URI is not set, its database is
                MLflow's.
            temperature: in place of the one that was fitted on validation; 1: probabilities as
                the model gives them.

        Raises:
            UsageError: there is no such model, job or device.
            MultistillError: the model folder is damaged, or an encoder is gone or changed.
        """
        check_temperature(temperature)
        chosen = _device(device)
        with found_model(model, Path(workspace)) as (folder, title):
            config = read_model_config(folder)
            head = load_model(folder).to(chosen)
            encoders = ModelEncoders.load(config, head.spec, str(model), chosen)
            name = title or title_of(folder, config)
        return cls(head, config, encoders, name, chosen, temperature)

    def predict(
        self,
        audio: Audio | None = None,
        text: str | None = None,
        *,
        only: Sequence[str] | None = None,
        unsure_below: float | None = None,
    ) -> Prediction:
        """Predict one clip.

        Args:
            text: transcript; None or blank: there is none.
            only: classes that are possible; the others have no probability.
            unsure_below: probability below which there is no label.

        Raises:
            UsageError: `only` or `unsure_below` do not fit the model.
            UnusableClipError: the recording cannot be read or is too short, the text is not
                Unicode, or the clip lacks all that the model reads.
        """
        return self.predict_batch([Input(audio, text)], only=only, unsure_below=unsure_below)[0]

    def predict_batch(
        self,
        inputs: Sequence[Input],
        *,
        only: Sequence[str] | None = None,
        unsure_below: float | None = None,
    ) -> list[Prediction]:
        """Predict several clips; arguments and errors as of `predict`.

        Clips are encoded one by one and share batches of the head, whose time is that of all
        batches divided by the clips. All states are in memory at once: pass some hundred clips.
        """
        results = self.try_batch(inputs, only=only, unsure_below=unsure_below)
        predictions = []
        for each, result in zip(inputs, results, strict=True):
            if isinstance(result, UnusableClipError):
                raise _of(each, result) from result
            predictions.append(result)
        return predictions

    def try_batch(
        self,
        inputs: Sequence[Input],
        *,
        only: Sequence[str] | None = None,
        unsure_below: float | None = None,
    ) -> list[Prediction | UnusableClipError]:
        """Like `predict_batch`; why a clip cannot be predicted stands in its place."""
        self.check(only, unsure_below)
        model, encoders = self._model, self._encoders
        states = StatesInMemory(
            encoders.config.dtype, model.audio_dim, model.text_dim, encoders.stored
        )
        results: dict[str, Prediction | UnusableClipError] = {}
        clips: dict[str, ReadClip] = {}
        for number, each in enumerate(inputs):
            try:
                clips[str(number)] = read_clip(str(number), each, encoders, states)
            except UnusableClipError as error:
                results[str(number)] = error
        if clips:
            for name, clip, outputs in self._run(clips, states):
                results[name] = self._answer(clip, outputs, only, unsure_below)
        return [results[str(number)] for number in range(len(inputs))]

    def predict_stored(
        self,
        store: FeatureStore,
        ids: Sequence[str],
        *,
        only: Sequence[str] | None = None,
        unsure_below: float | None = None,
    ) -> list[Prediction]:
        """Predict clips whose states are in a store that `features` made."""
        tokens = store.text_tokens(ids)
        reads_text = self._model.spec.reads_text
        clips = {
            name: ReadClip({}, ("text",) if reads_text and not count else ())
            for name, count in zip(ids, tokens, strict=True)
        }
        return [
            self._answer(clip, outputs, only, unsure_below)
            for _, clip, outputs in self._run(clips, store)
        ]

    def predict_samples(
        self,
        samples: FloatArray,
        text: str | None = None,
        *,
        only: Sequence[str] | None = None,
        unsure_below: float | None = None,
    ) -> Prediction:
        """Predict mono samples [n] at 16 kHz; the same as `predict((samples, 16000))`."""
        return self.predict((samples, SAMPLE_RATE), text, only=only, unsure_below=unsure_below)

    def check(self, only: Sequence[str] | None, unsure_below: float | None) -> None:
        """Refuse arguments of `predict` that do not fit the model.

        Raises:
            UsageError: names the first.
        """
        check_options(self.labels, only, unsure_below)

    def _run(
        self, clips: Mapping[str, ReadClip], states: StatesInMemory | FeatureStore
    ) -> Iterator[tuple[str, ReadClip, _Outputs]]:
        """Outputs of the head for each clip."""
        ids = list(clips)
        context, turns = None, self._model.spec.context_turns
        if turns:
            alone: dict[str, list[Any]] = {
                "utterance_id": ids,
                "dialogue": ids,
                "turn": [0] * len(ids),
            }
            context = DialogueContext(states, alone, turns)
        start = time.perf_counter()
        outputs = predict(
            self._model, states, ids, self.device, self._max_frames, context=context,
            keep_pooled=False,
        )  # fmt: skip
        head = 1000 * (time.perf_counter() - start) / len(ids)
        shares = np.zeros((len(ids), 0))
        if self.labels:
            shares = distributions(outputs.logits, self._output)
        if self.labels and self.temperature != 1.0:
            shares = softmax(log_probabilities(shares) / self.temperature)
        for name, distribution, dimensions in zip(ids, shares, outputs.dimensions, strict=True):
            yield name, clips[name], _Outputs(distribution, dimensions, head)

    def _answer(
        self,
        clip: ReadClip,
        outputs: _Outputs,
        only: Sequence[str] | None,
        unsure_below: float | None,
    ) -> Prediction:
        kept = [n for n, label in enumerate(self.labels) if only is None or label in only]
        shares = outputs.distribution[kept]
        if only is not None:
            shares = np.maximum(shares, EPS)  # the classes that are left may all have none
            shares = shares / shares.sum()
        label = None
        if kept:
            best = int(shares.argmax())
            if unsure_below is None or shares[best] >= unsure_below:
                label = self.labels[kept[best]]
        milliseconds = {**clip.milliseconds, "head": outputs.milliseconds}
        return Prediction(
            label=label,
            distribution={self.labels[n]: float(p) for n, p in zip(kept, shares, strict=True)},
            dimensions=dict(zip(self.dimensions, map(float, outputs.dimensions), strict=True)),
            milliseconds={**milliseconds, "total": sum(milliseconds.values())},
            model=self.name,
            missing=clip.missing,
            notes=clip.notes + (_WITHOUT_TURNS if self._model.spec.context_turns else ()),
        )


_WITHOUT_TURNS = ("predicted without the previous turns of its dialogue",)


class _Outputs(NamedTuple):
    distribution: DoubleArray
    dimensions: FloatArray
    milliseconds: float


def _of(clip: Input, error: UnusableClipError) -> UnusableClipError:
    """The error with the file's name."""
    if not isinstance(clip.audio, str | Path):
        return error
    named = UnusableClipError(f"{os.fspath(clip.audio)}: {error}")
    named.kind = error.kind
    return named


def title_of(folder: Path, config: Mapping[str, Any]) -> str:
    """What the training was called, and the start of the weights' checksum."""
    training = config["training"].get("name") or folder.resolve().name
    return f"{training} {config['sha256'][:8]}"


def _device(name: str | None) -> torch.device:
    try:
        device = torch.device(name) if name else default_device()
        torch.zeros(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"device: `{name}` cannot be used ({describe(error)}); use cpu, or leave it out"
        ) from error
    return device


def check_options(
    labels: Sequence[str], only: Sequence[str] | None, unsure_below: float | None
) -> None:
    """Refuse arguments of `Predictor.predict` that do not fit a model with these classes.

    Raises:
        UsageError: names the first.
    """
    if unsure_below is not None and not 0.0 <= unsure_below <= 1.0:
        raise UsageError(f"unsure_below: {unsure_below} is no probability; use a value from 0 to 1")
    if only is not None and not only:
        raise UsageError("only: no class is possible; name one, or leave it out")
    for name in only or ():
        if name not in labels:
            found = ", ".join(labels) or "none, dimensions alone"
            raise UsageError(
                f"only: the model has no class `{name}`; use some of its classes: {found}"
            )
