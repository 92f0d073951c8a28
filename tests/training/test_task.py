"""Training tasks: their JSON form, and the tasks of ensembles and folds."""

from __future__ import annotations

import json

from helpers.training_corpus import make_task

from multistill.training.task import TrainingTask, fold_tasks, seed_tasks


def test_tasks_survive_a_round_trip_through_json(corpus):
    for task in [*seed_tasks(make_task(corpus, "t"), 3), *fold_tasks(make_task(corpus), range(2))]:
        assert TrainingTask.from_dict(json.loads(json.dumps(task.to_dict()))) == task


def test_a_single_seed_keeps_the_name_and_several_are_numbered(corpus):
    assert [task.name for task in seed_tasks(make_task(corpus, "t"), 2)] == ["t-seed0", "t-seed1"]
    assert seed_tasks(make_task(corpus, "t"), 1)[0].name == "t"
