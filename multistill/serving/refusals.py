"""Why a request gets no prediction: a status of HTTP, a word for metrics and a sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from multistill.audio.errors import UnusableClipError

RETRY_AFTER_S = 1
"""Seconds after which a client that was refused for load may ask again."""

_STATUS_OF_KIND = {"not audio": 415, "not supported": 415, "too long": 413}
"""Of `UnusableClipError.kind`; all others are 422."""


@dataclass(frozen=True)
class Refusal:
    """An answer without a prediction.

    Attributes:
        status: of HTTP.
        reason: a few words that similar cases share, as metrics count them.
        sentence: what is wrong, and what to do.
    """

    status: int
    reason: str
    sentence: str

    def to_json(self) -> dict[str, Any]:
        return {"error": self.sentence, "reason": self.reason}

    @property
    def headers(self) -> dict[str, str]:
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        return {"Retry-After": str(RETRY_AFTER_S)} if self.status == 503 else {}


class RefusedError(Exception):
    """Ends a request with a refusal."""

    def __init__(self, status: int, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.refusal = Refusal(status, reason, sentence)


def of_clip(error: UnusableClipError) -> Refusal:
    """The refusal of a clip that cannot be predicted, with the sentence of `predict`."""
    return Refusal(_STATUS_OF_KIND.get(error.kind, 422), error.kind, str(error))
