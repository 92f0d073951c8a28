"""A forecast in words, for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from multistill.forecast.record import MEMORY
from multistill.forecast.spread import Spread, spread_or_none
from multistill.wording import counted

UNMEASURED = "nothing measured here yet: `multistill plan JOB --measure` takes about a minute"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours.

    Examples:
        >>> duration(42), duration(600), duration(7200)
        ('42 s', '10 min', '2.0 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def forecast_by_stage(facts: Mapping[str, Any]) -> dict[str, str]:
    """A cell per stage of `plan`: of a finished stage what had been forecast."""
    cells: dict[str, str] = {}
    for entry in (facts["forecast"] or {"stages": ()})["stages"]:
        spread = spread_or_none(entry["seconds"])
        cells[entry["stage"]] = _time(spread) if spread else "not known"
    for entry in (facts["forecast_and_truth"] or {"stages": ()})["stages"]:
        cells[entry["stage"]] = _time(Spread.read(entry["forecast"]))
    return cells


def forecast_lines(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Title and text of the lines under the table of stages."""
    lines = []
    if (forecast := facts["forecast"]) is not None:
        lines.append(("forecast", "; ".join(_totals(forecast))))
        if forecast["memory"]:
            lines.append(("memory", _memory(forecast["memory"])))
        if forecast["missing"]:
            missing = ", ".join(forecast["missing"])
            lines.append(("", f"without {missing}: `plan --measure`, or a run here, measures it"))
        for device in dict.fromkeys((e["device"], e["source"]) for e in forecast["basis"]):
            lines.append(("measured", f"by a {device[1]} on {device[0]}"))
        if "scale" in forecast:
            lines += _scale(forecast["scale"])
    elif any(stage["state"] != "done" for stage in facts["stages"]):
        lines.append(("forecast", UNMEASURED))
    if (both := facts["forecast_and_truth"]) is not None:
        total = both["total"]
        spread = Spread.read(total["forecast"])
        lines.append(("took", f"{duration(total['seconds'])}, forecast {_time(spread)}"))
    return lines


def _scale(scale: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What becomes of a corpus of another size."""
    share = scale["idle_share"]
    waiting = f"; they wait for the driver {100 * share:.0f} % of the time" if share > 0 else ""
    lines = [
        (
            "size",
            f"{scale['hours']:,.0f} h of audio, {counted(scale['nodes'], 'node')}, "
            f"{counted(scale['workers'], 'encoder')}{waiting}",
        )
    ]
    for strain in scale["strains"]:
        text = f"{strain['amount']:,.3g} {strain['unit']} of {strain['bound']:,.3g}"
        if strain["beyond"]:
            text += f", too much from {strain['hours']:,.0f} h on"
        lines.append(("", f"{strain['what']}: {text}"))
    if scale["parts"] > 1:
        lines.append(("", f"in {scale['parts']:,} parts, each a job, none is beyond"))
    return lines


def _totals(forecast: Mapping[str, Any]) -> list[str]:
    total = forecast["total"]
    parts = [_time(Spread.read(total["hours"]) * 3600)]
    if total["gpu_hours"]["value"]:
        parts.append(f"{_number(total['gpu_hours'])} GPU-hours")
    parts.append(f"{_number(total['disk_gb'])} GB of disk")
    if "cost" in total:
        parts.append(f"{_number(total['cost'])} {forecast['currency']}")
    return parts


def _memory(memory: Mapping[str, int]) -> str:
    return ", ".join(f"{MEMORY[name]} {size / 1e9:.2g} GB" for name, size in memory.items())


def _time(spread: Spread) -> str:
    return f"{duration(spread.value)} ({duration(spread.low)} to {duration(spread.high)})"


def _number(spread: Mapping[str, float]) -> str:
    return f"{spread['value']:.3g} ({spread['low']:.3g} to {spread['high']:.3g})"
