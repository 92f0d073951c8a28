"""Registration of a search's winner in MLflow's model registry, by the job's rule."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from multistill.config import ChampionConfig
from multistill.corpora.manifest import data_digest
from multistill.evaluation.trained import not_trained_on_validation
from multistill.search.finalists import best_epoch

if TYPE_CHECKING:
    from multistill.tracking.logger import RunLogger


def register(
    name: str,
    folders: Sequence[Path],
    rule: ChampionConfig,
    manifest: Path,
    logger: RunLogger,
) -> None:
    """Register the first model; it becomes the champion if its settings beat the champion's.

    What is registered is an MLflow model (`multistill.export.to_mlflow`), ready to be served.
    Settings that do not beat the majority on validation are not registered at all.

    A validation loss is registered under a name that contains the loss function, so that it
    is never compared with another loss.

    Args:
        name: of the registered model.
        folders: the same settings trained from several seeds, first the one to register; the
            rule compares their mean.
        manifest: folder of the manifest, which decides whether two metrics can be compared.
    """
    from multistill.export.to_mlflow import write_mlflow
    from multistill.models.files import read_model_config

    trainings = [read_model_config(folder)["training"] for folder in folders]
    reason = not_trained_on_validation(trainings)
    if reason is not None:
        logger.info(f"{name}: nothing is registered, the winner is {reason}")
        return
    metric = f"valid_{rule.metric.removeprefix('validation.')}"
    value = statistics.fmean(best_epoch(folder)[metric] for folder in folders)
    if metric == "valid_loss":
        metric = f"{metric}.{trainings[0]['loss']}.{trainings[0]['label_source']}"
    with tempfile.TemporaryDirectory(prefix="multistill-") as temporary:
        copy = Path(temporary) / "model"
        write_mlflow(folders[0], copy)  # the history stays with the job
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
