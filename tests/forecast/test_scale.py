"""What a corpus strains: bounds are reached where they are said to be, parts stay within them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multistill.config import FeaturesConfig
from multistill.forecast.estimate import Counts, Estimator, Machine
from multistill.forecast.rates import Rates
from multistill.forecast.scale import (
    DRIVER_SECONDS_PER_SHARD,
    Size,
    extrapolated,
    idle_share,
    most_workers,
    parts,
    strains,
)

MEMORY, DISK = 64e9, 8e12


@st.composite
def sizes(draw: st.DrawFn) -> Size:
    return Size(
        hours=draw(st.floats(1, 1e7)),
        workers=draw(st.integers(1, 100_000)),
        nodes=draw(st.integers(1, 20_000)),
        worker_rate=draw(st.floats(1, 5_000)),
        stored_bytes=draw(st.floats(100, 1e6)),
        shard_seconds=draw(st.floats(60, 7_200)),
        clip_seconds=draw(st.floats(0.5, 30)),
    )


@given(sizes())
def test_an_amount_is_at_its_bound_at_the_hours_that_are_said(size: Size) -> None:
    for each in strains(size, MEMORY, DISK):
        there = strains(replace(size, hours=each.hours), MEMORY, DISK)
        [same] = [other for other in there if other.what == each.what]
        assert same.amount == pytest.approx(same.bound)


@given(sizes())
def test_no_part_is_beyond_a_bound_or_lets_its_encoders_wait(size: Size) -> None:
    number = parts(size, MEMORY, DISK)
    part = replace(
        size,
        hours=size.hours / number,
        workers=max(1, size.workers // number),
        nodes=max(1, size.nodes // number),
    )
    assert all(each.amount <= 1.000001 * each.bound for each in strains(part, MEMORY, DISK))
    assert part.workers <= max(1, most_workers(part))
    if most_workers(part) >= 1:
        assert idle_share(part) == pytest.approx(0, abs=1e-9)


def test_a_driver_feeds_so_many_workers_and_no_more(tmp_path: Path) -> None:
    rates = Rates(tmp_path)
    what = {"of": "encoding", "settings": "some"}
    rates.add(what, "gpu", "encoding", "run", {"seconds_per_audio_second": 0.001})
    counts = Counts(clips=10**9, audio_seconds=3.6e9, train=1, valid=1, test=1)
    config = FeaturesConfig(shard_seconds=1200.0)
    fed = 3e6 * DRIVER_SECONDS_PER_SHARD
    for nodes, seconds in ((10, 3.6e5), (10_000, fed)):
        machine = Machine([{"CPU": 1.0, "GPU": 0.0}] * nodes, 1, ["gpu"])
        found = Estimator(rates, machine, counts).encoding_seconds(config, what)
        assert found is not None
        assert found.value == pytest.approx(seconds, rel=1e-3)


@given(st.floats(0, 1e3), st.floats(1e-3, 10))
def test_a_line_is_extrapolated(start: float, each: float) -> None:
    points = [(float(size), start + each * size) for size in (10, 30, 100, 1000)]
    for _, expected, truth in extrapolated(points):
        assert expected == pytest.approx(truth)
