"""The model registry: one registered model a name, its best version called `champion`."""

from __future__ import annotations

import hashlib
import math
import re
from pathlib import Path
from typing import Any

from multistill.tracking.journal import Record
from multistill.tracking.server import RecordRefusedError, Server, clean_tags, guarded

CHAMPION = "champion"
DIGEST_TAG = "multistill.digest"
DATA_TAG = "multistill.data"
FOLDER = "model"


def digest_of(folder: Path) -> str:
    """Digest of a model folder's names and contents."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(str(path.relative_to(folder)).encode())
            with path.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:32]


def register(server: Server, run_id: str, record: Record, folder: Path) -> str:
    """Add a version for the folder, and make it the champion if it is better.

    The same weights make one version however often this is called; its tags say what was
    measured last. A champion of other data, or without the metric, is neither beaten nor
    kept: its figure cannot be compared, so the alias stays. One whose figure is no number is
    beaten by any number.

    Returns:
        a sentence about what happened.
    Raises:
        ServerAwayError, RecordRefusedError.
    """
    name = re.sub(r"[/:]", "-", record["name"])
    metric, value = record["metric"], float(record["value"])
    _make_model(server, name)
    version = _find(server, name, record["digest"])
    tags = {
        DIGEST_TAG: record["digest"],
        DATA_TAG: record["data"],
        metric: str(value),
        **clean_tags(record["tags"]),
    }
    if version is not None:
        for key, text in tags.items():
            if version.tags.get(key) != text:
                guarded(server.client.set_model_version_tag, name, version.version, key, text)
    else:
        server.upload(run_id, folder, "", name=FOLDER)
        run = guarded(server.client.get_run, run_id)
        version = guarded(
            server.client.create_model_version,
            name,
            source=f"{run.info.artifact_uri}/{FOLDER}",
            run_id=run_id,
            tags=tags,
        )
    champion = _champion(server, name)
    title = f"{name} version {version.version}"
    if champion is not None and champion.version == version.version:
        return f"{title} is the champion"
    if champion is not None and champion.tags.get(DATA_TAG) != record["data"]:
        return (
            f"{title} is registered ({metric} {value:.4g}); version {champion.version} stays the "
            "champion: it was chosen on other data, so the two figures cannot be compared; move "
            "the alias in MLflow if the new data shall count from now on"
        )
    if champion is not None and metric not in champion.tags:
        return (
            f"{title} is registered ({metric} {value:.4g}); version {champion.version} stays the "
            f"champion: nothing says what its {metric} is, so the two cannot be compared; move the "
            "alias in MLflow if this metric shall count from now on"
        )
    best = _number(champion.tags.get(metric)) if champion is not None else None
    if math.isfinite(value) and (best is None or _gain(record, value, best) > record["margin"]):
        guarded(server.client.set_registered_model_alias, name, CHAMPION, version.version)
        before = "" if best is None else f", before {best:.4g}"
        return f"{title} is the champion ({metric} {value:.4g}{before})"
    if champion is None:
        return f"{title} is registered ({metric} {value:.4g}); there is no champion"
    short = f" by {record['margin']:g}" if record["margin"] else ""
    return (
        f"{title} is registered ({metric} {value:.4g}); version {champion.version} stays the "
        f"champion with {best:.4g}, which is not beaten{short}"
        if best is not None
        else f"{title} is registered ({metric} {value:.4g}); version {champion.version} stays the "
        "champion"
    )


def _gain(record: Record, value: float, best: float) -> float:
    return best - value if record["mode"] == "min" else value - best


def _make_model(server: Server, name: str) -> None:
    try:
        guarded(server.client.create_registered_model, name)
    except RecordRefusedError:
        guarded(server.client.get_registered_model, name)  # refused for another reason: say it


def _find(server: Server, name: str, digest: str) -> Any:
    found = guarded(server.client.search_model_versions, f"name = '{name}'", max_results=1000)
    return next((version for version in found if version.tags.get(DIGEST_TAG) == digest), None)


def _champion(server: Server, name: str) -> Any:
    try:
        return guarded(server.client.get_model_version_by_alias, name, CHAMPION)
    except RecordRefusedError:
        return None


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
