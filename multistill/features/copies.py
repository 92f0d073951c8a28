"""Reads training clips as one of their distorted copies (`multistill.features.augmented`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from multistill.features.distorted import key_of
from multistill.features.store import FeatureStore
from multistill.typing import AnyArray, FloatArray, IntArray

_PREFIX = "copy-"


def copy_name(copy: int) -> str:
    """Name of a copy among those of its clip, for `key_of`.

    Args:
        copy: 1 for the first.
    """
    return f"{_PREFIX}{copy}"


class StoreWithCopies:
    """States of clips and of their copies: audio of a copy, text of the clip that it is of.

    Attributes:
        count: number of copies that a clip has at most.

    Args:
        store: of the clips.
        copies: of their copies.
        ids: clips whose copies are read.
    """

    def __init__(self, store: FeatureStore, copies: FeatureStore, ids: Sequence[str]) -> None:
        self.store, self.copies = store, copies
        names = {key.partition(":")[0] for key in copies.ids}
        self.count = max((int(name.removeprefix(_PREFIX)) for name in names), default=0)
        self._clip_of = {
            key: name
            for copy in range(1, self.count + 1)
            for name in ids
            if (key := key_of(copy_name(copy), name)) in copies
        }
        self.audio_dim, self.text_dim = store.audio_dim, store.text_dim

    def names(self, ids: Sequence[str], copies: Sequence[int]) -> list[str]:
        """Ids to read clips by, each as one of its copies; a clip that lacks it is read itself.

        Args:
            copies: number of the copy of each; 0: the clip itself.
        """
        keys = [key_of(copy_name(copy), name) for name, copy in zip(ids, copies, strict=True)]
        return [key if key in self._clip_of else name for key, name in zip(keys, ids, strict=True)]

    def audio_frames(self, ids: Sequence[str], /) -> IntArray:
        """Frames of each clip or copy."""
        frames = [
            (self.copies if name in self._clip_of else self.store).audio_frames([name])
            for name in ids
        ]
        return np.concatenate([np.zeros(0, np.int64), *frames])

    def text_tokens(self, ids: Sequence[str], /) -> IntArray:
        """Tokens of each clip, or of the clip that a copy is of."""
        return self.store.text_tokens([self._clip_of.get(name, name) for name in ids])

    def raw(self, modality: str, utterance_id: str, /) -> tuple[AnyArray, FloatArray | None]:
        """As `FeatureStore.raw`."""
        clip = self._clip_of.get(utterance_id)
        if clip is None:
            return self.store.raw(modality, utterance_id)
        if modality == "audio":
            return self.copies.raw(modality, utterance_id)
        return self.store.raw(modality, clip)
