"""The winner of a search, offered to MLflow's model registry by the job's rule."""

from __future__ import annotations

import hashlib
import shutil
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from multistill.config import ChampionConfig
from multistill.search.finalists import kept_epoch

if TYPE_CHECKING:
    from multistill.tracking.logger import RunLogger

_COLUMNS = ["utterance_id", "audio_digest", "text", "label_soft", "split"]


def register(
    name: str,
    folders: Sequence[Path],
    rule: ChampionConfig,
    manifest: Path,
    logger: RunLogger,
) -> None:
    """Register the first model; it becomes the champion if its settings beat the champion's.

    Args:
        name: of the registered model.
        folders: the same settings trained from several seeds, the one to register first; the
            rule compares their mean.
        manifest: folder of the manifest, which decides whether two figures can be compared.

    A validation loss is registered under a name that says which loss it is, so that it is
    never compared with another.
    """
    from multistill.models.files import CONFIG, WEIGHTS, read_model_config

    metric = f"valid_{rule.metric.removeprefix('validation.')}"
    value = statistics.fmean(kept_epoch(folder)[metric] for folder in folders)
    if metric == "valid_loss":
        training = read_model_config(folders[0])["training"]
        metric = f"{metric}.{training['loss']}.{training['label_source']}"
    with tempfile.TemporaryDirectory(prefix="multistill-") as temporary:
        copy = Path(temporary)
        for file in (WEIGHTS, CONFIG):  # weights and spec; the history stays with the job
            shutil.copy2(folders[0] / file, copy / file)
        logger.register(
            name,
            copy,
            metric,
            value,
            mode=rule.mode,
            margin=rule.margin,
            data=data_digest(manifest),
            tags={"multistill.seeds": str(len(folders))},
        )


def data_digest(manifest: Path) -> str:
    """Digest of what models were trained and chosen on: recordings, words, votes and split.

    Figures on other data say nothing about each other, however alike the jobs are.
    """
    from multistill.corpora.manifest import read_manifest

    table = read_manifest(manifest, _COLUMNS).sort_by("utterance_id")
    state = hashlib.blake2b(digest_size=16)
    for batch in table.to_batches(max_chunksize=65_536):
        state.update(repr(batch.to_pylist()).encode())
    return state.hexdigest()
