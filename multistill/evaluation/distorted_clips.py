"""Which test clips are encoded again for the robustness pack, and how each is changed.

clips.parquet       a row per clip and condition that changes it (`features.distorted.DISTORTED`)
conditions.json     `conditions`: name, number of clips that each changes, reason if there is none

A clip that a condition leaves as it is has no row: one without transcript, for example, or one
that is shorter than what is left of it. Its states are those of the feature store.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from multistill.audio.conditions import (
    CONDITIONS,
    MISSING,
    ONE_CHANNEL,
    PACK,
    Condition,
)
from multistill.audio.distortions import generator_for, wrong_words
from multistill.config import FeaturesConfig
from multistill.corpora.manifest import MANIFEST
from multistill.damaged import read_table
from multistill.errors import MultistillError
from multistill.features.cache import open_store
from multistill.features.distorted import (
    DISTORTED,
    UNREAD_SECONDS,
    by_person,
    key_of,
    other_voices,
)
from multistill.features.encode import encode
from multistill.tracking.logger import RunLogger
from multistill.workspace import atomic_path, write_json

CLIPS = "clips.parquet"
LISTED = "conditions.json"
STORE = "store"
SCHEMA = pa.schema(
    [
        ("utterance_id", pa.string()),
        ("audio_path", pa.string()),
        ("audio_digest", pa.string()),
        ("text", pa.string()),
        ("duration_s", pa.float64()),
        ("clip", pa.string()),
        ("condition", pa.string()),
        ("voices", pa.list_(pa.string())),
    ]
)
BATCH = 8192


@dataclass(frozen=True)
class _TestClips:
    """The test clips with features, of all folds."""

    rows: dict[str, list[Any]]
    persons: list[str]
    """The speaker of each, the group that the split keeps together where no speaker is known."""
    vocabulary: list[str]

    def __len__(self) -> int:
        return len(self.persons)


def encode_distorted(
    manifests: Sequence[Path],
    features: Path,
    config: FeaturesConfig,
    channels: Sequence[int],
    out: Path,
    logger: RunLogger,
) -> dict[str, Any]:
    """Encode the test clips of all folds under every condition. Ray must be initialised.

    Args:
        manifests: folders of the manifests, one per fold.
        features: folder of the feature store, whose encoders and settings are used.
        config: the settings of that store.
        channels: numbers of channels that the corpora's recordings have; empty if unknown.
        out: a new folder, or that of an earlier attempt, whose finished shards are kept.

    Returns:
        JSON summary: `clips`, `encoded`, `failed`, `conditions` (clips of each).
    """
    listed = list_clips(manifests, features, channels, out)
    every = config.model_copy(update={"max_quarantined": 1.0})
    (out / STORE).mkdir(exist_ok=True)
    summary = encode(out / CLIPS, every, out / STORE, logger, DISTORTED)
    return {
        "clips": summary["clips"],
        "encoded": summary["encoded"],
        "failed": summary["quarantined"],
        "conditions": {each["name"]: each["clips"] for each in listed},
    }


def list_clips(
    manifests: Sequence[Path], features: Path, channels: Sequence[int], out: Path
) -> list[dict[str, Any]]:
    """Write clips.parquet and conditions.json into `out`; returns the list of conditions.

    Raises:
        MultistillError: no test clip has features.
    """
    clips = _read(manifests, features)
    listed = []
    with (
        atomic_path(out / CLIPS) as temporary,
        pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer,
    ):
        for condition in CONDITIONS.values():
            reason = _why_not(condition, clips, channels)
            count = 0
            for batch in _batches(_changed(condition, clips)) if reason is None else ():
                writer.write_table(pa.Table.from_pylist(batch, schema=SCHEMA))
                count += len(batch)
            if not count and reason is None:
                reason = "it changes no test clip"
            listed.append({"name": condition.name, "clips": count, "reason": reason})
    write_json(out / LISTED, {"pack": PACK, "conditions": listed})
    return listed


def _read(manifests: Sequence[Path], features: Path) -> _TestClips:
    names = ["utterance_id", "speaker", "group", "audio_path", "audio_digest", "text", "duration_s"]
    store = open_store(features)
    parts = []
    for manifest in manifests:
        table = read_table(manifest / MANIFEST, columns=names, filters=[("split", "=", "test")])
        known = [name in store for name in table["utterance_id"].to_pylist()]
        parts.append(table.filter(pa.array(known, pa.bool_())))
    rows = pa.concat_tables(parts).to_pydict()
    if not rows["utterance_id"]:
        raise MultistillError(
            f"the test split of {manifests[0]} has no clip with features, so its robustness cannot "
            "be measured; raise `split.test` or look into quarantine.parquet of the features"
        )
    persons = [
        speaker or group for speaker, group in zip(rows["speaker"], rows["group"], strict=True)
    ]
    words = sorted({word for text in rows["text"] for word in (text or "").split()})
    return _TestClips(rows, persons, words)


def _why_not(condition: Condition, clips: _TestClips, channels: Sequence[int]) -> str | None:
    """Why a condition cannot be had with these clips, or changes none of them."""
    if condition.needs_voices and len(set(clips.persons)) < 2:
        return "the test clips are of one speaker, and babble is made of others"
    if condition.name == ONE_CHANNEL and set(channels) == {1}:
        return "all recordings have one channel"
    if condition.kind == "text" and not clips.vocabulary:
        return "the test clips have no transcripts"
    if condition.kind == "text" and condition.name != MISSING and len(clips.vocabulary) < 2:
        return "the transcripts have one word, and no other to replace it by"
    return None


def _changed(condition: Condition, clips: _TestClips) -> Iterator[dict[str, Any]]:
    """A row of clips.parquet for every clip that the condition changes."""
    rows = clips.rows
    people = by_person(clips.persons) if condition.needs_voices else {}
    for number, clip in enumerate(rows["utterance_id"]):
        text, seconds = rows["text"][number] or "", float(rows["duration_s"][number])
        voices: list[str] = []
        if condition.kind == "text":
            changed = ""
            if condition.name != MISSING:
                random = generator_for(condition.name, clip)
                changed = wrong_words(text, condition.wrong, clips.vocabulary, random)
            if changed.split() == text.split():
                continue
            text, seconds = changed, min(seconds, UNREAD_SECONDS)
        else:
            # The transcript is not encoded again: it is read from the feature store.
            text = ""
            if condition.seconds is not None:
                if seconds <= condition.seconds:
                    continue
                seconds = condition.seconds
            if condition.needs_voices:
                random = generator_for("voices", clip)  # the same for every noise level
                chosen = other_voices(people, clips.persons[number], random)
                voices = [rows["audio_path"][row] for row in chosen]
        yield {
            "utterance_id": key_of(condition.name, clip),
            "audio_path": rows["audio_path"][number],
            "audio_digest": rows["audio_digest"][number],
            "text": text,
            "duration_s": seconds,
            "clip": clip,
            "condition": condition.name,
            "voices": voices,
        }


def _batches(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
