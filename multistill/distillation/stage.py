"""The distill stage: a teacher's outputs for every row outside test, as one Parquet file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from multistill.config import CLASSES


def soft_targets(
    manifest: Path,
    features: Path,
    teachers: Sequence[Path],
    folds: Mapping[int, Path],
    pooled: bool,
    out: Path,
) -> dict[str, Any]:
    """Logits of the teacher for every row outside test, as one Parquet file.

    Rows of a fold whose own teacher is in `folds` get that teacher's logits (it never
    trained on them); the rest get those of the ensemble `teachers`.

    Args:
        manifest, features: folders of the manifest and of the store.
        teachers, folds: folders of models.
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
    table = read_manifest(manifest, columns).to_pandas()
    store = open_store(features)
    rows = table[(table["split"] != "test") & table["utterance_id"].isin(set(store.ids))]
    ids = rows["utterance_id"].tolist()
    fold = rows["fold"].to_numpy(copy=True)
    train = (rows["split"] == "train").to_numpy()

    used = np.where(train & np.isin(fold, list(folds)), fold, -1)
    parts = out.with_name("parts")
    logits = np.zeros((len(ids), len(CLASSES)), dtype=np.float32)
    taught, states = [], []
    for number in [-1, *sorted(folds)]:
        chosen = np.flatnonzero(used == number)
        if not len(chosen):
            continue
        # A student with teachers of other folds has no use for what a whole one represents.
        keep = pooled and (number >= 0 or not folds)
        members = [
            Teacher(folder, store, manifest, parts, keep_pooled=keep)
            for folder in (teachers if number < 0 else [folds[number]])
        ]
        outputs = [member.predict([ids[row] for row in chosen]) for member in members]
        raw = members[0].output == "shares"
        logits[chosen] = combine([output.logits for output in outputs], raw=raw)
        if keep:
            seen = train[chosen]
            taught.append(chosen[seen])
            states.append(np.concatenate([output.pooled for output in outputs], axis=1)[seen])
    if pooled:
        write_pooled(out, np.concatenate(taught), np.concatenate(states))
    write_soft_targets(out, ids, logits, "out-of-fold" if folds else "in-sample", used)
    shutil.rmtree(parts, ignore_errors=True)
    return {"rows": len(ids), "teachers": len(teachers), "folds": len(folds)}
