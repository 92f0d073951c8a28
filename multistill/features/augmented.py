"""Encodes distorted copies of the training clips, beside the feature store of the recordings.

clips.parquet       a row per clip and copy (`AUGMENTED`)
store               their states: a feature store of `key_of("copy-1", clip)` and so on

The copies go through the encode pipeline as the recordings do. Transcripts are not encoded again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from multistill.audio.augmentation import Sounds, augment_wave, sounds_in
from multistill.audio.distortions import generator_for
from multistill.config import CopiesConfig, FeaturesConfig
from multistill.damaged import read_table
from multistill.errors import MultistillError
from multistill.features.cache import open_store
from multistill.features.copies import copy_name
from multistill.features.decode import Wave, decode
from multistill.features.distorted import by_person, decode_rows, key_of, other_voices
from multistill.features.encode import encode
from multistill.features.shards import COLUMNS
from multistill.features.waves import DecodedShard, ShardSource
from multistill.tracking.logger import RunLogger
from multistill.typing import FloatArray
from multistill.workspace import atomic_path

CLIPS = "clips.parquet"
STORE = "store"
SCHEMA = pa.schema(
    [
        ("utterance_id", pa.string()),
        ("audio_path", pa.string()),
        ("audio_digest", pa.string()),
        ("text", pa.string()),
        ("duration_s", pa.float64()),
        ("clip", pa.string()),
        ("copy", pa.string()),
        ("voices", pa.list_(pa.string())),
    ]
)


def encode_copies(
    manifests: Sequence[Path],
    features: Path,
    config: FeaturesConfig,
    out: Path,
    logger: RunLogger,
) -> dict[str, Any]:
    """Encode the copies of the training clips of all folds. Ray must be initialised.

    Args:
        manifests: Parquet files, one per fold.
        features: folder of the feature store, whose encoders and settings are used.
        config: the settings of that store, and `augmentation`.
        out: a new folder, or that of an earlier attempt, whose finished shards are kept.

    Returns:
        JSON summary: `clips` (copies of all), `encoded`, `quarantined`, `copies` of each clip.

    Raises:
        MultistillError: no training clip has features, or too many copies failed.
    """
    list_copies(manifests, features, config.augmentation, out)
    (out / STORE).mkdir(exist_ok=True)
    summary = encode(out / CLIPS, config, out / STORE, logger, AUGMENTED)
    counts = {name: summary[name] for name in ("clips", "encoded", "quarantined")}
    return {**counts, "copies": config.augmentation.copies}


def list_copies(
    manifests: Sequence[Path], features: Path, settings: CopiesConfig, out: Path
) -> None:
    """Write clips.parquet into `out`.

    Raises:
        MultistillError: no training clip has features.
    """
    names = ["utterance_id", "speaker", "group", "audio_path", "audio_digest", "duration_s"]
    store = open_store(features)
    clips: dict[str, dict[str, Any]] = {}
    for manifest in manifests:
        rows = read_table(manifest, columns=names, filters=[("split", "=", "train")])
        for row in rows.to_pylist():
            if row["utterance_id"] in store:
                clips.setdefault(row["utterance_id"], row)
    if not clips:
        raise MultistillError(
            f"no training clip of {manifests[0]} has features, so there is nothing to make copies "
            "of; look into quarantine.parquet of the features"
        )
    table = pa.Table.from_pylist(list(_rows(list(clips.values()), settings)), schema=SCHEMA)
    with atomic_path(out / CLIPS) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def _rows(clips: Sequence[dict[str, Any]], settings: CopiesConfig) -> Iterator[dict[str, Any]]:
    """A row of clips.parquet for every clip and copy."""
    persons = [clip["speaker"] or clip["group"] for clip in clips]
    people = by_person(persons) if settings.reads_voices else {}
    for number in range(1, settings.copies + 1):
        copy = copy_name(number)
        for clip, person in zip(clips, persons, strict=True):
            name = clip["utterance_id"]
            chosen = other_voices(
                people, person, generator_for(f"{settings.seed} voices of {copy}", name)
            )
            yield {
                "utterance_id": key_of(copy, name),
                "audio_path": clip["audio_path"],
                "audio_digest": clip["audio_digest"],
                "text": "",
                "duration_s": clip["duration_s"],
                "clip": name,
                "copy": copy,
                "voices": [clips[row]["audio_path"] for row in chosen],
            }


def decode_copies(plan: Path, shard: int, config: FeaturesConfig) -> DecodedShard:
    """Decode and distort the copies of a shard, as `decode_shard` does without distortion."""
    return decode_rows(plan, shard, lambda row: _decode(row, config))


AUGMENTED = ShardSource((*COLUMNS, "clip", "copy", "voices"), decode_copies)
"""Rows have `utterance_id` (`key_of`), the other columns of a manifest with an empty transcript,
`clip` (its id), `copy` (`copy_name`), and `voices` (paths of the babble)."""


def _decode(row: dict[str, Any], config: FeaturesConfig) -> Wave:
    settings = config.augmentation
    random = generator_for(f"{settings.seed} {row['copy']}", row["clip"])
    recorded = {name: sounds_in(folder) for name, folder in settings.folders().items()}

    def change(samples: FloatArray) -> FloatArray:
        return augment_wave(
            samples,
            settings,
            random,
            noises=recorded.get("noise_folder", ()),
            rooms=recorded.get("rooms", ()),
            voices=Sounds(row["voices"]),
        )

    return decode(
        row["audio_path"],
        max_seconds=config.speech.max_seconds,
        long_clips=config.speech.long_clips,
        digest=row["audio_digest"] or None,
        change=change,
    )
