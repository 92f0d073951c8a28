"""Clips to listen to: those that every model misses, and those where teacher and student differ.

Both lists come from predictions.parquet, so under cross-validation every clip counts with the
models of the fold that tested it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from multistill.corpora.manifest import MANIFEST, classes_of
from multistill.damaged import read_table
from multistill.evaluation.paired import PREDICTIONS
from multistill.metrics.classification import divergences
from multistill.typing import DoubleArray, IntArray

MAX_LISTED = 20
"""Clips of each list: more than a person listens to."""
MIN_VOTE = 0.005
"""Vote shares below it are not shown."""

Record = Mapping[str, Any]


def describe_errors(
    evaluation: Path, manifest: Path, metrics: Record, transcripts: bool = True
) -> dict[str, Any]:
    """The clips of both lists, at most `MAX_LISTED` each.

    Args:
        evaluation: folder of predictions.parquet.
        manifest: folder of the manifest.
        metrics: content of metrics.json.
        transcripts: whether the clips' texts are included.

    Returns:
        `missed`: `models` (names of all that were trained; the probes if there are none), `total`
        (clips that all of them miss, ties excluded) and `clips`, ordered by the mean probability
        of the wrong classes that they answered, highest first. `differing`: None without a
        teacher and a student, else their names, and `clips` ordered by the Jensen-Shannon
        divergence of their distributions in nats, largest first; clips without a class, which
        have dimensions alone, are in neither. A clip has `id`, `speaker`,
        `truth` (None where the votes tie), `votes` (share by class), `answers` (per model the
        class and its probability), `text` (None where it is not shown) and `confidence` or
        `divergence`. A job without classes has no such clips.
    """
    if not metrics["classes"]:
        return {"missed": {"models": [], "total": 0, "clips": []}, "differing": None}
    judged = [model["name"] for model in metrics["models"] if not model["not_trained"]]
    judged = judged or [model["name"] for model in metrics["references"]]
    teacher = next((m["name"] for m in metrics["models"] if m["role"] == "teacher"), None)
    student = metrics["floor"]["student"]
    pair = [teacher, student] if teacher and student else []
    rows = _Predictions(evaluation / PREDICTIONS, list(dict.fromkeys([*judged, *pair])))
    missed, total, confidence = rows.missed(judged)
    found: dict[str, Any] = {
        "missed": {
            "models": judged,
            "total": total,
            "clips": [
                rows.clip(row, judged) | {"confidence": float(confidence[row])} for row in missed
            ],
        },
        "differing": None,
    }
    if pair:
        divergence = divergences(*(rows.distributions[name] for name in pair))[:, 1]
        ranked = np.argsort(-divergence, kind="stable")
        order = rows.first(ranked[rows.has_class(manifest)[ranked]])
        found["differing"] = {
            "teacher": teacher,
            "student": student,
            "clips": [
                rows.clip(row, pair) | {"divergence": max(0.0, float(divergence[row]))}
                for row in order
            ],
        }
    return _with_votes(found, manifest, transcripts)


class _Predictions:
    """Rows of predictions.parquet of some models, in the order of the test clips.

    Attributes:
        distributions: [N, C] by model.
    """

    def __init__(self, file: Path, models: Sequence[str]) -> None:
        self.classes = classes_of(pq.read_schema(file))
        self.distributions: dict[str, DoubleArray] = {}
        for name in models:  # one at a time: a row of a model is read once and held as numbers
            table = read_table(file, filters=[("model", "=", name)])
            flat = table["distribution"].combine_chunks().flatten().to_numpy()
            self.distributions[name] = flat.astype(np.float64).reshape(-1, len(self.classes))
        self.ids: list[str] = table["utterance_id"].to_pylist() if models else []
        self.speakers: list[str] = table["speaker"].to_pylist() if models else []
        self.truth: list[str | None] = table["truth"].to_pylist() if models else []

    def missed(self, models: Sequence[str]) -> tuple[list[int], int, DoubleArray]:
        """Rows that all models miss, their number, and the mean confidence of the answers [N]."""
        if not models:
            return [], 0, np.zeros(0)
        index = {name: number for number, name in enumerate(self.classes)}
        truth = np.array([-1 if label is None else index[label] for label in self.truth])
        answers = np.stack([self.distributions[name].argmax(axis=1) for name in models])
        confidence = np.mean([self.distributions[name].max(axis=1) for name in models], axis=0)
        rows = np.flatnonzero((truth >= 0) & (answers != truth).all(axis=0))
        order = rows[np.argsort(-confidence[rows], kind="stable")]
        return self.first(order), len(rows), confidence

    def has_class(self, manifest: Path) -> npt.NDArray[np.bool_]:
        """Whether a clip has a class or votes that tie [N]; others have dimensions alone."""
        unlabelled = sorted(
            {name for name, label in zip(self.ids, self.truth, strict=True) if label is None}
        )
        if not unlabelled:
            return np.ones(len(self.ids), dtype=bool)
        table = read_table(
            manifest / MANIFEST,
            columns=["utterance_id", "label_soft"],
            filters=[("utterance_id", "in", unlabelled)],
        )
        without = {row["utterance_id"] for row in table.to_pylist() if not any(row["label_soft"])}
        return np.array([name not in without for name in self.ids])

    def first(self, rows: IntArray) -> list[int]:
        """The first `MAX_LISTED` rows, of a clip that several folds test the first one only."""
        found: dict[str, int] = {}
        for row in rows.tolist():
            found.setdefault(self.ids[row], row)
            if len(found) == MAX_LISTED:
                break
        return list(found.values())

    def clip(self, row: int, models: Sequence[str]) -> dict[str, Any]:
        answers = {name: self.distributions[name][row] for name in models}
        return {
            "id": self.ids[row],
            "speaker": self.speakers[row],
            "truth": self.truth[row],
            "answers": {
                name: {"class": self.classes[shares.argmax()], "probability": float(shares.max())}
                for name, shares in answers.items()
            },
        }


def _with_votes(found: dict[str, Any], manifest: Path, transcripts: bool) -> dict[str, Any]:
    """Add vote shares and transcripts from the manifest to the clips of the lists."""
    clips = listed(found)
    if not clips:
        return found
    columns = ["utterance_id", "label_soft", "text"]
    ids = sorted({clip["id"] for clip in clips})
    table = read_table(manifest / MANIFEST, columns=columns, filters=[("utterance_id", "in", ids)])
    classes = classes_of(table)
    rows = {row["utterance_id"]: row for row in table.to_pylist()}
    for clip in clips:
        row = rows[clip["id"]]
        shares = zip(classes, row["label_soft"], strict=True)
        ranked = sorted(shares, key=lambda entry: -entry[1])
        clip["votes"] = {name: float(share) for name, share in ranked if share >= MIN_VOTE}
        clip["text"] = row["text"] or "" if transcripts else None
    return found


def listed(errors: Record) -> list[dict[str, Any]]:
    """All clips of `describe_errors`, in the order of the page; one can be in both lists."""
    differing = errors["differing"]
    return [*errors["missed"]["clips"], *(differing["clips"] if differing else [])]
