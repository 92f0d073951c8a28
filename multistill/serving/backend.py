"""What the API asks for predictions: replicas of Ray Serve, or a stand-in of a test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from multistill.serving.clips import Answer, Clip


@dataclass(frozen=True)
class Served:
    """What is known of the served model.

    Attributes:
        model: as in `Prediction.model`.
        labels, dimensions, modality, minimum_samples: as of `Predictor`.
    """

    model: str
    labels: tuple[str, ...]
    dimensions: tuple[str, ...]
    modality: str
    minimum_samples: int


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


def as_json(served: Served) -> dict[str, Any]:
    return {**served.__dict__, "ready": True}
