"""Advice about the statistics of the training part's states: made again, they are read."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.advice import says
from helpers.training_corpus import make_corpus, make_task

from multistill.errors import MultistillError
from multistill.features.statistics import INFO, read_statistics, write_statistics
from multistill.training.data import TrainingData


def test_statistics_that_are_damaged_or_of_other_encoders(tmp_path: Path) -> None:
    task = make_task(make_corpus(tmp_path / "corpus"))
    data = TrainingData.open(task)
    made, folder = data.statistics(task), tmp_path / "statistics"
    read = replace(task, statistics=str(folder))
    write_statistics(replace(made, encoders={"speech": {"name": "other"}}), folder)
    with pytest.raises(MultistillError) as refused:
        data.statistics(read)
    says("the statistics in {} are of {}, and the features are of {}", str(refused.value))
    (folder / INFO).write_text("{")
    with pytest.raises(MultistillError) as refused:
        data.statistics(read)
    says("the statistics in {} are missing or damaged ({}); remove", str(refused.value))
    shutil.rmtree(folder)
    write_statistics(made, folder)
    assert data.statistics(read).clips == read_statistics(folder).clips == made.clips
