"""The journal waits for the disk when a trial ends, and not for each of its lines."""

from __future__ import annotations

import errno
import os

import pytest
from helpers.search_case import DISTRIBUTIONS, make_spec, study_of
from helpers.small_disk import filled, small_disk
from optuna.storages.journal import _storage

from multistill.search.journal_file import REPEATABLE


def test_only_lines_of_a_running_trial_are_not_waited_for():
    names = {_storage.JournalOperation(code).name for code in REPEATABLE}
    assert names == {
        "CREATE_TRIAL",
        "SET_TRIAL_PARAM",
        "SET_TRIAL_INTERMEDIATE_VALUE",
        "SET_TRIAL_USER_ATTR",
        "SET_TRIAL_SYSTEM_ATTR",
    }


def test_a_trial_waits_for_the_disk_once_and_every_line_is_seen_by_others(tmp_path, monkeypatch):
    study, waits = study_of(tmp_path, make_spec()), []
    monkeypatch.setattr(os, "fsync", lambda handle: waits.append(os.fstat(handle).st_size))
    trial = study.ask(DISTRIBUTIONS)
    trial.set_user_attr("driver", "a")
    assert waits == []
    [seen] = study_of(tmp_path, make_spec()).get_trials()
    assert (seen.params, seen.user_attrs) == (trial.params, {"driver": "a"})
    waits.clear()  # opening a study writes to it
    trial.report(0.5, 1)
    study.tell(trial, 0.5)
    assert waits == [(tmp_path / "study.log").stat().st_size]


def test_a_disk_that_gets_full_leaves_whole_lines_and_the_trial_goes_on(tmp_path):
    with small_disk(tmp_path / "disk", 64) as disk:
        study = study_of(disk, make_spec())
        trial = study.ask(DISTRIBUTIONS)
        before = (disk / "study.log").read_bytes()
        with filled(disk), pytest.raises(OSError, match="No space"):
            trial.set_user_attr("large", "x" * 8192)  # a part of it fits into the last page
        assert (disk / "study.log").read_bytes() == before
        study.tell(trial, 0.5)
        [seen] = study_of(disk, make_spec()).get_trials()
        assert (seen.value, seen.user_attrs) == (0.5, {})


def test_lines_that_may_not_be_on_the_disk_stay_since_others_have_read_them(tmp_path, monkeypatch):
    study = study_of(tmp_path, make_spec())
    trial = study.ask(DISTRIBUTIONS)
    monkeypatch.setattr(os, "fsync", failing_disk)
    with pytest.raises(OSError, match="Input/output"):
        study.tell(trial, 0.5)
    monkeypatch.undo()
    [seen] = study_of(tmp_path, make_spec()).get_trials()
    assert seen.value == 0.5


def failing_disk(handle: int) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_running_driver_appends_to_no_line_that_a_dead_one_tore(tmp_path):
    study, other = (study_of(tmp_path, make_spec()) for _ in range(2))
    trial = study.ask(DISTRIBUTIONS)
    with (tmp_path / "study.log").open("ab") as stream:  # from a machine that lost its power
        stream.write(b'{"op_code": 4, "worker' + b"x" * 100_000)
    study.tell(trial, 0.5)
    assert [trial.value for trial in other.get_trials()] == [0.5]
    assert b"xx" not in (tmp_path / "study.log").read_bytes()
