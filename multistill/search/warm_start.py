"""What a search takes over from a smaller one that is finished: trials, and what they cost."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from multistill.errors import MultistillError
from multistill.search.request import FILE, Request
from multistill.search.results import STUDY
from multistill.search.storage import open_storage, open_study


def find_previous(folder: Path, request: Request) -> Path | None:
    """The largest finished search beside this one that differs from it in `trials` only.

    So a job whose number of trials is raised goes on instead of starting anew.
    """

    def kin(other: Request) -> object:
        # What is done with the best trials decides no trial.
        config = {**other.config.identity(), "trials": 0, "retrain": 0, "seeds": 0}
        files = (other.base.manifest, other.base.features, other.base.soft_targets)
        return config, other.base.identity(), files, other.seed

    found = []
    for file in folder.glob(f"[!.]*/{FILE}"):
        with contextlib.suppress(MultistillError):
            other = Request.read(file.parent)
            smaller = other.config.trials <= request.config.trials
            if (file.parent / STUDY).exists() and smaller and kin(other) == kin(request):
                found.append((other.config.trials, file.parent))
    return max(found, default=(0, None))[1]


def copy_trials(start: Path, request: Request, out: Path) -> None:
    """Copy the ended trials of another search. Nothing names the copy until it is whole."""
    from multistill.search.cost import ENCODERS
    from multistill.search.searcher import DRIVER

    old = Request.read(start)
    source = open_study(open_storage(start, old.config.storage), old.study, old.directions)
    target = open_study(
        open_storage(out, request.config.storage), request.study, request.directions
    )
    trials = [trial for trial in source.get_trials() if trial.state.is_finished()]
    for trial in trials:  # the drivers of the other search are none of this one's
        trial.user_attrs = {k: v for k, v in trial.user_attrs.items() if k != DRIVER}
    target.add_trials(trials)
    if (start / ENCODERS).exists():  # old and new costs are of one measurement
        shutil.copy2(start / ENCODERS, out / ENCODERS)
