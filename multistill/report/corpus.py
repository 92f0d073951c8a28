"""Counts and class shares of a manifest, for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from multistill.corpora.manifest import MANIFEST, UNLABELLED, classes_of, tied
from multistill.damaged import read_table

SPLITS = ("train", "valid", "test")
COLUMNS = ["corpus", "session", "speaker", "dialogue", "label", "votes", "split", "duration_s"]


def describe_corpus(manifest: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Counts, split sizes, class shares and leaks.

    Args:
        manifest: folder of the manifest.
        summary: of the `prepare` artifact: `rejected`, `synthetic`, `leaks`, `unlabelled`.
    """
    table = read_table(
        manifest / MANIFEST,
        columns=COLUMNS,
        read_dictionary=["corpus", "session", "speaker", "dialogue", "label", "split"],
    )
    classes = classes_of(table)
    rows = table.drop_columns("votes").append_column("tied", tied(table)).to_pandas()
    by_split = {name: rows[rows["split"] == name] for name in SPLITS}
    unlabelled = rows[rows["split"] == UNLABELLED]
    return {
        "counts": {
            **_sizes(rows),
            "dialogues": int(rows["dialogue"].nunique()),
            "rejected": int(summary.get("rejected", 0)),
            "corpora": {
                str(name): int(count) for name, count in rows["corpus"].value_counts().items()
            },
        },
        "splits": {name: _sizes(split) for name, split in by_split.items()},
        "class_counts": {name: _class_counts(split, classes) for name, split in by_split.items()},
        "class_shares": {
            name: _shares(_class_counts(split, classes))
            for name, split in [("all", rows), *by_split.items()]
        },
        "unlabelled": {**_sizes(unlabelled), "corpora": summary.get("unlabelled", {})},
        "leaks": dict(summary.get("leaks", {})),
        "synthetic": bool(summary.get("synthetic", False)),
    }


def _sizes(rows: pd.DataFrame) -> dict[str, Any]:
    return {
        "utterances": len(rows),
        "sessions": int(rows["session"].nunique()),
        "speakers": int(rows["speaker"].nunique()),
        "hours": round(float(rows["duration_s"].sum()) / 3600, 4),
        "ties": int(rows["tied"].sum()),
    }


def _class_counts(rows: pd.DataFrame, classes: Sequence[str]) -> dict[str, int]:
    counts = rows["label"].value_counts()
    return {name: int(counts.get(name, 0)) for name in classes}


def _shares(counts: Mapping[str, int]) -> dict[str, float]:
    total = sum(counts.values())
    return {name: count / total if total else 0.0 for name, count in counts.items()}
