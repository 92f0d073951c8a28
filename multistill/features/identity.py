"""Identity of a feature store: what determines its states, apart from the manifest's content."""

from __future__ import annotations

from typing import Any

from multistill.config import FeaturesConfig
from multistill.encoders import side_by_side
from multistill.encoders.registry import resolve_text

DECODER = 5
"""Version of decoding: raise it when a change to decoding or resampling changes any sample, or
when `features.json` holds what stores written before lack."""

PADDING = 1
"""Version of padding: raise it when the way that clips share a batch changes."""


def features_identity(config: FeaturesConfig) -> dict[str, Any]:
    """Input of the store's fingerprint: settings, resolved weights, versions of the code.

    Raises:
        MultistillError: an encoder is neither on this machine nor reachable.
    """
    return {
        **config.identity(),
        "weights": resolved_weights(config),
        "decoder": DECODER,
        "padding": PADDING,
    }


def resolved_weights(config: FeaturesConfig) -> dict[str, str | None]:
    """Hub commit or folder digest of all encoders' weights; None for built-in encoders."""
    return {**side_by_side.resolve(config.speech), "text": resolve_text(config.text)}
