"""How many trials run at the same time, and which searches can never start. No Ray."""

from __future__ import annotations

import pytest

from multistill.config import SearchConfig
from multistill.search.capacity import capacity_problems, concurrency


@pytest.fixture(autouse=True)
def many_cores(monkeypatch):
    """Let the nodes decide, not the cores of the machine that runs the tests."""
    monkeypatch.setattr("multistill.search.capacity.cores", lambda: 64)


@pytest.mark.parametrize(
    ("config", "nodes", "expected"),
    [
        (SearchConfig(trials=40), [{"CPU": 8.0}], 8),
        (SearchConfig(trials=3), [{"CPU": 8.0}], 3),
        (SearchConfig(trials=40, concurrent=2), [{"CPU": 8.0}], 2),
        (SearchConfig(trials=40, cpus_per_trial=3), [{"CPU": 4.0}, {"CPU": 8.0}], 3),
        (SearchConfig(trials=40, gpus_per_trial=0.5), [{"CPU": 8.0, "GPU": 2.0}], 4),
        (SearchConfig(trials=40, gpus_per_trial=0.4), [{"CPU": 8.0, "GPU": 1.0}], 2),
        (SearchConfig(trials=40, gpus_per_trial=2), [{"CPU": 8.0, "GPU": 3.0}] * 2, 2),
        (SearchConfig(trials=40, cpus_per_trial=3), [{"CPU": 2.0}] * 4, 0),
        (SearchConfig(trials=40), [{"CPU": 8.0, "GPU": 2.0}], 2),
        (SearchConfig(trials=40, gpus_per_trial=0), [{"CPU": 8.0, "GPU": 2.0}], 8),
        (SearchConfig(trials=40, cpus_per_trial=0.1), [{"CPU": 1.0}], 10),
    ],
)
def test_concurrency_is_what_fits_on_the_nodes(config, nodes, expected):
    assert concurrency(config, nodes) == expected


@pytest.mark.parametrize(
    ("config", "nodes", "message"),
    [
        (SearchConfig(gpus_per_trial=2), [{"CPU": 8.0, "GPU": 1.0}] * 3, "largest node has 1"),
        (SearchConfig(cpus_per_trial=16), [{"CPU": 8.0}], "requests 16 CPUs"),
        (SearchConfig(gpus_per_trial=1.5), [{"CPU": 8.0, "GPU": 4.0}], "neither a whole number"),
        (
            SearchConfig(cpus_per_trial=4, gpus_per_trial=1),
            [{"CPU": 8.0}, {"CPU": 1.0, "GPU": 1.0}],
            "no single node",
        ),
        (SearchConfig(storage="study.db"), [{"CPU": 8.0}], "not an address"),
    ],
)
def test_a_request_that_can_never_be_met_is_described(config, nodes, message):
    problems = capacity_problems(config, nodes)
    assert any(message in problem for problem in problems), problems
    assert capacity_problems(SearchConfig(), [{"CPU": 8.0}]) == []


def test_trials_of_several_workers_take_whole_gpus():
    with pytest.raises(ValueError, match="a fraction of a GPU works for trials of one worker"):
        SearchConfig(workers_per_trial=2, gpus_per_trial=0.5)
    nodes = [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 2.0}]
    config = SearchConfig(workers_per_trial=3, gpus_per_trial=1)
    assert concurrency(config, nodes) == 1, "its workers may run on several nodes"
    assert capacity_problems(config, nodes) == []
    four = config.model_copy(update={"workers_per_trial": 4})
    assert "no room for 4 workers" in capacity_problems(four, nodes)[0]


def test_a_single_node_runs_no_more_trials_than_it_has_cores(monkeypatch):
    monkeypatch.setattr("multistill.search.capacity.cores", lambda: 4)
    node = {"CPU": 16.0}
    assert concurrency(SearchConfig(trials=40), [node]) == 4
    assert concurrency(SearchConfig(trials=40, cpus_per_trial=1.5), [node]) == 2
    assert concurrency(SearchConfig(trials=40, cpus_per_trial=8), [node]) == 1
    assert concurrency(SearchConfig(trials=40, concurrent=6), [node]) == 6
    assert concurrency(SearchConfig(trials=40), [node, node]) == 32, "cores of other machines"
    assert concurrency(SearchConfig(trials=40, cpus_per_trial=32), [node]) == 0
