"""From the manifest to the scores with other classes than the published seven."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.training_corpus import make_corpus, make_task, trained

from multistill.config import DistillationConfig, EvaluationConfig
from multistill.corpora.manifest import classes_of
from multistill.distillation.stage import soft_targets
from multistill.distillation.targets import read_soft_targets
from multistill.errors import MultistillError
from multistill.evaluation.evaluate import Candidate, EvaluatedFold, evaluate
from multistill.models.files import load_model, read_model_config
from multistill.workspace import read_json

SETS = {
    "two": ("calm", "agitated"),
    "nine": ("a", "b", "c", "d", "e", "f", "g", "h", "i"),
}


@pytest.mark.parametrize("classes", SETS.values(), ids=[*SETS])
def test_classes_travel_from_the_manifest_to_the_scores(
    classes: tuple[str, ...], tmp_path: Path
) -> None:
    corpus = make_corpus(tmp_path / "corpus", rows=150, classes=classes)
    base = make_task(corpus, epochs=6)
    task = replace(base, spec=replace(base.spec, num_classes=len(classes)))
    trained(task, tmp_path / "teacher")
    assert read_model_config(tmp_path / "teacher")["labels"] == list(classes)
    targets = tmp_path / "soft_targets.parquet"
    soft_targets(Path(task.manifest), corpus[1], [tmp_path / "teacher"], {}, False, False, targets)
    assert read_soft_targets(targets).classes == classes
    student = replace(task, soft_targets=str(targets), distillation=DistillationConfig(weight=0.5))
    trained(student, tmp_path / "student")

    candidates = [
        Candidate("teacher", "teacher", [tmp_path / "teacher"]),
        Candidate("multimodal", "student", [tmp_path / "student"]),
    ]
    out = tmp_path / "evaluation"
    out.mkdir()
    config = EvaluationConfig(latency_clips=0, resamples=200)
    evaluate([EvaluatedFold(Path(task.manifest).parent, candidates)], corpus[1], config, out)
    metrics = read_json(out / "metrics.json")
    predictions = pq.read_table(out / "predictions.parquet")
    assert classes_of(predictions) == classes == tuple(metrics["classes"])
    size = len(classes)
    for model in (*metrics["references"], *metrics["models"]):
        assert np.array(model["confusion"]).shape == (size, size)
    shares = np.stack(predictions["distribution"].to_numpy())
    assert shares.shape[1] == size and np.allclose(shares.sum(axis=1), 1, atol=1e-5)
    teacher = metrics["models"][0]["metrics"]["uar"]["value"]
    assert teacher > 0.8, "the states point in the direction of their class"

    with pytest.raises(MultistillError, match="labels is"):
        load_model(tmp_path / "teacher", {"labels": [*classes[::-1]]})
