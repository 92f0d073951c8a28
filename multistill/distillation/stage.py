"""The distill stage: runs the teachers over every row outside the test split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def soft_targets(
    manifest: Path,
    features: Path,
    teachers: Sequence[Path],
    folds: Mapping[int, Path],
    pooled: bool,
    out: Path,
) -> dict[str, Any]:
    """Write the teacher's outputs for every row outside test, and on request its pooled states.

    A training row whose fold is in `folds` gets the outputs of the teacher that was not trained
    on that fold; all other rows get those of the ensemble `teachers`.

    Args:
        manifest, features: folders of the manifest and of the feature store.
        teachers: model folders of the ensemble.
        folds: fold -> folder of the model that was trained without it.
        pooled: also write the pooled states of the training rows: those of the fold's teacher,
            or else those of all `teachers`, concatenated.
        out: the Parquet file. The folder `parts` next to it keeps finished parts, so that an
            interrupted run can resume, and is removed at the end.

    Returns:
        the stage's summary.

    Raises:
        MultistillError: a teacher has other classes than the manifest, or other dimensions than
            the others.
    """
    import shutil

    import numpy as np

    from multistill.corpora.manifest import classes_of, read_manifest
    from multistill.distillation.targets import write_pooled, write_soft_targets
    from multistill.distillation.teacher import Teacher
    from multistill.errors import MultistillError
    from multistill.features.cache import open_store
    from multistill.inference.ensemble import combine
    from multistill.models.files import Output, read_model_config

    columns = ["utterance_id", "split", "fold"]
    utterances = read_manifest(manifest, columns)
    classes, table = classes_of(utterances), utterances.to_pandas()
    store = open_store(features)
    rows = table[(table["split"] != "test") & table["utterance_id"].isin(set(store.ids))]
    ids = rows["utterance_id"].tolist()
    fold = rows["fold"].to_numpy(copy=True)
    train = (rows["split"] == "train").to_numpy()

    # The fold whose teacher predicts each row; -1: the ensemble.
    teacher_fold = np.where(train & np.isin(fold, list(folds)), fold, -1)
    parts = out.with_name("parts")
    logits = np.zeros((len(ids), len(classes)), dtype=np.float32)
    pooled_rows, pooled_states = [], []
    configs = {folder: read_model_config(folder) for folder in (*teachers, *folds.values())}
    if not configs[teachers[0]]["spec"]["num_classes"]:
        classes = ()  # a teacher of dimensions alone
        logits = np.zeros((len(ids), 0), dtype=np.float32)
    for folder, config in configs.items():
        if tuple(config["labels"]) != classes:
            raise MultistillError(
                f"the teacher in {folder} has the classes {', '.join(config['labels'])}, and the "
                f"manifest has {', '.join(classes)}; use a teacher and a manifest of the same job"
            )
    dimensions = tuple(configs[teachers[0]]["spec"]["dimensions"])
    for folder, config in configs.items():
        own = tuple(config["spec"]["dimensions"])
        if own != dimensions:
            raise MultistillError(
                f"the teacher in {folder} has the dimensions {', '.join(own) or 'none'}, and "
                f"{teachers[0]} has {', '.join(dimensions) or 'none'}; use teachers of the same job"
            )
    values = np.zeros((len(ids), len(dimensions)), dtype=np.float32)
    kind: Output = configs[teachers[0]]["output"]
    for number in [-1, *sorted(folds)]:
        selected = np.flatnonzero(teacher_fold == number)
        if not len(selected):
            continue
        # With out-of-fold teachers, students do not read the pooled states of the ensemble.
        keep_pooled = pooled and (number >= 0 or not folds)
        members = [
            Teacher(folder, store, manifest, parts, keep_pooled=keep_pooled)
            for folder in (teachers if number < 0 else [folds[number]])
        ]
        outputs = [member.predict([ids[row] for row in selected]) for member in members]
        raw = kind == "shares"
        if classes:
            logits[selected] = combine([output.logits for output in outputs], raw=raw)
        values[selected] = np.mean([output.dimensions for output in outputs], axis=0)
        if keep_pooled:
            is_train = train[selected]
            states = np.concatenate([output.pooled for output in outputs], axis=1)
            pooled_rows.append(selected[is_train])
            pooled_states.append(states[is_train])
    if pooled:
        write_pooled(out, np.concatenate(pooled_rows), np.concatenate(pooled_states))
    teacher = "out-of-fold" if folds else "in-sample"
    write_soft_targets(out, ids, logits, teacher, teacher_fold, kind, classes, values, dimensions)
    shutil.rmtree(parts, ignore_errors=True)
    return {"rows": len(ids), "teachers": len(teachers), "fold_teachers": len(folds)}
