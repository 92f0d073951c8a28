"""The picture of UAR against cost."""

from __future__ import annotations

from typing import Any

from multistill.report.cost import accuracy_by_cost

BASELINE = {"metrics": {"uar": {"value": 0.25}}}


def model(name: str, role: str, milliseconds: float | None, parameters: int | None) -> Any:
    return {
        "name": name,
        "role": role,
        "metrics": {"uar": {"value": 0.8, "low": 0.7, "high": 0.9}},
        "latency_end_to_end_ms": {"p50": milliseconds} if milliseconds else None,
        "params_end_to_end": parameters,
    }


TRAINED = [model("big", "teacher", 20.0, 4_000_000), model("tiny", "student", 3.0, 90_000)]
CONTROL = model("tiny-control", "control", 3.0, 90_000)
PROBE = model("probe", "probe", None, 1_000)


def test_every_model_is_named_where_its_cost_is_known() -> None:
    svg = accuracy_by_cost([PROBE, *TRAINED, CONTROL], BASELINE, 0.95)
    assert svg is not None
    assert [svg.count(f">{name}<") for name in ("big", "tiny", "probe")] == [2, 2, 1]
    assert "tiny-control" not in svg, "it stands beside its student"
    assert svg.count("var(--control)") == 2 * 2, "with an interval and a dot in both panels"


def test_what_is_not_known_is_not_drawn() -> None:
    unknown = [{**each, "params_end_to_end": None} for each in TRAINED]
    svg = accuracy_by_cost(unknown, BASELINE, 0.95)
    assert svg is not None and "parameters" not in svg.split("aria-label")[1].split(">", 1)[1]
    assert accuracy_by_cost([{**each, "latency_end_to_end_ms": None} for each in unknown],
                            BASELINE, 0.95) is None  # fmt: skip
    assert accuracy_by_cost([PROBE, PROBE], BASELINE, 0.95) is None, "the table says it all"
