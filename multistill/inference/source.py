"""Find a model by what people call it: a folder, a registered model, a run, a finished job."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from multistill.config import TrackingConfig
from multistill.corpora.paths import printable
from multistill.errors import UsageError
from multistill.models.files import CONFIG, WEIGHTS, read_model_config
from multistill.tracking.registry import model_in
from multistill.workspace import Artifact, Workspace, file_name, read_json

MODELS, RUNS = "models:/", "runs:/"
_STAGES = ("search", "students")


def check_temperature(temperature: float | None) -> None:
    """Refuse what probabilities cannot be divided by.

    Raises:
        UsageError: it is not above 0.
    """
    if temperature is not None and not (math.isfinite(temperature) and temperature > 0):
        raise UsageError(f"temperature: {temperature} is not above 0; use 1 for none")


@contextmanager
def found_model(model: str | Path, workspace: Path) -> Iterator[tuple[Path, str | None]]:
    """The folder of a model while the context is open, and what it is registered as.

    Args:
        model: as of `Predictor.load`.

    Raises:
        UsageError: there is no such model.
    """
    text = str(model)
    if text.startswith((MODELS, RUNS)):
        with tempfile.TemporaryDirectory(prefix="multistill-") as into:
            yield _downloaded(text, workspace, Path(into))
        return
    # Path's own methods raise for an unknown user and for what cannot be a path.
    path = Path(os.path.expanduser(model))  # noqa: PTH111
    if os.path.exists(path):  # noqa: PTH110
        yield model_in(path.parent if path.name in {CONFIG, WEIGHTS} else path), None
        return
    yield _best_student(text, workspace), None


def _downloaded(text: str, workspace: Path, into: Path) -> tuple[Path, str | None]:
    """A model of the MLflow server, copied into a folder."""
    from multistill.tracking import redact, shown_address, tracking_uri
    from multistill.tracking.models import download_model

    config, root = TrackingConfig(), workspace.expanduser().absolute()
    uri = tracking_uri(config, root)
    shown = shown_address(config, root)
    if uri.startswith("sqlite:") and not (root / "mlflow.db").exists():
        raise UsageError(
            f"{text}: there is no MLflow database in `{root}`; set MLFLOW_TRACKING_URI, or give "
            "the workspace of the job"
        )
    folder, title = download_model(uri, text, into)
    found = sorted(path.parent for path in folder.rglob(CONFIG) if (path.parent / WEIGHTS).exists())
    if not found:
        raise UsageError(
            f"{redact(text)} on {shown} holds no {WEIGHTS} with {CONFIG}; give a model that "
            "multistill registered"
        )
    return found[0], title


def _best_student(name: str, workspace: Path) -> Path:
    """Of the last run of a finished job, the student with the best validation.

    Raises:
        UsageError: no such job has finished, or it has no student.
    """
    root = Workspace(workspace)
    try:
        report = root.root / "reports" / file_name(name) / "latest" / "report.json"
        stages = read_json(report)["stages"]
        fingerprints = {stage["name"]: str(stage["fingerprint"]) for stage in stages}
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(
            f"`{printable(name)}` is neither a model folder nor a job that has finished in "
            f"`{root.root}`; give one of them, or the workspace of the job"
        ) from None
    folders = [
        root.folder("models", str(model["fingerprint"]))
        for stage in _STAGES
        if stage in fingerprints and (artifact := root.find(stage, fingerprints[stage])) is not None
        for model in _students(artifact)
    ]
    ranked = [(_validation(folder), folder) for folder in folders if (folder / CONFIG).exists()]
    if not ranked:
        raise UsageError(
            f"the job `{name}` has no student in `{root.root}` any more; run it again, or give a "
            "model folder"
        )
    return max(ranked, key=lambda entry: entry[0])[1]


def _students(artifact: Artifact) -> Iterator[dict[str, Any]]:
    for model in artifact.summary.get("models", {}).values():
        if model["role"] == "student":
            yield model


def _validation(folder: Path) -> float:
    """Macro F1 on validation, or the CCC of a model of dimensions alone; -1 if unknown."""
    scores = read_model_config(folder)["training"].get("validation") or {}
    return float(scores.get("macro_f1", scores.get("ccc", -1.0)))
