"""Hand-outs whose cost does not grow with the study: Optuna itself reads all trials, several times.

Private names of Optuna are used here as in `tune_internals`. `tests/search/test_long_searches.py`
compares what they give with what Optuna's public functions give.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Container, Iterable
from typing import Any

import optuna
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages._cached_storage import _CachedStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from multistill.search.journal_file import JournalFile

_BEST, _LATEST = 100, 900
_Trials = Callable[[Iterable[int]], list[FrozenTrial]]


def has_trial(study: optuna.Study, number: int) -> bool:
    """Whether the study has a trial of that number."""
    try:
        study._storage.get_trial_id_from_study_id_trial_number(study._study_id, number)
    except KeyError:
        return False
    return True


def look_for_waiting_only(study: optuna.Study) -> None:
    """Let `study.ask` look for a waiting trial where one may be, instead of through all trials.

    Of a database it reads those that wait; of a journal nothing, until an entry has added one.
    """
    storage, pop = study._storage, study._pop_waiting_trial_id
    backend = getattr(storage, "_backend", None)

    def pop_of_journal() -> int | None:
        assert isinstance(storage, JournalStorage) and isinstance(backend, JournalFile)
        with storage._thread_lock:
            storage._sync_with_backend()
        if not backend.may_wait:
            return None
        backend.may_wait = False
        trial_id = pop()
        backend.may_wait = backend.may_wait or trial_id is not None  # others may wait, too
        return trial_id

    def pop_of_database() -> int | None:
        assert isinstance(backend, RDBStorage)
        waiting = backend.get_all_trials(study._study_id, False, (TrialState.WAITING,))
        return pop() if waiting else None

    if isinstance(backend, JournalFile):
        study._pop_waiting_trial_id = pop_of_journal
    elif isinstance(backend, RDBStorage):
        study._pop_waiting_trial_id = pop_of_database


class WindowedTPESampler(optuna.samplers.TPESampler):
    """TPE whose cost does not grow with the study: it models the best and the latest trials.

    Optuna models every trial for every suggestion. Of them, "good" are 25 at most (Optuna's
    `default_gamma`), and the weights of the others fall with age; so the `_BEST` best and
    the `_LATEST` latest trials, and all running ones, hold nearly all that it knows.
    A sampler is for one study.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._early = _Early()
        self._window: tuple[int, _Window] | None = None

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, optuna.distributions.BaseDistribution]:
        return super().infer_relative_search_space(self._of(study, trial), trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, Any]
    ) -> dict[str, Any]:
        return super().sample_relative(self._of(study, trial), trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: Any
    ) -> Any:
        window = self._of(study, trial)
        return super().sample_independent(window, trial, param_name, param_distribution)

    def _of(self, study: optuna.Study, trial: FrozenTrial) -> _Window:
        """The window for all suggestions of a trial, as Optuna reads its trials once for them."""
        if self._window is None or self._window[0] != trial.number:
            self._window = trial.number, _Window.of(study, self._early)
        return self._window[1]


class _Window(optuna.Study):
    """A study that shows a sampler the part of its trials that matters most."""

    _shown: list[FrozenTrial]

    @classmethod
    def of(cls, study: optuna.Study, early: _Early) -> _Window:
        count, trials = _trials_of(study)
        late = count - _LATEST
        if late > _BEST:
            before = sorted(early.of(late, trials, study), key=lambda trial: trial.number)
            shown = before + trials(range(late, count))
        else:
            shown = trials(range(count))
        window = cls.__new__(cls)
        window.__dict__.update(study.__dict__, _shown=shown)
        return window

    def _get_trials(
        self,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
        use_cache: bool = False,
    ) -> list[FrozenTrial]:
        return [trial for trial in self._shown if states is None or trial.state in states]


class _Early:
    """The trials before the latest that a sampler models: the best, and those that run.

    Each is looked at once, when it is no longer among the latest, and again while it runs.
    """

    def __init__(self) -> None:
        self._next = 0
        self._running: list[int] = []
        self._best: list[list[tuple[float, int, FrozenTrial]]] = []  # a heap per objective
        self._directions: list[StudyDirection] = []

    def of(self, end: int, trials: _Trials, study: optuna.Study) -> list[FrozenTrial]:
        """Of the trials whose number is below `end`, which does not fall."""
        if not self._best:
            self._directions = study.directions
            self._best = [[] for _ in self._directions]
        looked_at = trials([*self._running, *range(self._next, end)])
        self._next = end
        running = [trial for trial in looked_at if trial.state == TrialState.RUNNING]
        self._running = [trial.number for trial in running]
        for trial in looked_at:
            if trial.state == TrialState.COMPLETE:
                self._add(trial)
        best = {trial.number: trial for heap in self._best for _, _, trial in heap}
        return [*best.values(), *running]

    def _add(self, trial: FrozenTrial) -> None:
        for heap, value, direction in zip(self._best, trial.values, self._directions, strict=True):
            score = value if direction == StudyDirection.MAXIMIZE else -value
            push = heapq.heappush if len(heap) < _BEST else heapq.heappushpop
            push(heap, (score, -trial.number, trial))


def _trials_of(study: optuna.Study) -> tuple[int, _Trials]:
    """One more than the last number of a study's trials, and its trials of given numbers.

    Of a journal, as it was last read. Of a database a number may be missing: Optuna does not read
    a trial that another process was about to add when a later one had ended already.
    """
    storage, study_id = study._storage, study._study_id
    if isinstance(storage, JournalStorage):
        ids = storage._replay_result._study_id_to_trial_ids[study_id]
        by_id = storage._replay_result._trials
        return len(ids), lambda numbers: [by_id[ids[number]] for number in numbers]
    if isinstance(storage, _CachedStorage):
        storage._read_trials_from_remote_storage(study_id)
        by_number = storage._studies[study_id].trials
    else:
        everything = storage.get_all_trials(study_id, deepcopy=False)
        by_number = {trial.number: trial for trial in everything}
    return (
        max(by_number, default=-1) + 1,
        lambda numbers: [by_number[number] for number in numbers if number in by_number],
    )
