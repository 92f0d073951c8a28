"""Measured rates of a workspace: how long a clip, a training row or a start took, and on what.

    <workspace>/rates/<key>.json    one file per thing that was measured and kind of device

A rate is measured by `plan --measure`, or by a run as it finishes a stage. The newest few
measurements of each are kept; those of runs go before those of probes, since a run includes what a
probe cannot see: other workers on the same machine, storage under load.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from multistill.damaged import reading
from multistill.errors import MultistillError
from multistill.forecast.spread import Spread
from multistill.workspace import fingerprint, read_json, write_json

FOLDER = "rates"
KEPT = 5
"""Measurements of each source that a file keeps."""
PROBE_FACTOR = 1.3
RUN_FACTOR = 1.15
"""Within which a rate is repeated, at least, whatever the measurements say: a probe is short."""

Source = Literal["probe", "run"]


@dataclass(frozen=True)
class Rate:
    """Measurements of one thing on one kind of device.

    Attributes:
        title: of the thing, e.g. "training of teacher".
        source: of the measurements that are used.
        measured: when the newest was made, ISO 8601.
        values: by quantity, all that was measured.
    """

    title: str
    device: str
    source: Source
    measured: str
    values: Mapping[str, Sequence[float]]

    def get(self, quantity: str) -> Spread | None:
        """A quantity with its spread; None where it was not measured."""
        values = self.values.get(quantity)
        factor = PROBE_FACTOR if self.source == "probe" else RUN_FACTOR
        return Spread.of(values, factor) if values else None

    def largest(self, quantity: str) -> float | None:
        """Of sizes, the largest measurement."""
        return max(self.values[quantity]) if self.values.get(quantity) else None


class Rates:
    """The rates of a workspace."""

    def __init__(self, workspace: Path) -> None:
        self.folder = workspace / FOLDER

    def find(self, what: Mapping[str, Any], device: str) -> Rate | None:
        """The rate of a thing on a kind of device; of runs if there are any, else of probes."""
        content = self._read(what, device)
        sources: dict[Source, list[dict[str, Any]]] = {"run": [], "probe": []}
        for entry in content["measurements"]:
            sources[entry["source"]].append(entry)
        source: Source = "run" if sources["run"] else "probe"
        if not sources[source]:
            return None
        values = _by_quantity(sources[source])
        # A run does not measure every size; its times are whole, so a probe's would count twice.
        sizes = {
            name: found
            for name, found in _by_quantity(sources["probe"]).items()
            if name.endswith("_bytes")
        }
        newest = sources[source][-1]["measured"]
        return Rate(content["title"], device, source, newest, {**sizes, **values})

    def add(
        self,
        what: Mapping[str, Any],
        device: str,
        title: str,
        source: Source,
        values: Mapping[str, float],
    ) -> None:
        """Keep a measurement; the oldest of its source goes when there are many."""
        content = self._read(what, device)
        measured = datetime.now(UTC).isoformat(timespec="seconds")
        entry = {"source": source, "measured": measured, "values": dict(values)}
        of_source = [each for each in content["measurements"] if each["source"] == source]
        others = [each for each in content["measurements"] if each["source"] != source]
        write_json(
            self._file(what, device),
            {
                "title": title,
                "what": dict(what),
                "device": device,
                "measurements": [*others, *[*of_source, entry][-KEPT:]],
            },
        )

    def _file(self, what: Mapping[str, Any], device: str) -> Path:
        return self.folder / f"{fingerprint('rate', 1, [dict(what), device], {})}.json"

    def _read(self, what: Mapping[str, Any], device: str) -> dict[str, Any]:
        empty: dict[str, Any] = {"title": "", "measurements": []}
        file = self._file(what, device)
        try:
            with reading(file):
                return _checked(read_json(file))
        except (OSError, MultistillError):  # damaged ones are measured again
            return empty


def _checked(content: Any) -> dict[str, Any]:
    """The content of a file of rates; raises what wrong content raises."""
    measurements = [
        {
            "source": entry["source"],
            "measured": str(entry["measured"]),
            "values": {str(name): float(value) for name, value in entry["values"].items()},
        }
        for entry in content["measurements"]
    ]
    values = [value for entry in measurements for value in entry["values"].values()]
    if not all(0 <= value < math.inf for value in values):
        raise ValueError("a measurement is negative or not finite")
    if not {entry["source"] for entry in measurements} <= set(get_args(Source)):
        raise ValueError("a measurement is of no known source")
    return {"title": str(content["title"]), "measurements": measurements}


def _by_quantity(measurements: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    names = {name for entry in measurements for name in entry["values"]}
    return {
        name: [entry["values"][name] for entry in measurements if name in entry["values"]]
        for name in sorted(names)
    }


def device_name() -> str:
    """The kind of device that models run on here: a GPU's name, else the processor's."""
    from multistill.hardware import cores, local_gpus

    if local_gpus():
        import torch

        if torch.cuda.is_available():
            return torch.cuda.get_device_name(0)
    return f"{processor_name()}, {cores()} cores"


def processor_name() -> str:
    """The model of this machine's processor."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name.strip() == "model name":
                    return " ".join(value.split())
    except OSError:
        pass
    return platform.processor() or os.uname().machine
