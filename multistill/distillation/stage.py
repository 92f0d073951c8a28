"""The distill stage: runs the teachers over every row outside the test split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def soft_targets(
    manifest: Path,
    features: Path,
    teachers: Sequence[Path],
    folds: Mapping[int, Sequence[Path]],
    states: bool,
    sequences: bool,
    out: Path,
) -> dict[str, Any]:
    """Write the teacher's outputs for every row outside test, and on request its states.

    A training row whose fold is in `folds` gets the outputs of the teachers that were not trained
    on that fold; all other rows get those of the ensemble `teachers`, which was trained on none of
    the validation rows and of the rows without labels.

    The states of the rows without labels are those of a fold's teacher too: of states, the
    student learns one projection per teacher, and the ensemble would be one more. The row's id
    decides which.

    Args:
        manifest, features: folders of the manifest and of the feature store.
        teachers: model folders of the ensemble.
        folds: fold -> folders of the models that were trained without it, an ensemble too.
        states: also write the pooled states of the rows that students are trained on: those of
            the fold's teacher, or else those of all `teachers`, concatenated.
        sequences: and what is pooled, averaged into segments (`multistill.models.sequences`).
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

    from multistill.corpora.manifest import UNLABELLED, classes_of, read_manifest
    from multistill.corpora.split import hash64
    from multistill.distillation.targets import joined, write_soft_targets, write_states
    from multistill.distillation.teacher import Teacher
    from multistill.errors import MultistillError
    from multistill.features.cache import open_store
    from multistill.inference.ensemble import combine
    from multistill.metrics.classification import distributions, log_probabilities
    from multistill.models.files import Output, read_model_config
    from multistill.models.sequences import chosen_rows, side_by_side

    columns = ["utterance_id", "split", "fold"]
    utterances = read_manifest(manifest, columns)
    classes, table = classes_of(utterances), utterances.to_pandas()
    store = open_store(features)
    rows = table[(table["split"] != "test") & table["utterance_id"].isin(set(store.ids))]
    ids = rows["utterance_id"].tolist()
    fold = rows["fold"].to_numpy(copy=True)
    train = (rows["split"] == "train").to_numpy()
    unlabelled = (rows["split"] == UNLABELLED).to_numpy()

    # The fold whose teacher predicts each row; -1: the ensemble.
    teacher_fold = np.where(train & np.isin(fold, list(folds)), fold, -1)
    # The same of the teacher whose states are kept; -2: none.
    state_fold = np.where((train | unlabelled) & states, teacher_fold, -2)
    if folds:
        order = sorted(folds)
        for row in np.flatnonzero(state_fold == -1):
            state_fold[row] = order[hash64("states", ids[row]) % len(order)]
    parts = out.with_name("parts")
    logits = np.zeros((len(ids), len(classes)), dtype=np.float32)
    kept_rows, kept_pooled, kept_sequences, spaces = [], [], [], []
    everyone = [*teachers, *(folder for members in folds.values() for folder in members)]
    configs = {folder: read_model_config(folder) for folder in everyone}
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
    outputs_of: dict[Path, Output] = {f: config["output"] for f, config in configs.items()}
    kind: Output = "shares" if set(outputs_of.values()) == {"shares"} else "logits"
    for space, number in enumerate([-1, *sorted(folds)]):
        of_outputs, of_states = teacher_fold == number, state_fold == number
        selected = np.flatnonzero(of_outputs | of_states)
        if not len(selected):
            continue
        keep = bool(of_states.any())
        folders = teachers if number < 0 else folds[number]
        members = [
            Teacher(
                folder,
                store,
                manifest,
                parts,
                keep_pooled=keep,
                keep_sequences=keep and sequences,
            )
            for folder in folders
        ]
        outputs = [member.predict([ids[row] for row in selected]) for member in members]
        chosen = of_outputs[selected]
        if classes:
            members_logits = [
                output.logits
                if outputs_of[folder] == kind
                # as logits of their distributions, which every loss reads
                else log_probabilities(distributions(output.logits, outputs_of[folder]))
                for folder, output in zip(folders, outputs, strict=True)
            ]
            mixed = combine(members_logits, raw=kind == "shares")
            logits[selected[chosen]] = mixed[chosen]
        means = np.mean([output.dimensions for output in outputs], axis=0)
        values[selected[chosen]] = means[chosen]
        if keep:
            kept = of_states[selected]
            kept_rows.append(selected[kept])
            kept_pooled.append(np.concatenate([output.pooled for output in outputs], axis=1)[kept])
            members_sequences = side_by_side([output.sequences for output in outputs])
            kept_sequences.append(chosen_rows(members_sequences, kept))
            spaces.append(np.full(kept.sum(), space))
    if states:
        write_states(
            out,
            np.concatenate(kept_rows),
            np.concatenate(spaces),
            np.concatenate(kept_pooled),
            joined(kept_sequences),
        )
    teacher = "out-of-fold" if folds else "in-sample"
    write_soft_targets(out, ids, logits, teacher, teacher_fold, kind, classes, values, dimensions)
    shutil.rmtree(parts, ignore_errors=True)
    return {
        "rows": len(ids),
        "unlabelled_rows": int(unlabelled.sum()),
        "teachers": len(teachers),
        "fold_teachers": len(folds),
    }
