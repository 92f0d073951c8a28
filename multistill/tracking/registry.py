"""MLflow model registry: versions of a registered model, the best one aliased `champion`."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from multistill.tracking.journal import Record
from multistill.tracking.server import RecordRejectedError, Server, call_mlflow, clean_tags

CHAMPION = "champion"
DIGEST_TAG = "multistill.digest"
DATA_TAG = "multistill.data"
FOLDER = "model"
CONTENT = "artifacts/model"
"""Below an MLflow model: the model folder that it was made of."""


def model_in(folder: Path) -> Path:
    """The model folder in a logged folder: in an MLflow model, or the folder itself."""
    return folder / CONTENT if (folder / CONTENT).is_dir() else folder


def digest_of(folder: Path) -> str:
    """Hash the file names and contents of a model folder.

    Of an MLflow model only what it was made of: the rest has the time, and versions of packages.
    """
    root = model_in(folder)
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.is_file():
            digest.update(str(path.relative_to(root)).encode())
            with path.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:32]


class Registered(NamedTuple):
    """What became of a model that was registered.

    Attributes:
        sentence: about the outcome, for people.
        champion: of a version that became the champion now: `model`, `version`, `metric`, `value`
            and the `previous` champion's value, None without one.
    """

    sentence: str
    champion: dict[str, Any] | None = None


Requesting = Callable[[str, str, str], AbstractContextManager[Any]]
"""`Runs.requesting`: called with `version`, the model's name and the digest of its files."""


def register(
    server: Server, run_id: str, record: Record, folder: Path, requesting: Requesting
) -> Registered:
    """Register a model folder as a version, and make it the champion if it is better.

    Registering the same files again does not create a second version; it updates the tags
    of the first to the latest measurement. A champion that was measured on other data, or
    without this metric, cannot be compared with the new version, so the alias does not move.
    A champion whose metric is NaN or infinite is beaten by any finite value.

    Raises:
        ServerUnavailableError, RecordRejectedError.
    """
    name = re.sub(r"[/:]", "-", record["name"])
    metric, value = record["metric"], float(record["value"])
    version = _add_version(server, name, run_id, record, folder, requesting)
    champion = _champion(server, name)
    title = f"{name} version {version.version}"
    if champion is not None and champion.version == version.version:
        return Registered(f"{title} is the champion")
    registered = f"{title} is registered ({metric} {value:.4g})"
    stays = f"version {champion.version} stays the champion" if champion is not None else ""
    if champion is not None and (reason := _not_comparable(champion, record)):
        return Registered(f"{registered}; {stays}: {reason}")
    best = _finite(champion.tags.get(metric)) if champion is not None else None
    beaten = best is None or _improvement(record, value, best) > record["margin"]
    if math.isfinite(value) and beaten:
        call_mlflow(server.client.set_registered_model_alias, name, CHAMPION, version.version)
        previous = "" if best is None else f", previously {best:.4g}"
        became = {"model": name, "version": str(version.version), "metric": metric}
        return Registered(
            f"{title} is the champion ({metric} {value:.4g}{previous})",
            {**became, "value": value, "previous": best},
        )
    if champion is None:
        return Registered(f"{registered}; there is no champion")
    if best is None:
        return Registered(f"{registered}; {stays}")
    by_margin = f" by {record['margin']:g}" if record["margin"] else ""
    return Registered(f"{registered}; {stays} with {best:.4g}, which is not beaten{by_margin}")


def _add_version(
    server: Server, name: str, run_id: str, record: Record, folder: Path, requesting: Requesting
) -> Any:
    """Create a version for the folder, or update the tags of the version with the same files."""
    _create_registered_model(server, name)
    tags = {
        DIGEST_TAG: record["digest"],
        DATA_TAG: record["data"],
        record["metric"]: str(float(record["value"])),
        **clean_tags(record["tags"]),
    }
    version = _find_version(server, name, record["digest"])
    if version is not None:
        for key, text in tags.items():
            if version.tags.get(key) != text:
                call_mlflow(server.client.set_model_version_tag, name, version.version, key, text)
        return version
    server.upload(run_id, folder, "", name=FOLDER)
    run = call_mlflow(server.client.get_run, run_id)
    with requesting("version", name, record["digest"]) as doubt:
        version = call_mlflow(
            server.client.create_model_version,
            name,
            source=f"{run.info.artifact_uri}/{FOLDER}",
            run_id=run_id,
            tags=tags,
        )
        doubt.kept = str(version.version)
    return version


def remove_duplicate_versions(server: Server, name: str, digest: str) -> None:
    """Keep the oldest version with these files, and move the alias to it from a duplicate."""
    kept, *duplicates = _versions(server, name, digest) or [None]
    for duplicate in duplicates:
        champion = _champion(server, name)
        if champion is not None and champion.version == duplicate.version:
            call_mlflow(server.client.set_registered_model_alias, name, CHAMPION, kept.version)
        call_mlflow(server.client.delete_model_version, name, duplicate.version)


def _not_comparable(champion: Any, record: Record) -> str:
    """Explain why a version cannot be compared with the champion; empty if it can."""
    if champion.tags.get(DATA_TAG) != record["data"]:
        return (
            "it was chosen on other data, so the two values cannot be compared; move the alias in "
            "MLflow if the new data should count from now on"
        )
    if record["metric"] not in champion.tags:
        return (
            f"it has no {record['metric']}, so the two cannot be compared; move the alias in "
            "MLflow if this metric should count from now on"
        )
    return ""


def _improvement(record: Record, value: float, best: float) -> float:
    return best - value if record["mode"] == "min" else value - best


def _create_registered_model(server: Server, name: str) -> None:
    try:
        call_mlflow(server.client.create_registered_model, name)
    except RecordRejectedError:
        call_mlflow(server.client.get_registered_model, name)  # raises unless the model exists


def _find_version(server: Server, name: str, digest: str) -> Any:
    return next(iter(_versions(server, name, digest)), None)


def _versions(server: Server, name: str, digest: str) -> list[Any]:
    """The versions with these files, oldest first."""
    versions = call_mlflow(
        server.client.search_model_versions, f"name = '{name}'", max_results=1000
    )
    same = [version for version in versions if version.tags.get(DIGEST_TAG) == digest]
    return sorted(same, key=lambda version: int(version.version))


def _champion(server: Server, name: str) -> Any:
    try:
        return call_mlflow(server.client.get_model_version_by_alias, name, CHAMPION)
    except RecordRejectedError:
        return None


def _finite(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
