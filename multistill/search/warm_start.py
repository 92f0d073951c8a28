"""Warm start of a search from a smaller finished one: its trials and measured costs are copied."""

from __future__ import annotations

import contextlib
from pathlib import Path

from multistill.damaged import reading
from multistill.errors import MultistillError
from multistill.search.results import STUDY
from multistill.search.spec import SPEC, SearchSpec
from multistill.search.storage import DRIVER, open_storage, open_study, read_study
from multistill.workspace import read_json, write_json


def find_previous(folder: Path, spec: SearchSpec) -> Path | None:
    """Find the largest finished search in `folder` that differs from this one in `trials` only.

    A job whose number of trials is raised then continues instead of starting from scratch.

    Args:
        folder: of all search artifacts; of a cross-validation, the folds have searches too.
    """

    def comparable(other: SearchSpec) -> object:
        # How the best trials are retrained does not affect any trial.
        config = {**other.config.identity(), "trials": 0, "retrain": 0, "seeds": 0}
        base = other.base
        inputs = (base.manifest, base.features, base.copies, base.soft_targets)
        return config, other.base.identity(), inputs, other.seed

    previous = []
    for file in (*folder.glob(f"[!.]*/{SPEC}"), *folder.glob(f"[!.]*/folds/*/{SPEC}")):
        with contextlib.suppress(OSError, MultistillError):
            other = SearchSpec.read(file.parent)
            smaller = other.config.trials <= spec.config.trials
            finished = (file.parent / STUDY).exists()
            if finished and smaller and comparable(other) == comparable(spec):
                previous.append((other.config.trials, file.parent))
    return max(previous, default=(0, None))[1]


def copy_trials(previous: Path, spec: SearchSpec, out: Path) -> bool:
    """Copy the finished trials of another search into the empty study of `spec`.

    The other search is read only. Where it cannot be read, nothing is copied: this search starts
    from scratch. `spec` is written to `out` afterwards, so an interrupted copy is not used.

    Returns:
        whether the study has each of them once: a database adds a trial twice where its answer
        to the first request was lost.
    """
    from multistill.search.cost import ENCODERS

    costs = None
    try:
        old = SearchSpec.read(previous)
        source = read_study(previous, old.config.storage, old.study)
        trials = [trial for trial in source.get_trials() if trial.state.is_finished()]
        if (previous / ENCODERS).exists():  # old and new costs then share one measurement
            with reading(previous / ENCODERS):
                costs = read_json(previous / ENCODERS)
    except (OSError, MultistillError):  # another account's, or its database is gone
        return True
    for trial in trials:  # drivers of the other search mean nothing in this one
        trial.user_attrs = {k: v for k, v in trial.user_attrs.items() if k != DRIVER}
    url = spec.config.storage
    open_study(open_storage(out, url), spec.study, spec.directions).add_trials(trials)
    if costs is not None:
        write_json(out / ENCODERS, costs)
    # Read anew: Optuna's cache of a database lacks a trial that was added without an answer.
    return len(read_study(out, url, spec.study).get_trials(deepcopy=False)) == len(trials)
