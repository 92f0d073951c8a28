"""Buffers of gradients: views that hold the gradient of every trained parameter once."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from multistill.training.step import FlatGradients

CPU = torch.device("cpu")


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 12))
def test_gradients_of_any_bucket_size_are_those_of_one_buffer(
    sizes: list[int], bucket: int
) -> None:
    parameters = [torch.nn.Parameter(torch.ones(size)) for size in sizes]
    parameters[0].requires_grad_(len(sizes) == 1)
    flat = FlatGradients(parameters, CPU, bucket)
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    assert sum(map(len, flat.buffers)) == sum(p.numel() for p in trained) + 2
    for number, parameter in enumerate(trained):
        (number * parameter.sum()).backward()
    flat.loss.add_(7.0)
    flat.stops.fill_(1.0)
    expected = [float(number) for number, p in enumerate(trained) for _ in range(p.numel())]
    assert torch.cat(flat.gradients).tolist() == expected
    largest = max(p.numel() for p in trained)
    assert all(len(gradients) <= max(bucket, largest) for gradients in flat.gradients)
    flat.zero()
    assert not flat.loss and not flat.stops
    assert all(not parameter.grad.any() for parameter in trained)
