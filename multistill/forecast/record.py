"""The forecast of a job as it is kept in the workspace, and beside what the stages took.

<workspace>/forecasts/<name>-<fingerprint>.json    one per job that ran or was measured
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from multistill.config.resources import PriceConfig
from multistill.damaged import reading
from multistill.errors import MultistillError
from multistill.forecast.estimate import Estimator, StageForecast
from multistill.forecast.rates import Rate
from multistill.forecast.spread import Spread, spread_or_none
from multistill.workspace import file_name, read_json, write_json

GB = 1e9
FOLDER = "forecasts"
MEMORY = {
    "encoder_bytes": "an encoder process",
    "training_bytes": "a training worker",
    "gpu_bytes": "a GPU",
}
"""What has a peak of memory in a forecast, with a title for the terminal."""


def forecast_file(workspace: Path, name: str, key: str) -> Path:
    """Where the forecast of a job with this name and fingerprint is."""
    return workspace / FOLDER / file_name(name, f"-{key}.json")


def read_forecast(file: Path) -> dict[str, Any] | None:
    """The forecast that was kept; None without one, or if the file is damaged."""
    try:
        with reading(file):
            return _checked(read_json(file))
    except (OSError, MultistillError):
        return None


def _checked(found: Any) -> dict[str, Any]:
    """A kept forecast, of which all that is read later can be; raises what wrong content raises."""
    total = {name: Spread.read(found["total"][name]).as_json() for name in found["total"]}
    for name in ("hours", "gpu_hours", "disk_gb"):
        total[name]
    for entry in found["stages"]:
        spread_or_none(entry["seconds"])
    texts = [found["created"], *(entry["stage"] for entry in found["stages"]), *found["missing"]]
    texts += [entry[name] for entry in found["basis"] for name in ("device", "source")]
    if "cost" in total:
        texts.append(found["currency"])
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("a name is no text")
    memory = {name: int(found["memory"][name]) for name in MEMORY if name in found["memory"]}
    return {**found, "total": total, "memory": memory}


def keep_forecast(file: Path, forecast: Mapping[str, Any], left: Sequence[str]) -> None:
    """Write a forecast; of stages that are done, what was forecast before they ran stays.

    Args:
        left: stages that are still to run.
    """
    before = read_forecast(file)
    if before is not None:
        kept = [entry for entry in before["stages"] if entry["stage"] not in left]
        new = {entry["stage"] for entry in kept}
        later = [entry for entry in forecast["stages"] if entry["stage"] not in new]
        forecast = {**forecast, "stages": [*kept, *later]}
    write_json(file, forecast)


def summarize(
    stages: Sequence[StageForecast],
    estimator: Estimator,
    memory: Mapping[str, int],
    checkpoint_bytes: int,
    price: PriceConfig | None,
) -> dict[str, Any]:
    """The forecast of a job: by stage, in total, and what it rests on.

    Returns:
        `created`, `stages`, `total` (hours, gpu_hours, disk_gb and, with a price, cost; each with
        `low`, `value` and `high`), `currency`, `memory` (bytes), `missing`, `basis`.
    """
    hours = Spread.total(stage.seconds for stage in stages if stage.seconds) * (1 / 3600)
    gpu_hours = Spread.total(stage.gpu_hours for stage in stages)
    disk = Spread.total(part for s in stages for part in (s.features_bytes, s.models_bytes))
    disk = disk + Spread(0.0, checkpoint_bytes, checkpoint_bytes)
    total = {"hours": hours, "gpu_hours": gpu_hours, "disk_gb": disk * (1 / GB)}
    if price is not None:
        total["cost"] = hours * price.hour + gpu_hours * price.gpu_hour
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "stages": [stage.as_json() for stage in stages],
        "total": {name: spread.as_json() for name, spread in total.items()},
        "currency": price.currency if price else None,
        "memory": dict(memory),
        "checkpoint_bytes": checkpoint_bytes,
        "missing": [stage.missing for stage in stages if stage.missing],
        "basis": [_basis(rate) for _, rate in sorted(estimator.used.items())],
        "nodes": [dict(node) for node in estimator.machine.nodes],
    }


def _basis(rate: Rate) -> dict[str, str]:
    return {
        "what": rate.title,
        "device": rate.device,
        "source": rate.source,
        "measured": rate.measured,
    }


def beside_truth(
    forecast: Mapping[str, Any] | None, stages: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """What was forecast beside what it took, by stage and in total.

    Args:
        stages: `name` and `seconds` of the stages that ran.

    Returns:
        `created`, `stages` with `stage`, `forecast`, `seconds`, and `total` of those that have
        both; None without a forecast of any of them.
    """
    if forecast is None:
        return None
    spreads = {
        entry["stage"]: spread
        for entry in forecast["stages"]
        if (spread := spread_or_none(entry["seconds"])) is not None
    }
    both = [(stage, spreads[stage["name"]]) for stage in stages if stage["name"] in spreads]
    if not both:
        return None
    return {
        "created": forecast["created"],
        "stages": [
            {
                "stage": stage["name"],
                "forecast": spread.as_json(),
                "seconds": float(stage["seconds"]),
            }
            for stage, spread in both
        ],
        "total": {
            "forecast": Spread.total(spread for _, spread in both).as_json(),
            "seconds": sum(float(stage["seconds"]) for stage, _ in both),
        },
        "disk_gb": forecast["total"]["disk_gb"],
        "basis": forecast["basis"],
    }
