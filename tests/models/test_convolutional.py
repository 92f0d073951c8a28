"""The convolutional front: what it costs, what its states depend on, and what it can learn.

Padding, missing modalities and export are tested with all other heads in test_build.py.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from helpers.encoder_states import random_states
from torch import Tensor
from torch.nn.functional import cross_entropy

from multistill.models.build import build, count_parameters
from multistill.models.convolutional import STRIDE, ConvolutionalFront
from multistill.models.presets import PRESETS, resolve
from multistill.models.spec import Paths

TINY = replace(PRESETS["light-student-s"], width=16, feedforward=24, front_channels=4, classifier=8)
LIGHT = [name for name in PRESETS if name.startswith("light-student")]


@pytest.mark.parametrize(
    ("preset", "million"),
    [("light-student-s", 0.1), ("light-student", 0.5), ("light-student-l", 2.5)],
)
def test_presets_have_about_the_size_that_they_are_named_for(preset: str, million: float) -> None:
    with torch.device("meta"):
        count = count_parameters(build(resolve(preset, {}), 80, 0))
    assert count / 1e6 == pytest.approx(million, rel=0.1)


@pytest.mark.parametrize("bands", [1, 5, 80])
def test_states_are_as_many_as_the_mask_says(bands: int) -> None:
    lengths = [1, 4, 5, 33]
    states, mask = random_states(lengths, bands)
    states, mask = ConvolutionalFront(TINY, bands)(states.nan_to_num(0.0), mask)
    assert mask.sum(dim=1).tolist() == [math.ceil(length / STRIDE) for length in lengths]
    assert states.shape == (4, mask.shape[1], TINY.width)
    assert not states[~mask].any()


@pytest.mark.parametrize("preset", LIGHT)
def test_gradients_do_not_depend_on_how_a_batch_is_cut(preset: str) -> None:
    torch.manual_seed(0)
    spec = resolve(preset, {"width": 16, "feedforward": 24, "dropout": 0.0})
    spec = replace(spec, classifier_dropout=0.0, wide_dropout=0.0)
    model = build(spec, 20, 0).double()
    states, mask = random_states([40, 3, 17, 9], 20)
    labels = torch.tensor([0, 1, 2, 3])

    def gradients(*pieces: slice) -> list[Tensor]:
        model.zero_grad()
        for rows in pieces:
            longest = int(mask[rows].sum(dim=1).max())
            logits = model(states[rows, :longest].double(), mask[rows, :longest]).logits
            cross_entropy(logits, labels[rows], reduction="sum").backward()
        return [parameter.grad.clone() for parameter in model.parameters()]  # type: ignore[union-attr]

    whole = gradients(slice(0, 4))
    for first, second in zip(whole, gradients(slice(0, 1), slice(1, 4)), strict=True):
        torch.testing.assert_close(first, second)


def glides(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """A ridge of energy that rises over time, or the same in reverse, and which of the two."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (count,), generator=generator)
    start = 8 + 4 * torch.rand(count, 1, 1, generator=generator)
    time = torch.arange(24.0)[:, None]
    ridge = torch.exp(-((torch.arange(40.0) - start - time / 2).square()) / 4)
    ridge = torch.where(labels[:, None, None] == 0, ridge, ridge.flip(1))
    return 3 * ridge + 0.2 * torch.randn(ridge.shape, generator=generator), labels


def test_it_learns_an_order_that_pooled_statistics_do_not_hold() -> None:
    """The linear path alone cannot tell a rise from a fall: their statistics are the same."""
    states, labels = glides(64, seed=1)
    unheard, truth = glides(200, seed=2)

    def trained(paths: Paths) -> float:
        torch.manual_seed(0)
        spec = replace(TINY, num_classes=2, paths=paths, classifier_dropout=0.0)
        model = build(spec, 40, 0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
        for _ in range(40):
            optimizer.zero_grad()
            cross_entropy(model(states).logits, labels).backward()
            optimizer.step()
        answers = model.eval()(unheard).logits.argmax(dim=1)
        return float((answers == truth).float().mean())

    assert trained("deep") > 0.9
    assert trained("wide") < 0.7
