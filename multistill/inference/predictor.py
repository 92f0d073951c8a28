"""From a recording and its transcript to an emotion: decoding, encoders and head in one object.

Every other way to a prediction goes through `Predictor`: the commands `predict`, `stream` and
`serve`, and exported models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from multistill.typing import FloatArray

Audio: TypeAlias = str | Path | bytes | tuple[FloatArray, int]
"""A file's path, a file's content, or samples [n] or [n, channels] with their rate in Hz."""


@dataclass(frozen=True)
class Input:
    """One clip; what a model does not read is ignored.

    Attributes:
        audio: None: there is no recording.
        text: transcript; None or blank: there is none.
    """

    audio: Audio | None = None
    text: str | None = None


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
    notes: tuple[str, ...] = field(default=())


class Predictor:
    """A trained model with the encoders whose states it reads, on one device.

    Attributes:
        name: as in `Prediction.model`.
        labels: classes in the order of the outputs; empty for a model of dimensions alone.
        dimensions: that the model predicts.
        modality: `audio`, `text` or `multimodal`.
        minimum_samples: length of the shortest recording at 16 kHz that makes a state; 0 for a
            model of text alone.
    """

    @classmethod
    def load(cls, model: str | Path, device: str | None = None) -> Predictor:
        """Load a model and its encoders; neither Ray nor pickle is used.

        Args:
            model: a model folder; `models:/NAME@champion`, `models:/NAME/VERSION` or `runs:/ID`
                on the MLflow server; or the name of a finished job, of which the student with the
                best validation is taken.
            device: default: a GPU if available.
        """
        raise NotImplementedError

    def predict(
        self,
        audio: Audio | None,
        text: str | None = None,
        *,
        only: Sequence[str] | None = None,
        unsure_below: float | None = None,
    ) -> Prediction:
        """Predict one clip.

        Args:
            only: classes that are possible; the others have no probability.
            unsure_below: probability below which there is no label.
        """
        raise NotImplementedError

    def predict_batch(
        self,
        inputs: Sequence[Input],
        *,
        only: Sequence[str] | None = None,
        unsure_below: float | None = None,
    ) -> list[Prediction]:
        """Predict several clips; arguments as of `predict`."""
        raise NotImplementedError

    def predict_samples(
        self,
        samples: FloatArray,
        text: str | None = None,
        *,
        only: Sequence[str] | None = None,
        unsure_below: float | None = None,
    ) -> Prediction:
        """Predict mono samples [n] at 16 kHz, as `predict((samples, 16000))` but not copied."""
        raise NotImplementedError
