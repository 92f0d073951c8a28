"""What every encoder tells of itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from multistill.typing import FloatArray

SAMPLE_RATE = 16_000
"""Every speech encoder here hears 16 kHz mono."""

Weights = Literal["pretrained", "untrained", "none"]


@dataclass(frozen=True)
class EncoderInfo:
    """Stands in features.json, so that every table can name its encoders honestly.

    Attributes:
        weights: `none` for a fixed transform, `untrained` for a stand-in with random weights.
        trained: the same for tables: True, False, or None where there are no weights.
        params: parameters that run; layers above the highest kept one do not.
        padding: how clips share a batch: `mask`, `equal-length` or `none`.
        bfloat16_cosine: of states in bfloat16 with those in float32, the worst of some clips.
    """

    name: str
    weights: Weights
    dim: int
    params: int
    layers: tuple[int, ...]
    padding: Literal["mask", "equal-length", "none"]
    precision: str = "float32"
    revision: str | None = None
    bfloat16_cosine: float | None = None

    @property
    def trained(self) -> bool | None:
        return {"pretrained": True, "untrained": False, "none": None}[self.weights]

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "layers": list(self.layers), "trained": self.trained}


class SpeechEncoder(Protocol):
    """Turns waves into states. A wave is 16 kHz mono float32, normalised, [samples].

    Attributes:
        hop: samples from one state to the next.
        minimum_samples: of the shortest wave that makes a state.
        windowed: cost grows faster than length, so long waves come in windows.
    """

    facts: EncoderInfo
    minimum_samples: int
    hop: int
    windowed: bool

    def frames(self, samples: int) -> int:
        """Exact number of states of a wave of this length; 0 below `minimum_samples`."""
        ...

    def encode(self, waves: Sequence[FloatArray]) -> list[FloatArray]:
        """States [frames, dim] float32 of each wave; the waves make one batch."""
        ...

    def verify(self, waves: Sequence[FloatArray]) -> None:
        """Refuse a precision that changes the states of these waves.

        Raises:
            MultistillError: with the precision to use instead.
        """
        ...


class TextEncoder(Protocol):
    """Turns transcripts into states."""

    facts: EncoderInfo

    def encode(self, texts: Sequence[str]) -> list[FloatArray]:
        """States [tokens, dim] float32 of each text; [0, dim] for an empty one."""
        ...
