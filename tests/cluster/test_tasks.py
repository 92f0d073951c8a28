"""Resources and errors of the tasks that run the driver's own computations."""

from __future__ import annotations

import pytest

from multistill.cluster import tasks
from multistill.errors import MultistillError


@pytest.mark.parametrize(
    ("nodes", "requested"),
    [
        ([{"CPU": 4}], (3, 0)),
        ([{"CPU": 1}], (1, 0)),
        ([{"CPU": 2}, {"CPU": 2}, {"CPU": 2}], (1, 0)),  # six in total, but two per node
        ([{"CPU": 64}, {"CPU": 2, "GPU": 1}], (1, 1)),
        ([{"CPU": 64, "GPU": 8}], (4, 1)),
    ],
)
def test_a_task_fits_on_one_node(nodes: list[dict[str, float]], requested: tuple[int, int]) -> None:
    assert tasks._task_resources(nodes) == requested


def test_a_multistill_error_is_raised_without_rays_traceback(ray_session: None) -> None:
    def refuse() -> None:
        raise MultistillError("the store is damaged; encode again")

    with pytest.raises(MultistillError) as caught:
        tasks.on_cluster(refuse)
    assert str(caught.value) == "the store is damaged; encode again"
    assert type(caught.value) is MultistillError
