"""Test clips under the conditions of the robustness pack, encoded as the recordings are.

The clips are rows of a manifest of their own, one per clip and condition (`DISTORTED.columns`),
which the encode pipeline plans, decodes and encodes like any other: on all nodes, in batches,
with shards that a killed run keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from multistill.audio.conditions import CONDITIONS, VOICES
from multistill.audio.distortions import first_seconds, generator_for
from multistill.audio.errors import UnusableClipError, describe
from multistill.audio.reading import read_sound
from multistill.config import FeaturesConfig
from multistill.features.decode import Wave, decode
from multistill.features.shards import COLUMNS, read_shard
from multistill.features.waves import DecodedShard, ShardSource
from multistill.typing import FloatArray

VOICE_SECONDS = 10.0
"""Read of every voice in babble, which is repeated."""
UNREAD_SECONDS = 0.5
"""Encoded of a clip whose transcript alone is changed: nobody reads these states."""
CACHED_VOICES = 64


def key_of(condition: str, clip: str) -> str:
    """Id of a clip under a condition; the names of conditions hold no colon."""
    return f"{condition}:{clip}"


def decode_distorted(plan: Path, shard: int, config: FeaturesConfig) -> DecodedShard:
    """Decode and distort the clips of a shard, as `decode_shard` does without distortion."""
    voice = lru_cache(CACHED_VOICES)(_read_voice)

    def decode_row(row: dict[str, Any]) -> Wave:
        return _decode(row, [voice(path) for path in row["voices"]], config)

    return decode_rows(plan, shard, decode_row)


def decode_rows(
    plan: Path, shard: int, decode_row: Callable[[dict[str, Any]], Wave]
) -> DecodedShard:
    """Decode every row of a shard's plan; those that fail get a reason instead of a wave."""
    rows = read_shard(plan, shard).to_pylist()
    decoded = DecodedShard(
        [row["utterance_id"] for row in rows],
        [row["audio_path"] for row in rows],
        [row["text"] or "" for row in rows],
    )
    for number, row in enumerate(rows):
        try:
            decoded.waves[number] = decode_row(row)
        except UnusableClipError as error:
            decoded.reasons[number] = str(error)
        except (MemoryError, ImportError):
            raise
        except Exception as error:
            reason = f"cannot be distorted: {type(error).__name__}: {describe(error)}"
            decoded.reasons[number] = reason
    return decoded


def by_person(persons: Sequence[str]) -> dict[str, list[int]]:
    """The rows of each person."""
    found: dict[str, list[int]] = {}
    for row, person in enumerate(persons):
        found.setdefault(person, []).append(row)
    return found


def other_voices(
    people: dict[str, list[int]], person: str, random: np.random.Generator
) -> list[int]:
    """A row each of up to `VOICES` other people, for babble."""
    others = [name for name in people if name != person]
    count = min(VOICES, len(others))
    chosen = random.choice(len(others), count, replace=False) if others else np.array([], int)
    rows = [people[others[index]] for index in chosen.tolist()]
    return [of_person[int(random.integers(len(of_person)))] for of_person in rows]


DISTORTED = ShardSource((*COLUMNS, "clip", "condition", "voices"), decode_distorted)
"""Rows have `utterance_id` (`key_of`), the other columns of a manifest with the changed
transcript and length, `clip` (its id), `condition`, and `voices` (paths of the babble)."""


def _decode(row: dict[str, Any], voices: Sequence[FloatArray], config: FeaturesConfig) -> Wave:
    condition = CONDITIONS[row["condition"]]
    random = generator_for(condition.name, row["clip"])

    def change(samples: FloatArray) -> FloatArray:
        if condition.kind == "text":
            return first_seconds(samples, UNREAD_SECONDS)
        return samples if condition.change is None else condition.change(samples, voices, random)

    return decode(
        row["audio_path"],
        max_seconds=config.speech.max_seconds,
        long_clips=config.speech.long_clips,
        digest=row["audio_digest"] or None,
        change=change,
        first_channel=condition.first_channel,
    )


def _read_voice(path: str) -> FloatArray:
    return read_sound(path, max_seconds=VOICE_SECONDS).samples
