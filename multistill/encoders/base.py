"""The interfaces of encoders, and the description that each gives of itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from multistill.typing import AnyArray, FloatArray

SPEECH_SECTION = "features.speech"
TEXT_SECTION = "features.text"
"""Job-file sections of the two encoders, for error messages."""

Weights = Literal["pretrained", "untrained", "none"]
Stored = Literal["states", "waves", "tokens"]
"""What the feature store keeps of an encoder: its states, or the input of one that is trained."""
Scaling = Literal["dimension", "global"]
"""One mean and deviation per dimension, or one of both for all dimensions. The bands of log-mel
energies share a unit, and the shape of the spectrum, which carries the voice, is lost where each
band is scaled alone."""


@dataclass(frozen=True)
class EncoderInfo:
    """Description of an encoder, written to features.json and shown in every table.

    Attributes:
        weights: `none` for a fixed transform, `untrained` for a placeholder with random weights.
        trained: the same for tables: True, False, or None if there are no weights.
        params: parameters that are used; layers above the highest selected one are not.
        layers: indices of the selected hidden states, see `layers.LayerSelector`.
        scaling: how states are standardised, see `Scaling`.
        layer_params: per selected layer, the parameters that a head uses which reads it alone.
        parts: of several speech encoders side by side, each with its place in a state.
        padding: how clips share a batch: with an attention mask, only with clips of equal
            length, or not at all (each clip is computed alone).
        revision: hub commit or folder digest of the weights.
        bfloat16_cosine: lowest cosine between bfloat16 and float32 states over some clips.
        stored: what `encode` gives, and the store keeps.
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
    scaling: Scaling = "dimension"
    layer_params: dict[str, int] = field(default_factory=dict)
    stored: Stored = "states"
    parts: tuple[EncoderPart, ...] = ()

    @property
    def trained(self) -> bool | None:
        return {"pretrained": True, "untrained": False, "none": None}[self.weights]

    def to_dict(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "layers": list(self.layers),
            "trained": self.trained,
            "parts": [part.to_dict() for part in self.parts],
        }


@dataclass(frozen=True)
class EncoderPart:
    """One of several speech encoders whose states stand side by side.

    Attributes:
        title: unique name, as `model.speech_encoder` gives it.
        start: first value of a state that is of this encoder; it has `info.dim` of them.
        side_by_side: layers that stand side by side in turn; empty if it has one state per frame.
        hop, minimum_samples: as of `SpeechEncoder`; they align it with the other encoders.
        info: of the encoder alone.
    """

    title: str
    start: int
    side_by_side: tuple[int, ...]
    hop: int
    minimum_samples: int
    info: EncoderInfo

    def to_dict(self) -> dict[str, Any]:
        return {
            **self.info.to_dict(),
            "title": self.title,
            "start": self.start,
            "side_by_side": list(self.side_by_side),
            "hop": self.hop,
            "minimum_samples": self.minimum_samples,
        }


class SpeechEncoder(Protocol):
    """Encodes waves, each [samples] float32: 16 kHz mono, zero mean, unit variance.

    Attributes:
        hop: samples from one state to the next.
        minimum_samples: length of the shortest wave that makes a state.
        windowed: cost grows faster than length, so long waves are encoded in windows.
    """

    info: EncoderInfo
    minimum_samples: int
    hop: int
    windowed: bool

    def frames(self, samples: int) -> int:
        """Exact number of states of a wave of this length; 0 below `minimum_samples`."""
        ...

    def encode(self, waves: Sequence[FloatArray]) -> Sequence[AnyArray]:
        """States [frames, dim] float32 of each wave; the waves are computed as one batch.

        What is `stored` of an encoder that is trained from waves is int16.
        """
        ...

    def verify(self, waves: Sequence[FloatArray]) -> None:
        """Compare the configured precision with float32 on some waves.

        Raises:
            MultistillError: the states differ too much; the message names the precision to use.
        """
        ...


class Tokens(NamedTuple):
    """Token ids of a text, special tokens included; `cut` if the text had more than the limit."""

    ids: list[int]
    cut: bool = False


class TextEncoder(Protocol):
    """Encodes transcripts."""

    info: EncoderInfo

    def is_cut(self, text: str) -> bool:
        """Whether the text has more tokens than the encoder reads, so that its end is lost."""
        ...

    def encode(self, texts: Sequence[str]) -> Sequence[AnyArray]:
        """States [tokens, dim] float32 of each text; [0, dim] for an empty one. Ids are int32."""
        ...
