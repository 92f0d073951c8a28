"""States of trained encoders as they are before training, in the place of what a store keeps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from multistill.config import FeaturesConfig
from multistill.encoders.source import EncoderSource, Section, trained_encoders
from multistill.features.collate import collate
from multistill.features.store import FeatureStore
from multistill.hardware import default_device
from multistill.typing import AnyArray, FloatArray, IntArray

if TYPE_CHECKING:
    from multistill.encoders.trainable import TrainableEncoder

MAX_CLIPS = 2000
"""Clips whose states before training are measured: an encoder takes long for all of a corpus."""


class InitialStates:
    """Reads a feature store through encoders, one utterance at a time, without dropout.

    What it offers of a `FeatureStore` is what statistics and linear baselines read.

    Args:
        encoders: those that are trained; states of the others are those of the store.
    """

    def __init__(
        self,
        store: FeatureStore,
        encoders: Mapping[Section, TrainableEncoder],
        device: torch.device | str | None = None,
    ) -> None:
        self.store = store
        self._device = torch.device(device or default_device())
        self._encoders = {name: each.to(self._device).eval() for name, each in encoders.items()}
        self.audio_dim = encoders["speech"].dim if "speech" in encoders else store.audio_dim
        self.text_dim = encoders["text"].dim if "text" in encoders else store.text_dim
        self.folder = store.folder
        self.info: dict[str, Any] = dict(store.info)
        for name, each in encoders.items():
            below = self.info.get(name, {})
            held = sum(parameter.numel() for parameter in each.parameters())
            self.info[name] = {**below, "params": below.get("params", 0) + held}

    def __contains__(self, utterance_id: object) -> bool:
        return utterance_id in self.store

    def rows(self, ids: Sequence[str]) -> IntArray:
        return self.store.rows(ids)

    def audio(self, utterance_id: str) -> AnyArray:
        """Speech states [frames, audio_dim]."""
        return self._states("speech", utterance_id)

    def text(self, utterance_id: str) -> AnyArray:
        """Text states [tokens, text_dim]."""
        return self._states("text", utterance_id)

    def each(self, modality: str, ids: Iterable[str]) -> Iterator[AnyArray]:
        """`audio` or `text` of one utterance after the other."""
        if ("speech" if modality == "audio" else "text") not in self._encoders:
            return self.store.each(modality, ids)
        return map(self.audio if modality == "audio" else self.text, ids)

    def _states(self, section: Section, utterance_id: str) -> AnyArray:
        encoder = self._encoders.get(section)
        store = self.store
        if encoder is None:
            return store.audio(utterance_id) if section == "speech" else store.text(utterance_id)
        batch = collate(store, [utterance_id]).to(self._device)
        stored, mask = (
            (batch.audio, batch.audio_mask)
            if section == "speech"
            else (batch.text, batch.text_mask)
        )
        if not mask.any():
            return np.zeros((0, encoder.dim), dtype=np.float32)
        with torch.inference_mode():
            states, state_mask = encoder(stored, mask)
            result: FloatArray = states[0, state_mask[0]].float().cpu().numpy()
        return result


def with_initial_states(
    store: FeatureStore, encoders: Mapping[Section, EncoderSource] | None = None
) -> FeatureStore | InitialStates:
    """The store itself, unless an encoder is trained on what it keeps.

    Args:
        encoders: that are trained, where a model trains them in another way than the store's
            settings say.

    Raises:
        MultistillError: the encoder cannot be loaded.
    """
    config = FeaturesConfig.model_validate(store.info.get("settings", {}))
    sources = {**trained_encoders(config, store.info), **(encoders or {})}
    if not sources:
        return store
    return InitialStates(store, {name: source.load() for name, source in sources.items()})


def drawn_clips(ids: Sequence[str]) -> list[str]:
    """At most `MAX_CLIPS` of the utterances, the same ones in every process."""
    if len(ids) <= MAX_CLIPS:
        return list(ids)
    drawn = np.random.default_rng(len(ids)).choice(len(ids), MAX_CLIPS, replace=False)
    return [ids[row] for row in np.sort(drawn)]
