"""Identity of a feature store: what determines its states, apart from the manifest's content."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from multistill.config import FeaturesConfig
from multistill.encoders import side_by_side
from multistill.encoders.registry import resolve_text
from multistill.features.store import FORMAT

DECODER = 5
"""Version of decoding: raise it when a change to decoding or resampling changes any sample, or
when `features.json` holds what stores written before lack."""

PADDING = 2
"""Version of padding: raise it when the way that clips share a batch changes."""


def features_identity(config: FeaturesConfig) -> dict[str, Any]:
    """Input of the store's fingerprint: settings, resolved weights, versions of the code.

    Raises:
        MultistillError: an encoder is neither on this machine nor reachable.
    """
    return {
        **store_settings(config),
        "weights": resolved_weights(config),
        "decoder": DECODER,
        "padding": PADDING,
        "format": FORMAT,
    }


def store_settings(config: FeaturesConfig) -> dict[str, Any]:
    """The settings that decide what is stored of the recordings: not those of their copies.

    They are JSON values of a `FeaturesConfig`. Of `train` these are whether inputs or states are
    kept, and below how many layers: a store is shared by all ranks, learning rates and kinds of
    training that read the same rows.
    """
    settings = {name: value for name, value in config.identity().items() if name != "augmentation"}
    for section, encoder in (("speech", config.speech), ("text", config.text)):
        train = encoder.train
        kept: dict[str, Any] = {"kind": "full"}
        if train.layers is not None:
            kept = {"kind": "last", "layers": train.layers}
        del settings[section]["train"]
        if train.enabled:
            settings[section]["train"] = kept
    return settings


def resolved_weights(config: FeaturesConfig) -> dict[str, str | None]:
    """Hub commit or folder digest of all encoders' weights; None for built-in encoders."""
    return {**side_by_side.resolve(config.speech), "text": resolve_text(config.text)}


def store_info(config: FeaturesConfig, clips: int, marker: Mapping[str, Any]) -> dict[str, Any]:
    """What features.json says of a store beside its shards.

    Args:
        clips: number of clips that were to be encoded.
        marker: of any of its shards: what the encoders are.
    """
    speech, text = marker["speech"], marker["text"]
    return {
        "clips": clips,
        "dtype": config.dtype,
        "speech": speech,
        "text": text,
        "audio_dim": speech["dim"],
        "text_dim": text["dim"],
        "decoder": DECODER,
        "padding": PADDING,
        "format": FORMAT,
        "settings": store_settings(config),
    }
