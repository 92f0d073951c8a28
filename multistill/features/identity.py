"""What decides the content of a feature store, beside the manifest's content."""

from __future__ import annotations

from typing import Any

from multistill.config import FeaturesConfig
from multistill.encoders.hub import resolve

DECODER = 1
"""Counts up when decoding, mixing, resampling or normalising changes a single sample."""

PADDING = 1
"""Counts up when the way clips share a batch changes."""


def features_identity(config: FeaturesConfig) -> dict[str, Any]:
    """For the fingerprint: settings, the weights they resolve to, and our own versions.

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
    """Commit or digest of both encoders' weights."""
    return {
        "speech": resolve(config.speech.model, config.speech.revision, "features.speech"),
        "text": resolve(config.text.model, config.text.revision, "features.text"),
    }
