"""What a cluster can hold: refusals, concurrent tasks and threads."""

from __future__ import annotations

import pytest

from multistill.errors import MultistillError
from multistill.training.capacity import concurrent_tasks, require, single_node_layout


def test_a_request_that_no_node_can_hold_is_refused():
    nodes = [{"CPU": 3.0, "GPU": 1.0}, {"CPU": 16.0}]
    with pytest.raises(MultistillError, match="too little GPU"):
        require("x", 2, {"CPU": 1.0, "GPU": 1.0}, nodes)
    require("x", 1, {"CPU": 1.0, "GPU": 1.0}, nodes)


def test_concurrent_tasks_are_limited_by_free_resources_and_the_number_of_tasks():
    nodes = [{"CPU": 8.0}] * 2
    need = {"CPU": 1.0}
    assert concurrent_tasks(20, 2, need, nodes, {"CPU": 16.0}) == 8
    assert concurrent_tasks(3, 2, need, nodes, {"CPU": 16.0}) == 3
    assert concurrent_tasks(20, 2, need, nodes, {"CPU": 5.0}) == 2
    assert concurrent_tasks(20, 4, need, nodes, {"CPU": 1.0}) == 1


def test_workers_on_a_single_node_share_its_cores():
    assert single_node_layout(cores=16, groups=1, workers=2) == (1, 4)
    assert single_node_layout(cores=16 // 4, groups=1, workers=2) == (1, 2)
    assert single_node_layout(cores=0, groups=3, workers=2) == (1, 1)
