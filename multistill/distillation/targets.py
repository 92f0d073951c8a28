"""Soft targets: what a teacher says of utterances, computed once and kept.

soft_targets.parquet       logits of every utterance outside test
pooled.safetensors         where asked for: its representations of the training utterances
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from multistill.config import CLASSES
from multistill.corpora.schema import read_manifest
from multistill.errors import MultistillError
from multistill.features.batches import collate
from multistill.features.store import FeatureStore
from multistill.models.build import EmotionModel
from multistill.models.context import DialogueContext

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

POOLED = "pooled.safetensors"

BATCH_FRAMES = 32_768
"""Padded audio frames and text tokens of one batch: about 128 MB at 1,024 values a frame."""


@dataclass(frozen=True)
class SoftTargets:
    """A teacher's outputs.

    Attributes:
        logits: float32 [N, 7] in class order, before softmax and temperature.
        teacher: who made them, for people.
        fold: int64 [N], the fold that the row's teacher did not train on, -1 where it may
            have trained on the row.
    """

    ids: list[str]
    logits: Floats
    teacher: str
    fold: Integers


def write_soft_targets(
    path: Path, ids: Sequence[str], logits: npt.ArrayLike, teacher: str, fold: npt.ArrayLike
) -> None:
    """Write `utterance_id`, `logits`, `teacher` and `fold` as one Parquet file.

    The file appears whole or not at all.
    """
    columns = {
        "utterance_id": pa.array(ids, pa.string()),
        "logits": _vectors(logits, len(ids), len(CLASSES)),
        "teacher": pa.array([teacher] * len(ids), pa.string()),
        "fold": pa.array(np.asarray(fold), pa.int32()),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    pq.write_table(pa.table(columns), temporary)
    temporary.replace(path)


def read_soft_targets(path: Path) -> SoftTargets:
    """Raises MultistillError where the file is missing, cut short or lacks a column."""
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise MultistillError(f"{path} is missing; run the distillation stage") from None
    except pa.ArrowInvalid as error:
        raise MultistillError(
            f"{path} is damaged ({error}); remove it and run the distillation stage again"
        ) from error
    for name in ("utterance_id", "logits", "teacher", "fold"):
        if name not in table.column_names:
            raise MultistillError(f"{path} holds no soft targets: the column {name} is missing")
    return SoftTargets(
        ids=table["utterance_id"].to_pylist(),
        logits=_matrix(table["logits"]),
        teacher=table["teacher"][0].as_py() if len(table) else "",
        fold=table["fold"].to_numpy().astype(np.int64),
    )


def write_pooled(targets: Path, rows: npt.ArrayLike, pooled: npt.ArrayLike) -> None:
    """Write the teacher's representations beside the soft targets; whole or not at all.

    Args:
        targets: the Parquet file.
        rows: int64 [M], rows of that file, in any order.
        pooled: float32 [M, D], the vectors before the teacher's classifier.
    """
    path = targets.with_name(POOLED)
    temporary = path.with_name(f".{path.name}.partial")
    tensors = {
        "row": torch.from_numpy(np.asarray(rows, dtype=np.int64)),
        "pooled": torch.from_numpy(np.ascontiguousarray(pooled, dtype=np.float32)),
    }
    save_file(tensors, temporary)
    temporary.replace(path)


def read_pooled(targets: Path) -> tuple[Integers, torch.Tensor]:
    """`rows` and `pooled` of `write_pooled`; memory-mapped, so processes of a node share it.

    Raises:
        MultistillError: the file is missing or damaged.
    """
    path = targets.with_name(POOLED)
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise MultistillError(
            f"{path} is missing, which `distillation.hint_weight` and `cka_weight` need; run the "
            "distillation stage of a job file that sets one of them"
        ) from None
    except SafetensorError as error:
        raise MultistillError(
            f"{path} is damaged ({error}); remove its folder and run the distillation stage again"
        ) from error
    return tensors["row"].numpy(), tensors["pooled"]


def _vectors(values: npt.ArrayLike, rows: int, width: int) -> pa.Array:
    matrix = np.asarray(values, dtype=np.float32)
    if matrix.shape != (rows, width):
        raise ValueError(f"expected an array of shape {(rows, width)}, not {matrix.shape}")
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), width)


def _matrix(column: pa.ChunkedArray) -> Floats:
    width = column.type.list_size
    parts = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    flat = np.concatenate(parts) if parts else np.zeros(0)
    return flat.astype(np.float32).reshape(-1, width)


def dialogue_context(
    model: EmotionModel, store: FeatureStore, manifest: Path
) -> DialogueContext | None:
    """The previous turns that a model reads; None for a model that reads none.

    Args:
        manifest: the manifest or its folder, with the turns of all splits.
    """
    if not model.spec.context_turns:
        return None
    columns = read_manifest(manifest, ["utterance_id", "dialogue", "turn"]).to_pydict()
    return DialogueContext(store, columns, model.spec.context_turns)


@dataclass(frozen=True)
class Outputs:
    """A model's outputs: logits float32 [N, 7] and, where asked for, pooled float32 [N, D]."""

    logits: Floats
    pooled: Floats | None


def predict(
    model: EmotionModel,
    store: FeatureStore,
    ids: Sequence[str],
    device: torch.device | str | None = None,
    max_frames: int | None = None,
    batch_frames: int = BATCH_FRAMES,
    context: DialogueContext | None = None,
    keep_pooled: bool = True,
) -> Outputs:
    """Outputs of the model in eval mode, in the order of `ids`; its mode is restored.

    Args:
        device: default: a GPU where there is one. The model is moved there.
        max_frames: audio frames read, as in training.
        batch_frames: padded frames plus tokens of one batch; one utterance always fits.
        context: required by a model that reads previous turns, see `dialogue_context`.
        keep_pooled: give the pooled states too; [N, D] is much for many utterances.
    """
    if model.spec.context_turns and context is None:
        raise ValueError("this model reads previous turns: give it a DialogueContext")
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model.to(chosen)
    logits = np.zeros((len(ids), model.spec.num_classes), dtype=np.float32)
    pooled = np.zeros((len(ids), model.pooled_dim), dtype=np.float32) if keep_pooled else None
    frames, tokens = store.audio_frames(ids), store.text_tokens(ids)
    if max_frames is not None:
        frames = np.minimum(frames, max_frames)
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for rows in _by_length(frames, tokens, batch_frames):
                names = [ids[row] for row in rows]
                batch = collate(store, names, max_frames).to(chosen)
                turns = context.batch(names) if model.spec.context_turns and context else None
                output = model(
                    batch.audio,
                    batch.audio_mask,
                    batch.text,
                    batch.text_mask,
                    *((part.to(chosen) for part in turns) if turns else ()),
                )
                logits[rows] = output.logits.float().cpu().numpy()
                if pooled is not None:
                    pooled[rows] = output.pooled.float().cpu().numpy()
    finally:
        model.train(training)
    return Outputs(logits, pooled)


def predict_logits(
    model: EmotionModel,
    store: FeatureStore,
    ids: Sequence[str],
    device: torch.device | str | None = None,
    max_frames: int | None = None,
    batch_frames: int = BATCH_FRAMES,
    context: DialogueContext | None = None,
) -> Floats:
    """The logits of `predict`, [N, 7]."""
    return predict(
        model, store, ids, device, max_frames, batch_frames, context, keep_pooled=False
    ).logits


def _by_length(frames: Integers, tokens: Integers, budget: int) -> Iterator[Integers]:
    """Rows of like length together, each batch within the budget of padded positions."""
    order = np.argsort(frames, kind="stable")
    start = 0
    widest = 0
    for end, row in enumerate(order):
        text = max(widest, int(tokens[row]))
        # Sorted by frames: the newest row is the longest clip of the batch.
        if end > start and (end - start + 1) * (int(frames[row]) + text) > budget:
            yield order[start:end]
            start, text = end, int(tokens[row])
        widest = text
    if start < len(order):
        yield order[start:]
