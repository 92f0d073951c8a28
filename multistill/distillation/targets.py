"""Files of a teacher's outputs, written by the distill stage and read by student trainings.

soft_targets.parquet       outputs of every utterance outside the test split
states.safetensors         if requested: states of the utterances that students learn from
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from multistill.config import CLASSES
from multistill.corpora.manifest import classes_of, with_classes
from multistill.damaged import read_table, reading
from multistill.distillation.files import STATES
from multistill.errors import MultistillError
from multistill.metrics.classification import EPS, distributions
from multistill.models.files import Output
from multistill.models.sequences import RaggedStates
from multistill.models.tensors_file import write_tensors
from multistill.typing import AnyArray, DoubleArray, FloatArray, IntArray
from multistill.workspace import atomic_path, to_json


@dataclass(frozen=True)
class SoftTargets:
    """A teacher's outputs.

    Attributes:
        outputs: float32 [N, C] in class order: logits before softmax and temperature, or shares
            of a teacher that was trained by squared error.
        classes: in the order of the outputs; empty for a teacher of dimensions alone.
        kind: which of the two.
        teacher: human-readable description of the teacher.
        dimensions: float32 [N, D], values of the teacher from about 1 to 5.
        dimension_names: of these D columns; empty for a teacher of classes alone.
        fold: int64 [N], the fold that the row's teacher was not trained on; -1 if it may have
            been trained on the row.
    """

    ids: list[str]
    outputs: FloatArray
    classes: tuple[str, ...]
    kind: Output
    teacher: str
    fold: IntArray
    dimensions: FloatArray
    dimension_names: tuple[str, ...] = ()

    @property
    def distributions(self) -> DoubleArray:
        """The teacher's distribution of each utterance, [N, C]."""
        return distributions(self.outputs, self.kind)

    def for_loss(self, loss: str) -> FloatArray:
        """Outputs [N, C] as `distillation.loss` reads them: shares for `two-mse`, else logits.

        A teacher of the other kind is converted by its distribution p: to p, or to log p, of
        which softmax makes p again and a temperature works as on any logits.
        """
        wanted: Output = "shares" if loss == "two-mse" else "logits"
        if self.kind == wanted or not self.classes:
            return self.outputs
        p = self.distributions
        return (p if wanted == "shares" else np.log(np.maximum(p, EPS))).astype(np.float32)


def write_soft_targets(
    path: Path,
    ids: Sequence[str],
    outputs: npt.ArrayLike,
    teacher: str,
    fold: npt.ArrayLike,
    kind: Output = "logits",
    classes: Sequence[str] = CLASSES,
    dimensions: npt.ArrayLike = (),
    dimension_names: Sequence[str] = (),
) -> None:
    """Write `utterance_id`, `outputs`, `teacher` and `fold` to a Parquet file, atomically.

    Teachers of dimensions have a column `dimensions` too.
    """
    columns = {"utterance_id": pa.array(ids, pa.string())}
    if classes:
        columns["outputs"] = _vectors(outputs, len(ids), len(classes))
    columns["teacher"] = pa.array([teacher] * len(ids), pa.string())
    columns["fold"] = pa.array(np.asarray(fold), pa.int32())
    if dimension_names:
        columns["dimensions"] = _vectors(dimensions, len(ids), len(dimension_names))
    names = to_json(list(dimension_names))
    metadata = {"kind": kind, "dimensions": names, **with_classes(classes)}
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(columns).replace_schema_metadata(metadata), temporary)


def read_soft_targets(path: Path) -> SoftTargets:
    """Read a file of `write_soft_targets`.

    Raises:
        MultistillError: the file is missing, truncated or lacks a column.
    """
    try:
        table = read_table(path)
    except FileNotFoundError:
        raise MultistillError(f"{path} is missing; run the job again") from None
    with reading(path):
        return _soft_targets(table, path)


def _soft_targets(table: pa.Table, path: Path) -> SoftTargets:
    metadata = table.schema.metadata or {}
    names = tuple(json.loads(metadata.get(b"dimensions", b"[]")))
    has_outputs = not names or bool(classes_of(table))
    wanted = ["outputs"] * has_outputs + ["dimensions"] * bool(names)
    for name in ("utterance_id", *wanted, "teacher", "fold"):
        if name not in table.column_names:
            raise MultistillError(f"{path} holds no soft targets: the column {name} is missing")
    kind = metadata.get(b"kind", b"").decode()
    if kind not in get_args(Output):
        raise MultistillError(f"{path} does not say whether it holds logits or shares")
    none = np.zeros((len(table), 0), np.float32)
    return SoftTargets(
        ids=table["utterance_id"].to_pylist(),
        outputs=_matrix(table["outputs"]) if has_outputs else none,
        classes=classes_of(table),
        kind=cast(Output, kind),
        teacher=table["teacher"][0].as_py() if len(table) else "",
        fold=table["fold"].to_numpy().astype(np.int64),
        dimensions=_matrix(table["dimensions"]) if names else none,
        dimension_names=names,
    )


@dataclass(frozen=True)
class StatesFile:
    """A teacher's states of the M utterances that students learn from, in the order of the file.

    Attributes:
        rows: int64 [M], row indices of the soft targets.
        teacher: int64 [M], which teacher the states are of: any number per teacher.
        pooled: float32 [M, D], the inputs of the teacher's classifier.
        sequences: by modality, before they are pooled; empty if they were not asked for.
    """

    rows: IntArray
    teacher: IntArray
    pooled: torch.Tensor
    sequences: dict[str, tuple[torch.Tensor, IntArray]]


def write_states(
    targets: Path,
    rows: npt.ArrayLike,
    teacher: npt.ArrayLike,
    pooled: npt.ArrayLike,
    sequences: Mapping[str, RaggedStates] | None = None,
) -> None:
    """Write a teacher's states into the folder of the soft targets, atomically.

    Args:
        targets: the Parquet file.
        rows, teacher, pooled: as in `StatesFile`; rows in any order.
        sequences: by modality, of the same rows.
    """
    arrays: dict[str, AnyArray] = {
        "row": np.asarray(rows, dtype=np.int64),
        "teacher": np.asarray(teacher, dtype=np.int64),
        "pooled": np.ascontiguousarray(pooled, dtype=np.float32),
        **sequence_tensors(sequences or {}),
    }
    with atomic_path(targets.with_name(STATES)) as temporary:
        write_tensors(temporary, arrays)


def read_states(targets: Path) -> StatesFile:
    """Read what `write_states` wrote.

    The file is memory-mapped, so the processes of a node share it.

    Raises:
        MultistillError: the file is missing or damaged.
    """
    path = targets.with_name(STATES)
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise MultistillError(
            f"{path} is missing, and the weights of `distillation` on representations need it; run "
            "a job that sets one of them"
        ) from None
    except SafetensorError as error:
        raise MultistillError(
            f"{path} is damaged ({error}); remove it and run the job again"
        ) from error
    with reading(path):
        names = _sequence_names(tensors)
        lengths = {name: tensors.pop(f"{name}_lengths").numpy() for name in names}
        return StatesFile(
            rows=tensors["row"].numpy(),
            teacher=tensors["teacher"].numpy(),
            pooled=tensors["pooled"],
            sequences={name: (tensors[f"{name}_states"], own) for name, own in lengths.items()},
        )


def sequence_tensors(sequences: Mapping[str, RaggedStates]) -> dict[str, AnyArray]:
    """The arrays of sequences by modality, for a file."""
    return {
        f"{name}_{key}": np.ascontiguousarray(value)
        for name, ragged in sequences.items()
        for key, value in ragged._asdict().items()
    }


def sequences_of(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, RaggedStates]:
    """Inverse of `sequence_tensors`; other arrays are left out."""
    return {
        name: RaggedStates(arrays[f"{name}_states"], arrays[f"{name}_lengths"])
        for name in _sequence_names(arrays)
    }


def joined(parts: Sequence[Mapping[str, RaggedStates]]) -> dict[str, RaggedStates]:
    """The sequences of one part of the utterances after those of another."""
    return {
        name: RaggedStates(
            *(np.concatenate(values) for values in zip(*(p[name] for p in parts), strict=True))
        )
        for name in parts[0]
    }


def _sequence_names(tensors: Mapping[str, Any]) -> list[str]:
    return [name.removesuffix("_lengths") for name in tensors if name.endswith("_lengths")]


def _vectors(values: npt.ArrayLike, rows: int, width: int) -> pa.Array:
    matrix = np.asarray(values, dtype=np.float32)
    if matrix.shape != (rows, width):
        raise ValueError(f"expected an array of shape {(rows, width)}, not {matrix.shape}")
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), width)


def _matrix(column: pa.ChunkedArray) -> FloatArray:
    width = column.type.list_size
    parts = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    flat = np.concatenate(parts) if parts else np.zeros(0)
    return flat.astype(np.float32).reshape(-1, width)
