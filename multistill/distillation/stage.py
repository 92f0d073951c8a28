"""The distill stage: a teacher's outputs for every row outside test, as one Parquet file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from multistill.config import CLASSES


def soft_targets(
    manifest: str,
    features: str,
    teachers: Sequence[str],
    folds: Mapping[int, str],
    max_frames: int | None,
    raw: bool,
    pooled: bool,
    out: str,
) -> dict[str, Any]:
    """Logits of the teacher for every row outside test, as one Parquet file.

    Rows of a fold whose own teacher is in `folds` get that teacher's logits (it never
    trained on them); the rest get those of the ensemble `teachers`.

    Args:
        raw: the teachers were trained with the published squared error, so their outputs are
            shares, not logits.
        pooled: also write the representations of the training rows: of the fold's own
            teacher, or else of all `teachers` side by side.
        out: the Parquet file. Finished parts are kept beside it until all are there.
    """
    import shutil

    import numpy as np

    from multistill.corpora.manifest import read_manifest
    from multistill.distillation.targets import write_pooled, write_soft_targets
    from multistill.distillation.teacher import Teacher
    from multistill.features.cache import open_store
    from multistill.inference.ensemble import combine

    columns = ["utterance_id", "split", "fold"]
    table = read_manifest(Path(manifest), columns).to_pandas()
    store = open_store(Path(features))
    rows = table[(table["split"] != "test") & table["utterance_id"].isin(set(store.ids))]
    ids = rows["utterance_id"].tolist()
    fold = rows["fold"].to_numpy(copy=True)
    train = (rows["split"] == "train").to_numpy()

    used = np.where(train & np.isin(fold, list(folds)), fold, -1)
    target, parts = Path(out), Path(out).with_name("parts")
    logits = np.zeros((len(ids), len(CLASSES)), dtype=np.float32)
    taught, states = [], []
    for number in [-1, *sorted(folds)]:
        chosen = np.flatnonzero(used == number)
        if not len(chosen):
            continue
        # A student with teachers of other folds has no use for what a whole one represents.
        keep = pooled and (number >= 0 or not folds)
        members = [
            Teacher(
                Path(folder), store, Path(manifest), parts, max_frames=max_frames, keep_pooled=keep
            ).predict([ids[row] for row in chosen])
            for folder in (teachers if number < 0 else [folds[number]])
        ]
        logits[chosen] = combine([member.logits for member in members], raw=raw)
        if keep:
            seen = train[chosen]
            taught.append(chosen[seen])
            states.append(np.concatenate([m.pooled for m in members], axis=1)[seen])
    if pooled:
        write_pooled(target, np.concatenate(taught), np.concatenate(states))
    write_soft_targets(target, ids, logits, "out-of-fold" if folds else "in-sample", used)
    shutil.rmtree(parts, ignore_errors=True)
    return {"rows": len(ids), "teachers": len(teachers), "folds": len(folds)}
