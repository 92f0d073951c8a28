"""Forecasts follow from rates and counts: more work takes longer, sums hold, ends keep order."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multistill.config import FeaturesConfig, SearchConfig
from multistill.config.resources import AllowConfig, PriceConfig
from multistill.forecast.estimate import Counts, Estimator, Machine
from multistill.forecast.keys import training_what
from multistill.forecast.limits import beyond
from multistill.forecast.probe import spaced
from multistill.forecast.pruner import epochs_of_search
from multistill.forecast.rates import KEPT, Rates
from multistill.forecast.record import (
    beside_truth,
    forecast_file,
    keep_forecast,
    read_forecast,
    summarize,
)
from multistill.forecast.spread import Spread
from multistill.forecast.text import forecast_by_stage, forecast_lines

ENCODING = {"of": "encoding", "settings": "some"}
COUNTS = Counts(clips=500, audio_seconds=1800.0, train=300, valid=100, test=100)
MACHINE = Machine([{"CPU": 4.0, "GPU": 0.0}], 2, ["cpu"])
ROW: dict[str, Any] = {
    "model": "teacher",
    "rate": "key",
    "trainings": 2,
    "epochs": 10,
    "workers": 1,
    "cpus_per_worker": 1,
    "gpus_per_worker": None,
    "patience": None,
}


@pytest.fixture
def rates(tmp_path: Path) -> Rates:
    found = Rates(tmp_path)
    encoding = {"seconds_per_audio_second": 0.1, "bytes_per_audio_second": 1e5, "peak_bytes": 1e9}
    found.add(ENCODING, "cpu", "encoding", "probe", encoding)
    training = {
        "train_seconds_per_row": 0.01,
        "valid_seconds_per_row": 0.002,
        "epoch_seconds": 0.1,
        "model_bytes": 4e5,
        "checkpoint_bytes": 1.2e6,
    }
    found.add(training_what("key"), "cpu", "training of teacher", "probe", training)
    return found


def seconds(stage: Any) -> float:
    assert stage.seconds is not None
    assert 0 <= stage.seconds.low <= stage.seconds.value <= stage.seconds.high
    return stage.seconds.value


def test_more_work_takes_longer(rates: Rates) -> None:
    few, many = (
        Estimator(rates, MACHINE, replace(COUNTS, audio_seconds=audio, train=train))
        for audio, train in ((1800.0, 300), (3600.0, 600))
    )
    config = FeaturesConfig(encoders=2)
    shorter, longer = (each.encoding(config, ENCODING) for each in (few, many))
    assert seconds(longer) - seconds(shorter) == pytest.approx(0.1 * 1800 / 2)
    assert longer.features_bytes.value == pytest.approx(2 * shorter.features_bytes.value)
    assert seconds(many.training("teacher", [ROW])) > seconds(few.training("teacher", [ROW]))


def test_trainings_share_the_cores_and_the_last_one_is_not_divided(rates: Rates) -> None:
    estimator = Estimator(rates, MACHINE, COUNTS)
    one, two, four = (
        seconds(estimator.training("teacher", [{**ROW, "trainings": number}]))
        for number in (1, 2, 4)
    )
    assert one == pytest.approx(two)  # side by side on two cores
    epoch = 300 * 0.01 + 100 * 0.002 + 0.1
    assert four - two == pytest.approx(10 * epoch)
    halves = [{**ROW, "trainings": 2}, {**ROW, "model": "other", "trainings": 2}]
    assert seconds(estimator.training("teacher", halves)) == pytest.approx(four)


def test_gpus_cost_what_they_are_used(rates: Rates) -> None:
    nodes = [{"CPU": 8.0, "GPU": 4.0}]
    estimator = Estimator(rates, Machine(nodes, 8, ["other", "cpu"]), COUNTS)
    stage = estimator.training("teacher", [{**ROW, "gpus_per_worker": 1.0, "trainings": 4}])
    assert stage.gpu_hours.value * 3600 == pytest.approx(4 * 10 * 3.3)
    price = PriceConfig(gpu_hour=3.0, hour=1.0)
    found = summarize([stage], estimator, {}, 0, price)
    expected = 3 * stage.gpu_hours.value + seconds(stage) / 3600
    assert found["total"]["cost"]["value"] == pytest.approx(expected)
    assert [entry["device"] for entry in found["basis"]] == ["cpu"]


def test_what_was_never_measured_is_said(rates: Rates) -> None:
    estimator = Estimator(rates, MACHINE, COUNTS)
    stage = estimator.training("students", [{**ROW, "model": "audio", "rate": "unknown"}])
    assert stage.seconds is None
    found = summarize([stage], estimator, {}, 0, None)
    assert found["missing"] == ["training of audio"]
    assert "not known" in beyond(AllowConfig(hours=1e6), found)[0]


def test_a_search_takes_its_trials_at_their_concurrency(rates: Rates) -> None:
    estimator = Estimator(rates, MACHINE, COUNTS)
    trial = {**ROW, "trainings": 8}

    def of(**settings: Any) -> float:
        config = SearchConfig(trials=8, grace_epochs=2, **settings)
        return seconds(estimator.search(config, trial, [ROW]))

    assert of(concurrent=1) > of(concurrent=2) > seconds(estimator.training("search", [ROW]))


@given(
    st.integers(1, 60), st.integers(1, 40), st.integers(1, 10), st.integers(2, 4), st.integers(1, 9)
)
def test_the_pruner_spends_at_least_the_grace_and_at_most_the_budget(
    trials: int, epochs: int, grace: int, reduction: int, more: int
) -> None:
    spent = epochs_of_search(trials, epochs, grace, reduction)
    assert trials * min(grace, epochs) <= spent.low <= spent.value <= spent.high <= trials * epochs
    assert epochs_of_search(trials + more, epochs, grace, reduction).value > spent.value


def test_the_pruner_counts_as_one_that_sorts_every_rung_anew() -> None:
    for trials, epochs, grace, reduction in ((1, 9, 1, 2), (60, 27, 2, 3), (90, 16, 1, 4)):
        spent = [asha_by_definition(trials, epochs, grace, reduction, seed) for seed in range(200)]
        found = epochs_of_search(trials, epochs, grace, reduction)
        assert found.value == sum(spent) / 200
        assert (found.low, found.high) == (
            min(sorted(spent)[20], found.value),
            max(sorted(spent)[180], found.value),
        )


def asha_by_definition(trials: int, epochs: int, grace: int, reduction: int, seed: int) -> float:
    """Epochs of one simulated search; each cutoff is the quantile of all results of the rung."""
    generator = random.Random(seed)
    rungs: dict[int, list[float]] = {}
    while grace < epochs:
        rungs[grace] = []
        grace *= reduction
    spent = 0
    for _ in range(trials):
        result, stopped = generator.random(), epochs
        for epoch, results in rungs.items():
            results.append(result)
            below = results[:-1]
            if below and result < np.quantile(below, 1 - 1 / reduction):
                stopped = epoch
                break
        spent += stopped
    return float(spent)


def test_a_pruner_saves_about_what_successive_halving_does() -> None:
    spent = epochs_of_search(200, 27, 3, 3)
    # In the limit a third goes on at each rung: 3 + 6/3 + 18/9 epochs a trial.
    assert spent.value / 200 == pytest.approx(7, rel=0.15)


def test_runs_go_before_probes_and_the_oldest_goes(rates: Rates) -> None:
    for number in range(KEPT + 2):
        rates.add(ENCODING, "cpu", "encoding", "run", {"seconds_per_audio_second": number + 1.0})
    rate = rates.find(ENCODING, "cpu")
    assert rate is not None
    assert rate.source == "run"
    assert list(rate.values["seconds_per_audio_second"]) == [3.0, 4.0, 5.0, 6.0, 7.0]
    assert rates.find(ENCODING, "another") is None


def test_a_damaged_file_of_rates_is_measured_again(rates: Rates) -> None:
    for file in rates.folder.iterdir():
        file.write_text("{", encoding="utf-8")
    assert rates.find(ENCODING, "cpu") is None
    rates.add(ENCODING, "cpu", "encoding", "probe", {"seconds_per_audio_second": 1.0})
    assert rates.find(ENCODING, "cpu") is not None


def test_what_was_forecast_before_a_stage_ran_is_kept(rates: Rates, tmp_path: Path) -> None:
    file = forecast_file(tmp_path, "a job", "key")
    estimator = Estimator(rates, MACHINE, COUNTS)
    stages = [estimator.other("prepare"), estimator.training("teacher", [ROW])]
    keep_forecast(file, summarize(stages, estimator, {}, 0, None), ["prepare", "teacher"])
    longer = Estimator(rates, MACHINE, replace(COUNTS, train=900))
    later = summarize([longer.training("teacher", [ROW])], longer, {}, 0, None)
    keep_forecast(file, later, ["teacher"])
    found = read_forecast(file)
    assert found is not None
    assert [entry["stage"] for entry in found["stages"]] == ["prepare", "teacher"]
    took = [{"name": "prepare", "seconds": 2.0}, {"name": "teacher", "seconds": 30.0}]
    both = beside_truth(found, [*took, {"name": "report", "seconds": 1.0}])
    assert both is not None
    assert both["total"]["seconds"] == 32.0
    parts = [entry["forecast"]["value"] for entry in both["stages"]]
    assert both["total"]["forecast"]["value"] == pytest.approx(sum(parts))
    assert parts[1] == pytest.approx(seconds(longer.training("teacher", [ROW])))


def test_a_limit_is_held_against_the_likeliest_value(rates: Rates) -> None:
    estimator = Estimator(rates, MACHINE, COUNTS)
    found = summarize([estimator.training("teacher", [ROW])], estimator, {}, 0, None)
    hours = found["total"]["hours"]["value"]
    assert beyond(AllowConfig(hours=hours * 1.01), found) == []
    [phrase] = beyond(AllowConfig(hours=hours * 0.99), found)
    assert "resources.allow.hours" in phrase
    assert beyond(AllowConfig(), None) == []
    assert beyond(AllowConfig(hours=1), None)


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(1, 5))
def test_the_ends_of_measurements_keep_their_order(values: list[float], factor: float) -> None:
    spread = Spread.of(values, factor)
    assert spread.low <= min(values) <= max(values) <= spread.high
    assert spread.low <= spread.value <= spread.high


@given(st.lists(st.floats(0.1, 60), min_size=1, max_size=300), st.integers(1, 40))
def test_clips_of_a_probe_are_as_long_as_those_of_the_corpus(
    durations: list[float], count: int
) -> None:
    places = spaced(durations, count)
    assert len(places) == len(set(places)) == min(count, len(durations))
    ordered = sorted(durations)
    chosen = sorted(durations[place] for place in places)
    ranks = [ordered.index(value) / len(ordered) for value in chosen]
    assert all(
        abs(rank - n / len(chosen)) <= 1 / len(chosen) or ordered.count(v) > 1
        for n, (rank, v) in enumerate(zip(ranks, chosen, strict=True))
    )


def test_sizes_of_a_probe_stay_when_a_run_has_shown_the_times(rates: Rates) -> None:
    rates.add(ENCODING, "cpu", "encoding", "probe", {"start_seconds": 3.0})
    rates.add(ENCODING, "cpu", "encoding", "run", {"seconds_per_audio_second": 0.2})
    rate = rates.find(ENCODING, "cpu")
    assert rate is not None
    assert rate.largest("peak_bytes") == 1e9
    assert rate.get("start_seconds") is None
    spread = rate.get("seconds_per_audio_second")
    assert spread is not None
    assert spread.value == 0.2


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a JSON value has values."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    below = [
        place
        for key, inner in items
        for place in [
            (*at, key),
            *(places(inner, (*at, key)) if isinstance(inner, dict | list) else ()),
        ]
    ]
    return below


def altered(content: Any, data: st.DataObject) -> Any:
    """A copy with one value replaced or removed."""
    copy = json.loads(json.dumps(content))
    *above, last = data.draw(st.sampled_from(places(content)))
    holder = copy
    for key in above:
        holder = holder[key]
    if data.draw(st.booleans()):
        del holder[last]
    else:
        holder[last] = data.draw(JSON_VALUES)
    return copy


@settings(max_examples=60)
@given(data=st.data())
def test_altered_rates_and_forecasts_are_left_out_or_read(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("altered")
    found = Rates(folder)
    found.add(ENCODING, "cpu", "encoding", "probe", {"seconds_per_audio_second": 0.1})
    estimator = Estimator(found, MACHINE, COUNTS)
    stages = [estimator.encoding(FeaturesConfig(), ENCODING), estimator.other("report")]
    whole = summarize(stages, estimator, {"encoder_bytes": 5}, 0, PriceConfig(hour=1.0))
    file = forecast_file(folder, "job", "key")
    file.parent.mkdir()
    file.write_text(json.dumps(altered(whole, data)))
    [rate] = found.folder.glob("*.json")
    rate.write_text(json.dumps(altered(json.loads(rate.read_text()), data)))
    Estimator(found, MACHINE, COUNTS).encoding(FeaturesConfig(), ENCODING)
    kept = read_forecast(file)
    both = beside_truth(kept, [{"name": "features", "seconds": 3.0}])
    states = [{"state": "waiting"}]
    facts = {"forecast": kept, "forecast_and_truth": both, "stages": states}
    forecast_lines(facts)
    forecast_by_stage(facts)
    beyond(AllowConfig(hours=1, cost=1), kept)
    found.add(ENCODING, "cpu", "encoding", "run", {"seconds_per_audio_second": 0.1})
    keep_forecast(file, whole, ["features"])
    assert read_forecast(file) is not None
