"""The Optuna study of a search: its storage and the attributes that the search adds to it.

    <out>/study.log        Optuna's journal: one JSON line per event, appended and flushed
    <out>/study.log.lock   held while a line is appended

Several drivers share the study, and each of them can be killed at any time. The study is
the only state of a search; nothing here is a pickle.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multistill.damaged import reading
from multistill.databases import explain, problem_of
from multistill.errors import MultistillError, UsageError
from multistill.search.locks import StudyLock
from multistill.tracking.redaction import redact

if TYPE_CHECKING:
    import optuna

JOURNAL = "study.log"

DRIVER = "driver"
"""Attribute of a trial: name of the driver that runs it."""
OUTCOME = "outcome"
"""Attribute of a finished trial: `reason`, `epochs`, `seconds` and, with two objectives, `cost`."""
RUNS = "runs"
"""Attribute of a study whose damaged journal was cut: the suffix of its trials' runs since then."""
EXPERIMENT = "round-"
"""Prefix of an attribute of the study: what one Tune experiment took (`seconds`, `training`,
`slots`, `waits`), so that a later process of the same search can add it up."""


def open_storage(folder: Path, url: str | None) -> optuna.storages.BaseStorage:
    """Open the storage of the study.

    Args:
        url: a database, for which the search waits if it goes away; None: the journal file in
            `folder`.

    Raises:
        UsageError: the database cannot be reached.
    """
    from optuna.storages import JournalStorage

    from multistill.search.journal_file import JournalFile
    from multistill.search.patient_storage import PatientStorage

    if url is None:
        lock = StudyLock(folder, f"{JOURNAL}.lock")
        with reading(folder / JOURNAL):
            return JournalStorage(JournalFile(folder / JOURNAL, lock))
    if problem := storage_problem(url):
        raise UsageError(problem)
    try:
        return PatientStorage(url, logging.getLogger("multistill.search").warning)
    except Exception as error:  # database drivers raise arbitrary exceptions
        raise UsageError(_cannot_be_used(url, explain(url, error))) from error


def storage_problem(url: str | None) -> str | None:
    """Why the database of a study cannot be used now, with what to do; None if it can be.

    Connects to it and changes nothing: to be called before anything is trained.
    """
    if url is None:
        return None
    if "://" not in url:
        return f"search.storage: `{url}` is not an address such as postgresql://user@host/name"
    problem = problem_of(url)
    return _cannot_be_used(url, problem) if problem else None


def _cannot_be_used(url: str, problem: str) -> str:
    return (
        f"search.storage: `{redact(url)}` cannot be reached: {problem}, or remove the key to keep "
        "the study in the workspace"
    )


def open_study(
    storage: optuna.storages.BaseStorage, name: str, directions: list[str]
) -> optuna.Study:
    """Load the study of that name, or create it."""
    import optuna

    with quiet_optuna():
        return optuna.create_study(
            storage=storage,
            study_name=name,
            directions=directions,
            pruner=optuna.pruners.NopPruner(),
            load_if_exists=True,
        )


def read_study(folder: Path, url: str | None, name: str) -> optuna.Study:
    """Load a study that stays as it is: it may be a finished artifact, or another account's.

    Args:
        folder, url: as of `open_storage`.

    Raises:
        FileNotFoundError: there is no journal.
        UsageError: the database cannot be reached.
        MultistillError: the journal is damaged, or there is no such study.
    """
    import optuna

    if url is None and not (folder / JOURNAL).exists():  # opening it would create it
        raise FileNotFoundError(folder / JOURNAL)
    storage = open_storage(folder, url)
    with quiet_optuna():
        try:
            return optuna.load_study(study_name=name, storage=storage)
        except KeyError as error:
            raise MultistillError(f"the storage of {folder} has no study {name}") from error


def has_values(study: optuna.Study) -> bool:
    """Whether any trial of the study finished with a value."""
    from optuna.trial import TrialState

    return bool(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)))


def run_suffix(study: optuna.Study) -> str:
    """What tells the runs of a study's trials from those of another study of the same search.

    A search begins anew where its folder was removed; its trials have other settings then.
    """
    return str(study.user_attrs.get(RUNS, study.study_name[-8:]))


def outcome_of(trial: Any) -> dict[str, Any]:
    """`OUTCOME` of a trial; empty if it has none."""
    outcome = trial.user_attrs.get(OUTCOME)
    return dict(outcome) if isinstance(outcome, dict) else {}


def had_its_budget(trial: Any) -> bool:
    """Whether a trial is complete: the scheduler did not stop it.

    Of two objectives, Optuna calls a stopped trial complete too.
    """
    return trial.state.name == "COMPLETE" and not outcome_of(trial).get("stopped", False)


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Suppress Optuna's messages and its warnings about experimental options."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="optuna")
            warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
