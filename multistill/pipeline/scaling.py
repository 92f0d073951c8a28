"""`plan --hours --nodes`: the same job over more audio and more machines like this one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from multistill.config import JobConfig
from multistill.errors import UsageError
from multistill.forecast.estimate import Counts, Estimator, Machine
from multistill.forecast.keys import encoding_key
from multistill.forecast.rates import Rates
from multistill.forecast.scale import idle_share, most_workers, parts, strains
from multistill.hardware import Resources
from multistill.pipeline.forecasts import counts_of, forecast, machine_of
from multistill.pipeline.step import Artifacts, Step


def forecast_at(
    job: JobConfig,
    steps: Sequence[Step],
    artifacts: Artifacts,
    resources: Resources,
    hours: float | None,
    nodes: int | None,
) -> dict[str, Any] | None:
    """The forecast of all stages at another size, with what breaks first.

    Args:
        hours: of audio, with clips, splits and folds in the proportions of the manifest; None for
            as many as there are.
        nodes: machines like this one (`resources.wait_for`: like that one); None for one.

    Returns:
        as `forecast`, with `scale`: hours, nodes, workers, `idle_share` of the encoders,
        `most_workers` that one driver keeps busy, `strains`, and `parts` into which the corpus is
        divided so that none is beyond its bound; None without any rate.

    Raises:
        UsageError: `prepare` has not run.
    """
    if "manifest" not in artifacts:
        raise UsageError(
            "--hours and --nodes enlarge the corpus that `prepare` read, which has not run; run "
            "`multistill run JOB --until prepare` first"
        )
    root = Path(steps[0].workspace.root)
    machine = _machine(machine_of(job, resources), nodes or 1)
    counts = counts_of(artifacts["manifest"])
    if hours is not None:
        counts = _enlarged(counts, 3600 * hours / counts.audio_seconds)
    estimator = Estimator(Rates(root), machine, counts)
    names = [step.name for step in steps]
    found = forecast(job, steps, artifacts, names, resources, estimator=estimator)
    size = estimator.size(job.features, encoding_key(job))
    if found is None or size is None:
        return found
    memory = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    disk = float(shutil.disk_usage(root).total)
    return {
        **found,
        "scale": {
            "hours": size.hours,
            "nodes": size.nodes,
            "workers": size.workers,
            "idle_share": idle_share(size),
            "most_workers": most_workers(size),
            "strains": [each.as_json() for each in strains(size, memory, disk)],
            "parts": parts(size, memory, disk),
        },
    }


def _machine(machine: Machine, nodes: int) -> Machine:
    node = dict(machine.nodes[0])
    if nodes > 1:  # Ray counts logical CPUs, of which a small machine has more than cores
        node["CPU"] = min(node["CPU"], float(machine.cores))
    return replace(machine, nodes=[node] * nodes)


def _enlarged(counts: Counts, times: float) -> Counts:
    return replace(
        counts,
        audio_seconds=counts.audio_seconds * times,
        **{
            name: round(getattr(counts, name) * times)
            for name in ("clips", "train", "valid", "test")
        },
    )
