"""Warm start of a search from a smaller finished one: its trials and measured costs are copied."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from multistill.errors import MultistillError
from multistill.search.results import STUDY
from multistill.search.spec import SPEC, SearchSpec
from multistill.search.storage import DRIVER, open_storage, open_study


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
        with contextlib.suppress(MultistillError):
            other = SearchSpec.read(file.parent)
            smaller = other.config.trials <= spec.config.trials
            finished = (file.parent / STUDY).exists()
            if finished and smaller and comparable(other) == comparable(spec):
                previous.append((other.config.trials, file.parent))
    return max(previous, default=(0, None))[1]


def copy_trials(previous: Path, spec: SearchSpec, out: Path) -> None:
    """Copy the finished trials of another search into the study of `spec`.

    `spec` is written to `out` afterwards, so an interrupted copy is not used.
    """
    from multistill.search.cost import ENCODERS

    old = SearchSpec.read(previous)
    source = open_study(open_storage(previous, old.config.storage), old.study, old.directions)
    target = open_study(open_storage(out, spec.config.storage), spec.study, spec.directions)
    trials = [trial for trial in source.get_trials() if trial.state.is_finished()]
    for trial in trials:  # drivers of the other search mean nothing in this one
        trial.user_attrs = {k: v for k, v in trial.user_attrs.items() if k != DRIVER}
    target.add_trials(trials)
    if (previous / ENCODERS).exists():  # old and new costs then share one measurement
        shutil.copy2(previous / ENCODERS, out / ENCODERS)
