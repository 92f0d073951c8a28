"""`multistill evaluate --all`: which clips, which models, and what these were trained on."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multistill.config import JobConfig
from multistill.damaged import read_table
from multistill.errors import UsageError
from multistill.pipeline import variants
from multistill.pipeline.folds import FOLDS, split_unit
from multistill.pipeline.recipes import steps_of
from multistill.pipeline.stage_status import step_statuses
from multistill.workspace import DONE, Artifact, Workspace, fold_folder, read_json

if TYPE_CHECKING:
    from multistill.evaluation.checkpoints import Checkpoint
    from multistill.tracking.logger import RunLogger

MODELS = "models"
SHORT = 6
"""Digits of a fingerprint in the name of a model."""


def find_job(text: str | None, workspace: Path) -> Path:
    """The job file that says on which clips models are scored.

    Args:
        text: a job file, or the name of a job that ran in the workspace (with `@` and the start of
            its fingerprint where several did); None: the job that ran last.

    Raises:
        UsageError: there is none.
    """
    if text is None:
        found = [
            variant
            for name in variants.job_names(workspace)
            for variant in variants.find_variants(workspace, name)
        ]
        if not found:
            raise UsageError(
                f"no job has run in `{workspace}`, so nothing says on which clips to score; give "
                "a job file with --job"
            )
        return max(found, key=lambda variant: variant.last_run).file
    path = Path(text).expanduser()
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return path
    name, key = text, None
    if not variants.find_variants(workspace, text) and "@" in text:
        name, _, key = text.rpartition("@")
    return variants.choose(workspace, name, key, "as NAME@FINGERPRINT").file


def evaluate_all(
    source: str, job: JobConfig, fold: int | None = None, logger: RunLogger | None = None
) -> dict[str, Any]:
    """Score every model of a folder or of an MLflow experiment on the test clips of a job.

    Args:
        source: a folder, or the name of an experiment on the job's tracking server.
        fold: of a cross-validation, from 1: whose test part and training part count.

    Returns:
        as `multistill.evaluation.checkpoints.score_checkpoints`, with `source`, `job`,
        `fold` and `manifest`.

    Raises:
        UsageError: there is no such folder or experiment, no model, or no features yet.
    """
    from multistill.evaluation.checkpoints import score_checkpoints

    if job.tasks.classes is None:
        raise UsageError(
            f"the job `{job.name}` has dimensions alone (`tasks`), and `evaluate --all` scores "
            "classes; name a job with classes"
        )
    workspace = Workspace(job.workspace)
    manifest, features = _clips(job, workspace, fold)
    with ExitStack() as stack:
        found = _checkpoints(source, job, workspace, stack)
        facts = score_checkpoints(
            found, manifest, features, job.evaluation, job.seed, split_unit(job), logger
        )
    return {"source": source, "job": job.name, "fold": fold, "manifest": str(manifest), **facts}


def _clips(job: JobConfig, workspace: Workspace, fold: int | None) -> tuple[Path, Path]:
    """Folders of the manifest, or of that of one fold, and of the features."""
    done: dict[str, Artifact] = {}
    for step, entry, _ in step_statuses(steps_of(job, workspace), workspace):
        artifact = workspace.find(step.kind, entry.fingerprint) if entry.fingerprint else None
        if artifact is not None:
            done[step.artifact] = artifact
    if "manifest" not in done or "features" not in done:
        raise UsageError(
            f"the clips of the job `{job.name}` are not encoded in `{workspace.root}` yet; run it "
            "with `--until features` first"
        )
    manifest, features = done["manifest"], done["features"]
    folds = manifest.summary.get(FOLDS, [])
    if not folds:
        if fold is not None:
            raise UsageError(
                f"--fold {fold}: the job `{job.name}` is no cross-validation; leave --fold out"
            )
        return manifest.path, features.path
    if fold is None or not 1 <= fold <= len(folds):
        raise UsageError(
            f"the job `{job.name}` tests every clip in one of {len(folds)} folds; name the one "
            f"whose test part counts with --fold, from 1 to {len(folds)}"
        )
    return fold_folder(manifest.path, fold - 1), features.path


def _checkpoints(
    source: str, job: JobConfig, workspace: Workspace, stack: ExitStack
) -> list[Checkpoint]:
    from multistill.evaluation.checkpoints import model_folders

    root = Path(source).expanduser()
    if root.is_dir():
        found: list[tuple[Path, str | None]] = [(folder, None) for folder in model_folders(root)]
        if not found:
            raise UsageError(
                f"there is no model below `{root}`; give a folder that holds folders with "
                "model.safetensors and config.json, such as WORKSPACE/models"
            )
    else:
        into = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="multistill-")))
        found = list(_of_experiment(source, job, workspace, into))
        if not found:
            raise UsageError(
                f"no run of the experiment `{source}` has a model in `{workspace.root}` or "
                "among its artifacts; give the --workspace where they were trained"
            )
    return _named(found, root, workspace)


def _of_experiment(
    name: str, job: JobConfig, workspace: Workspace, into: Path
) -> Iterator[tuple[Path, str | None]]:
    """Models that runs of an experiment trained in this workspace, and those that they logged."""
    from multistill.tracking import shown_address, tracking_uri
    from multistill.tracking.models import download_models, experiment_runs

    uri = tracking_uri(job.tracking, workspace.root)
    runs = experiment_runs(uri, name)
    if runs is None:
        raise UsageError(
            f"`{name}` is neither a folder nor an experiment on "
            f"{shown_address(job.tracking, workspace.root)}; give one of them"
        )
    ids = {str(run.info.run_id) for run in runs}
    seen = set()
    for folder in sorted((workspace.root / MODELS).glob("[!.]*")):
        done = _done(folder)
        if done and (run_id := done["provenance"].get("record_id")) in ids:
            seen.add(_config(folder).get("sha256"))
            yield folder, run_id
    for run_id, folder in download_models(uri, runs, into).items():
        if _config(folder).get("sha256") not in seen:
            yield folder, run_id


def _named(
    found: Sequence[tuple[Path, str | None]], root: Path, workspace: Workspace
) -> list[Checkpoint]:
    from multistill.evaluation.checkpoints import Checkpoint

    by_weights: dict[str, Path] | None = None
    manifests: dict[Path, frozenset[str]] = {}
    checkpoints, names = [], set()
    for folder, run_id in found:
        done, original = _done(folder), folder
        if done is None:  # a copy: of a model of this workspace, its training clips are known
            by_weights = _by_weights(workspace) if by_weights is None else by_weights
            original = by_weights.get(str(_config(folder).get("sha256")), folder)
            done = _done(original)
        manifest = _manifest(original, done)
        if manifest is not None and manifest not in manifests:
            manifests[manifest] = _trained_on(manifest)
        known = None if manifest is None else manifests[manifest]
        base = name = _name(folder, root, run_id)
        number = 1
        while name in names:
            number += 1
            name = f"{base} ({number})"
        names.add(name)
        checkpoints.append(Checkpoint(name, folder, known, run_id))
    return checkpoints


def _name(folder: Path, root: Path, run_id: str | None) -> str:
    """What the training was called, and the start of the folder's or the run's name."""
    training = _config(folder).get("training", {})
    own = training.get("name") if isinstance(training, Mapping) else None
    short = (run_id or folder.name)[:SHORT]
    if own is not None:
        return f"{own} ({short})"
    return str(folder.relative_to(root)) if folder.is_relative_to(root) else short


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = read_json(folder / "config.json")
    except (OSError, ValueError):  # told as the reason why it is not scored
        return {}
    return config if isinstance(config, dict) else {}


def _done(folder: Path) -> dict[str, Any] | None:
    try:
        done = read_json(folder / DONE)
    except (OSError, ValueError):
        return None
    return done if isinstance(done, dict) and "inputs" in done else None


def _by_weights(workspace: Workspace) -> dict[str, Path]:
    folders = (workspace.root / MODELS).glob("[!.]*")
    return {str(_config(folder).get("sha256")): folder for folder in folders if _done(folder)}


def _manifest(folder: Path, done: Mapping[str, Any] | None) -> Path | None:
    """Folder of the manifest that a model of a workspace was trained on, if it is still there."""
    from multistill.corpora.manifest import MANIFEST

    fingerprint = str(done["inputs"].get("manifest", "")) if done else ""
    name, _, fold = fingerprint.partition("-")
    if not name:
        return None
    root = folder.parents[1] / "prepare" / name  # <workspace>/models/<fingerprint>
    found = fold_folder(root, int(fold) - 1) if fold else root
    return found if (found / MANIFEST).is_file() else None


def _trained_on(manifest: Path) -> frozenset[str]:
    """Ids of the clips on which models of this manifest are trained and chosen."""
    from multistill.corpora.manifest import MANIFEST, UNLABELLED

    parts = ["train", "valid", UNLABELLED]
    table = read_table(
        manifest / MANIFEST, columns=["utterance_id"], filters=[("split", "in", parts)]
    )
    return frozenset(table["utterance_id"].to_pylist())
