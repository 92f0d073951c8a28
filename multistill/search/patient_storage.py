"""Optuna's database storage, which waits while its database is away.

A search runs for hours, and Optuna's own storage ends it at the first request that a restarting
database does not answer.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import sqlalchemy
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage

from multistill.databases import explain
from multistill.errors import MultistillError

PATIENCE_SECONDS = 900.0
PAUSE_SECONDS = 2.0
_TEMPORARY = (
    sqlalchemy.exc.OperationalError,  # no connection, no space, locked
    sqlalchemy.exc.InterfaceError,
    sqlalchemy.exc.InternalError,  # read-only: its disk is full, or another server takes over
    sqlalchemy.exc.TimeoutError,
)
_METHODS = (
    "create_new_study",
    "delete_study",
    "set_study_user_attr",
    "set_study_system_attr",
    "get_study_id_from_name",
    "get_study_name_from_id",
    "get_study_directions",
    "get_study_user_attrs",
    "get_study_system_attrs",
    "get_all_studies",
    "_create_new_trial",
    "_set_trial_param",
    "set_trial_state_values",
    "set_trial_intermediate_value",
    "set_trial_user_attr",
    "set_trial_system_attr",
    "get_trial_id_from_study_id_trial_number",
    "get_trial",
    "_get_trials",
    "_get_best_trial_id",
)
"""What Optuna's studies call. Each can be repeated: it reads, or sets something to a value. A
trial that was created without an answer is handed out later, as one whose driver died."""


class PatientStorage(RDBStorage):
    """Repeats a request that the database did not carry out, until it does.

    Args:
        log: called when the waiting begins and when it ends.
        patience: seconds to wait before the search ends.

    Raises:
        MultistillError: from every method, after `patience` seconds without the database.
    """

    def __init__(
        self, url: str, log: Callable[[str], None], patience: float = PATIENCE_SECONDS
    ) -> None:
        super().__init__(url, skip_compatibility_check=False)
        self._log, self._patience = log, patience

    def _repeat(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        began: float | None = None
        while True:
            try:
                result = method(self, *args, **kwargs)
            except StorageInternalError as error:
                if not isinstance(error.__cause__, _TEMPORARY):
                    raise
                began = self._wait(error, began)
                continue
            except UpdateFinishedTrialError:
                if began is None:
                    raise
                result = True  # the request that was not answered has finished the trial
            if began is not None:
                self._log("the database of the study answers again; the search continues")
            return result

    def _wait(self, error: StorageInternalError, began: float | None) -> float:
        """Pause before the next attempt; returns when the waiting began."""
        problem = explain(str(self.url), error)
        now = time.monotonic()
        if began is None:
            self._log(f"the search waits for the database of its study: {problem}")
            began = now
        if now - began > self._patience:
            raise MultistillError(
                f"the database of the study was away for {self._patience / 60:.0f} minutes "
                f"({problem}); the same command then continues the search"
            ) from error
        time.sleep(PAUSE_SECONDS)
        return began


def _patient(name: str) -> Callable[..., Any]:
    @functools.wraps(getattr(RDBStorage, name))
    def repeated(self: PatientStorage, *args: Any, **kwargs: Any) -> Any:
        return self._repeat(getattr(RDBStorage, name), *args, **kwargs)

    return repeated


for _name in _METHODS:
    setattr(PatientStorage, _name, _patient(_name))
