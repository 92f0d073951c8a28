"""What the pipeline lets a Ray worker do: the driver itself computes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from multistill.config import CLASSES
from multistill.errors import MultistillError

T = TypeVar("T")


def on_cluster(function: Callable[..., T], *arguments: Any) -> T:
    """Run one function as a Ray task, on a GPU where the cluster has one.

    The driver may sit on a head node without CPUs to spare, so it computes nothing itself.
    """
    import ray
    from ray.exceptions import RayTaskError

    cpus, gpus = _one_node([node["Resources"] for node in ray.nodes() if node["Alive"]])
    task = ray.remote(function).options(num_cpus=cpus, num_gpus=gpus, max_retries=2)
    try:
        result: T = ray.get(task.remote(*arguments))
    except RayTaskError as error:
        # Ray's own error is ours and its whole traceback in one: only ours is for people.
        if isinstance(error.cause, MultistillError | OSError):
            raise error.cause from None
        raise
    return result


def _one_node(nodes: Sequence[Mapping[str, float]]) -> tuple[int, int]:
    """CPUs and GPUs that one living node can give to a task: a task never spans two."""
    with_gpu = [node for node in nodes if node.get("GPU", 0) >= 1]
    largest = max((node.get("CPU", 0) for node in with_gpu or nodes), default=1)
    return max(1, min(4, int(largest) - 1)), 1 if with_gpu else 0


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

    from multistill.corpora.schema import read_manifest
    from multistill.distillation.answers import Teacher
    from multistill.distillation.targets import write_pooled, write_soft_targets
    from multistill.features.store import FeatureStore
    from multistill.training.ensemble import combine

    columns = ["utterance_id", "split", "fold"]
    table = read_manifest(Path(manifest), columns).to_pandas()
    store = FeatureStore(Path(features))
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
            ).answers([ids[row] for row in chosen])
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


def evaluate_models(
    manifest: str,
    features: str,
    entries: Sequence[Mapping[str, Any]],
    config: Mapping[str, Any],
    out: str,
    seed: int,
) -> Mapping[str, Any]:
    """`evaluation.evaluate` with arguments that travel."""
    from multistill.config import EvaluationConfig
    from multistill.evaluation.evaluate import ModelEntry, evaluate
    from multistill.watch import Silent

    return evaluate(
        Path(manifest),
        Path(features),
        [ModelEntry(**entry) for entry in entries],
        EvaluationConfig.model_validate(config),
        Path(out),
        Silent(),
        seed=seed,
    )
