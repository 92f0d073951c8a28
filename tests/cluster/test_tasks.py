"""What is asked of one worker for the driver's own computations."""

from __future__ import annotations

import pytest

from multistill.cluster import tasks
from multistill.errors import MultistillError


@pytest.mark.parametrize(
    ("nodes", "asked"),
    [
        ([{"CPU": 4}], (3, 0)),
        ([{"CPU": 1}], (1, 0)),
        ([{"CPU": 2}, {"CPU": 2}, {"CPU": 2}], (1, 0)),  # six in all, but never on one node
        ([{"CPU": 64}, {"CPU": 2, "GPU": 1}], (1, 1)),
        ([{"CPU": 64, "GPU": 8}], (4, 1)),
    ],
)
def test_a_task_fits_on_one_node(nodes: list[dict[str, float]], asked: tuple[int, int]) -> None:
    assert tasks._one_node(nodes) == asked


def test_our_error_comes_back_as_our_sentence(ray_session: None) -> None:
    def refuse() -> None:
        raise MultistillError("the store is damaged; encode again")

    with pytest.raises(MultistillError) as caught:
        tasks.on_cluster(refuse)
    assert str(caught.value) == "the store is damaged; encode again"
    assert type(caught.value) is MultistillError
