"""What MLflow runs of an exported model: a table of recordings in, a table of predictions out."""

from __future__ import annotations

import base64
import binascii
import os
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.pyfunc import PythonModel

from multistill.audio.errors import UnusableClipError
from multistill.inference.predictor import Input, Predictor

CLIPS_PER_BATCH = 64
LONGEST_PATH = 4096
"""Characters; what is longer is content."""


class EmotionModel(PythonModel):
    """Rows with `audio` (a path, or the file's content as base64) and `text` to predictions."""

    def load_context(self, context: Any) -> None:
        self._predictor = Predictor.load(context.artifacts["model"])

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """A row per row: `label`, `p_CLASS` for each class, dimensions, and `error`.

        A row that cannot be predicted has its reason as `error`, and None for all else.
        """
        rows: list[dict[str, Any]] = []
        cells = [model_input.get(name, pd.Series()).tolist() for name in ("audio", "text")]
        audio, text = (each or [None] * len(model_input) for each in cells)
        for start in range(0, len(model_input), CLIPS_PER_BATCH):
            batch = slice(start, start + CLIPS_PER_BATCH)
            rows += self._rows(audio[batch], text[batch])
        names = [f"p_{label}" for label in self._predictor.labels]
        columns = ["label", *names, *self._predictor.dimensions, "error"]
        table = pd.DataFrame(rows, columns=columns, index=model_input.index)
        # JSON has no NaN, and MLflow's server would write it.
        empty = [name for name in columns if table[name].isna().any()]
        table[empty] = table[empty].astype(object).where(table[empty].notna(), None)
        return table

    def _rows(self, audio: list[Any], text: list[Any]) -> list[dict[str, Any]]:
        inputs: dict[int, Input] = {}
        rows: list[dict[str, Any]] = [{} for _ in audio]
        for row, (sound, words) in enumerate(zip(audio, text, strict=True)):
            try:
                inputs[row] = Input(recording(sound), words if isinstance(words, str) else None)
            except UnusableClipError as error:
                rows[row] = {"error": str(error)}
        found = self._predictor.try_batch(list(inputs.values()))
        for row, each in zip(inputs, found, strict=True):
            if isinstance(each, UnusableClipError):
                rows[row] = {"error": str(each)}
                continue
            shares = {f"p_{label}": share for label, share in each.distribution.items()}
            rows[row] = {"label": each.label, **shares, **each.dimensions}
        return rows


def recording(cell: Any) -> Path | bytes | None:
    """A cell of the column `audio`: a file that exists, or a file's content.

    Raises:
        UnusableClipError: it is neither.
    """
    if isinstance(cell, bytes):
        return cell
    if not isinstance(cell, str) or not cell:
        return None
    if len(cell) <= LONGEST_PATH and os.path.isfile(cell):  # noqa: PTH113 - false for any text
        return Path(cell)
    try:
        return base64.b64decode(cell, validate=True)
    except (binascii.Error, ValueError):
        shown = cell if len(cell) <= 80 else f"{cell[:80]}..."
        raise UnusableClipError(
            "no recording", f"`{shown}` is neither a file nor the content of one as base64"
        ) from None
