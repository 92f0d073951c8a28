"""The table of clips that could not be encoded, and the limit on their share."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from multistill.config import FeaturesConfig
from multistill.damaged import read_table
from multistill.features.store import QUARANTINE
from multistill.workspace import atomic_path

Row = Sequence[str]
"""utterance_id, audio_path and reason of a failed clip."""

_COLUMNS = ("utterance_id", "audio_path", "reason")


def kind_of(reason: str) -> str:
    """The kind of a quarantine reason: `too short` for `too short: 320 samples ...`."""
    return re.split("[:;(]", reason, maxsplit=1)[0].strip()


def write_quarantine(path: Path, rows: Sequence[Row]) -> None:
    """Write the quarantine table: utterance_id, audio_path and reason of every failed clip."""
    columns = {name: [row[i] for row in rows] for i, name in enumerate(_COLUMNS)}
    table = pa.table(columns, schema=pa.schema([(name, pa.string()) for name in _COLUMNS]))
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)


def too_many_failed(config: FeaturesConfig, clips: int, rows: Sequence[Row], table: Path) -> str:
    """The sentence for more failed clips than the job allows, with the commonest reasons.

    Args:
        clips: of the manifest.
        rows: of the failed clips, at least one.
        table: where they are written.
    """
    reasons = Counter(kind_of(reason) for _, _, reason in rows).most_common(3)
    return (
        f"{len(rows)} of {clips} clips cannot be encoded, the limit is "
        f"{config.max_quarantined * clips:g} "
        f"(features.max_quarantined: {config.max_quarantined:g}); "
        + ", ".join(f"{count} x {reason}" for reason, count in reasons)
        + f", e.g. {rows[0][1]}; see {table}, then fix the files or raise the limit"
    )


def too_many_quarantined(
    config: FeaturesConfig, store: Path, summary: Mapping[str, Any]
) -> Iterator[str]:
    """A sentence if a finished store lacks more clips than the job allows.

    Args:
        store: its folder.
        summary: `clips` of the manifest, and how many are `quarantined`.
    """
    if summary["quarantined"] > config.max_quarantined * summary["clips"]:
        table = store / QUARANTINE
        rows = read_table(table).select(list(_COLUMNS)).to_pylist()
        failed = [[row[name] for name in _COLUMNS] for row in rows]
        yield too_many_failed(config, summary["clips"], failed, table)
