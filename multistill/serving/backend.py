"""What the API asks for predictions: replicas of Ray Serve, or a stand-in of a test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from multistill.config import FeaturesConfig
from multistill.inference.predictor import Predictor
from multistill.serving.clips import Answer, Clip


@dataclass(frozen=True)
class Served:
    """What is known of the served model.

    Attributes:
        model: as in `Prediction.model`.
        labels, dimensions, modality, minimum_samples, features: as of `Predictor`.
    """

    model: str
    labels: tuple[str, ...]
    dimensions: tuple[str, ...]
    modality: str
    minimum_samples: int
    features: FeaturesConfig

    @classmethod
    def of(cls, predictor: Predictor) -> Served:
        return cls(
            model=predictor.name,
            labels=predictor.labels,
            dimensions=predictor.dimensions,
            modality=predictor.modality,
            minimum_samples=predictor.minimum_samples,
            features=predictor.features,
        )

    def to_json(self) -> dict[str, Any]:
        """What clients need to know."""
        return {
            "model": self.model,
            "labels": list(self.labels),
            "dimensions": list(self.dimensions),
            "modality": self.modality,
        }


class Backend(Protocol):
    async def predict(self, clip: Clip) -> Answer:
        """Predict one clip.

        Raises:
            RefusedError: there is no replica that could, or too many requests wait.
        """
        ...

    async def served(self) -> Served:
        """Describe the model, once a replica has loaded it; errors as of `predict`."""
        ...
