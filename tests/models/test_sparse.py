"""Selected points, and convolutions that read and write them alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from multistill.models.sparse import (
    PointConv,
    PointNorm,
    Stage,
    TextGuidedSelection,
    multiply_accumulates,
    pool_points,
    top_p,
)

CHANNELS, QUERY = 4, 6


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def feature_map() -> tuple[Tensor, Tensor]:
    """A map and a mask whose last columns are padding, in one chunk all of them."""
    mask = torch.ones(3, 6, 4, dtype=torch.bool)
    mask[1, :, 2:] = False
    mask[2] = False
    return torch.rand(3, CHANNELS, 6, 4) * mask[:, None], mask


def stage(p: float = 0.6, how: str = "straight-through", norm: str = "batch") -> Stage:
    selection = TextGuidedSelection(CHANNELS, QUERY, p, how)  # type: ignore[arg-type]
    return Stage(CHANNELS, 5, norm, selection)  # type: ignore[arg-type]


def point_by_point(module: Stage, x: Tensor, mask: Tensor, query: Tensor) -> Tensor:
    """A stage of batch statistics as a loop over a table of points, in another order.

    The selection is read off as published: sorted weights until their sum reaches p.
    """
    assert module.selection is not None
    select = module.selection
    weights_of = {name: value.detach().numpy() for name, value in module.named_parameters()}
    table: dict[tuple[int, int, int], np.ndarray] = {}
    for n in range(len(x)):
        points = [(i, j) for j in range(x.shape[3]) for i in range(x.shape[2]) if mask[n, i, j]]
        if not points:
            continue
        asked = weights_of["selection.of_query.weight"] @ query[n].numpy()
        score = {}
        for i, j in points:
            inner = weights_of["selection.of_point.weight"] @ x[n, :, i, j].numpy()
            inner = np.tanh(inner + weights_of["selection.of_point.bias"] + asked)
            score[i, j] = float(weights_of["selection.score.weight"][0] @ inner)
        total = sum(math.exp(value) for value in score.values())
        reached = 0.0
        for i, j in sorted(points, key=lambda point: -score[point]):
            if reached >= select.p:
                break
            reached += math.exp(score[i, j]) / total
            table[i, j, n] = x[n, :, i, j].numpy()
    for layer in ("first", "second"):
        kernel = weights_of[f"{layer}.conv.weight"]
        summed = {}
        for i, j, n in reversed(table):
            summed[i, j, n] = sum(
                kernel[:, :, a, b] @ table[i + a - 1, j + b - 1, n]
                for a in range(3)
                for b in range(3)
                if (i + a - 1, j + b - 1, n) in table
            )
        values = np.stack(list(summed.values()))
        mean, deviation = values.mean(axis=0), np.sqrt(values.var(axis=0) + 1e-4)
        table = {key: np.maximum((value - mean) / deviation, 0) for key, value in summed.items()}
    out = np.zeros((len(x), kernel.shape[0], math.ceil(x.shape[2] / 2), math.ceil(x.shape[3] / 2)))
    for (i, j, n), value in table.items():
        out[n, :, i // 2, j // 2] = np.maximum(out[n, :, i // 2, j // 2], value)
    return torch.from_numpy(out).float()


def test_a_stage_is_the_published_one_computed_point_by_point() -> None:
    module = stage().train()
    x, mask = feature_map()
    query = torch.randn(3, QUERY)
    out, kept = module(x, mask, query)
    expected = point_by_point(module, x, mask, query)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)
    assert not kept[2].any()


def test_every_feature_stays_at_its_place_whatever_else_is_in_the_batch() -> None:
    module = stage(norm="layer").eval()
    x, mask = feature_map()
    query = torch.randn(3, QUERY)
    together, _ = module(x, mask, query)
    order = torch.tensor([2, 0, 1])
    shuffled, _ = module(x[order], mask[order], query[order])
    alone = torch.cat(
        [module(x[n : n + 1], mask[n : n + 1], query[n : n + 1])[0] for n in range(3)]
    )
    torch.testing.assert_close(shuffled, together[order])
    torch.testing.assert_close(alone, together)
    # A change at one place is seen at most two points away, in its own chunk.
    moved = x.clone()
    moved[0, :, 0, 0] += 1.0
    dense = Stage(CHANNELS, 5, "layer").eval()
    changed = (dense(moved, mask, None)[0] - dense(x, mask, None)[0]).abs().sum(dim=1) > 0
    assert changed[0, 0, 0]
    assert not changed[1:].any() and not changed[0, 2:].any()


@pytest.mark.parametrize("norm", ["batch", "layer"])
@pytest.mark.parametrize("mode", [True, False])
def test_all_points_give_the_dense_stage_exactly(norm: str, mode: bool) -> None:
    module = stage(p=1.0, norm=norm).train(mode)
    dense = Stage(CHANNELS, 5, norm).train(mode)  # type: ignore[arg-type]
    for mine, other in ((module.first, dense.first), (module.second, dense.second)):
        nn.init.zeros_(other.conv.bias)  # type: ignore[arg-type]
        other.conv.weight = mine.conv.weight
        other.norm.eps = mine.norm.eps
    x, mask = feature_map()
    out, kept = module(x, mask, torch.randn(3, QUERY))
    expected, all_points = dense(x, mask, None)
    assert torch.equal(out, expected) and torch.equal(kept, all_points)


@pytest.mark.parametrize("how", ["straight-through", "scaled"])
def test_attention_and_text_receive_gradients(how: str) -> None:
    module = stage(how=how)
    x, mask = feature_map()
    query = torch.randn(3, QUERY, requires_grad=True)
    out, _ = module(x, mask, query)
    (out * torch.randn_like(out)).sum().backward()
    assert module.selection is not None
    # The bias of the score is left: a softmax does not depend on it.
    named = dict(module.selection.named_parameters()) | {"query": query}
    del named["score.bias"]
    for name, parameter in named.items():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 1e-6, name


def test_top_p_keeps_the_smallest_set_and_never_padding() -> None:
    weights = torch.tensor([[0.1, 0.4, 0.3, 0.2], [0.0, 1.0, 0.0, 0.0], [0.0] * 4])
    mask = torch.tensor([[True] * 4, [True, True, False, False], [False] * 4])
    kept = {p: top_p(weights, mask, p).tolist() for p in (1e-6, 0.65, 0.75, 1.0)}
    assert kept[1e-6][0] == [False, True, False, False]
    assert kept[0.65][0] == [False, True, True, False]
    assert kept[0.75][0] == [False, True, True, True]
    assert kept[1.0] == mask.tolist()
    assert all(rows[1][1] and rows[1][2:] == [False, False] for rows in kept.values())
    assert not any(any(rows[2]) for rows in kept.values())


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 0.999999, 1.0])
def test_a_chunk_keeps_at_least_one_point_and_more_with_p(p: float) -> None:
    mask = torch.rand(20, 64) > 0.5
    mask[:, 0] = True
    weights = torch.rand(20, 64).masked_fill(~mask, -torch.inf).softmax(dim=1)
    kept = top_p(weights, mask, p)
    assert kept.any(dim=1).all() and not (kept & ~mask).any()
    assert ((weights * kept).sum(dim=1) >= p - 1e-5).all()
    assert not (top_p(weights, mask, p / 2) & ~kept).any()


def test_batch_statistics_are_those_of_torch_where_all_points_are_active() -> None:
    ours, theirs = PointNorm(CHANNELS, "batch", 1e-5), nn.BatchNorm2d(CHANNELS)
    for _ in range(3):
        x = torch.randn(2, CHANNELS, 3, 5)
        mask = torch.ones(2, 3, 5, dtype=torch.bool)
        torch.testing.assert_close(ours(x, mask), theirs(x))
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    torch.testing.assert_close(ours.eval()(x, mask), theirs.eval()(x))


def test_a_point_is_normalised_over_its_channels_as_by_torch() -> None:
    ours, theirs = PointNorm(CHANNELS, "layer", 1e-5), nn.LayerNorm(CHANNELS)
    x, mask = feature_map()
    torch.testing.assert_close(ours(x, mask), theirs(x.movedim(1, -1)).movedim(-1, 1))


def test_padding_changes_neither_statistics_nor_values() -> None:
    norm = PointConv(CHANNELS, 5, 3, "batch")
    x, mask = feature_map()
    wider = torch.cat([x, torch.zeros(3, CHANNELS, 6, 2)], dim=3)
    more = torch.cat([mask, torch.zeros(3, 6, 2, dtype=torch.bool)], dim=2)
    out, padded = norm(x, mask), norm(wider, more)
    torch.testing.assert_close(padded[..., :4], out)
    assert not padded[..., 4:].any()


def test_pooling_rounds_up_and_keeps_a_point_of_any() -> None:
    x = torch.zeros(1, 1, 3, 3)
    x[0, 0, 2, 2] = 5.0
    mask = x[:, 0] > 0
    pooled, active = pool_points(x, mask)
    assert pooled[0, 0].tolist() == [[0, 0], [0, 5]]
    assert active[0].tolist() == [[False, False], [False, True]]


def test_cost_is_the_share_of_active_points_of_the_convolutions() -> None:
    x, mask = (tensor[:1] for tensor in feature_map())
    mask[:, :3] = False
    conv = PointConv(CHANNELS, 5, 3, "layer")
    dense, active = multiply_accumulates(conv, x * mask[:, None], mask)
    assert dense == CHANNELS * 5 * 9 * 24
    assert active == dense // 2
