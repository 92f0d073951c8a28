"""A larger search starts with the trials of a smaller finished one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from helpers.search_case import finish_trial, make_spec, study_of, write_spec

from multistill.config import SearchConfig
from multistill.search import warm_start
from multistill.search.cost import ENCODERS
from multistill.search.storage import JOURNAL
from multistill.search.study import _open
from multistill.search.warm_start import copy_trials, find_previous
from multistill.workspace import write_json


def test_trials_and_costs_are_copied_without_their_drivers(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    old = write_spec(tmp_path / "old")
    finish_trial(study_of(tmp_path / "old", old), 0.5, "joined-a")
    write_json(tmp_path / "old" / ENCODERS, {"milliseconds": {"audio": 12.5}})
    new = replace(old, study="larger")
    assert copy_trials(tmp_path / "old", new, tmp_path / "new")
    (trial,) = study_of(tmp_path / "new", new).get_trials()
    assert set(trial.user_attrs) == {"outcome"} and trial.value == 0.5
    copied = [(tmp_path / name / ENCODERS).read_text() for name in ("old", "new")]
    assert copied[0] == copied[1]


def test_settings_of_the_retraining_do_not_prevent_a_warm_start(tmp_path):
    old = write_spec(tmp_path / "old", trials=4, seeds=3)
    (tmp_path / "old" / "study.json").write_text("{}")
    larger = replace(old, config=SearchConfig(trials=6, seeds=5, retrain=2))
    assert find_previous(tmp_path, larger) == tmp_path / "old"
    fold = tmp_path / "crossed" / "folds" / "001"  # a search of a cross-validation's fold
    fold.parent.mkdir(parents=True)
    (tmp_path / "old").rename(fold)
    assert find_previous(tmp_path, larger) == fold
    other = replace(larger, config=SearchConfig(trials=6, metric="uar"))
    assert find_previous(tmp_path, other) is None


def finished_search(folder):
    spec = write_spec(folder, trials=4)
    finish_trial(study_of(folder, spec), 0.5, "a")
    (folder / "study.json").write_text("{}")
    (folder / f"{JOURNAL}.lock").unlink()
    return spec


def test_the_search_that_is_continued_is_only_read(tmp_path):
    old = tmp_path / "old"
    finished_search(old)
    with (old / JOURNAL).open("ab") as stream:
        stream.write(b'{"op_code": 4, "worker')  # torn, and not this search's to mend
    before = {path.name: path.read_bytes() for path in old.iterdir()}
    opened = _open(make_spec(trials=6), tmp_path / "new")
    assert len(study_of(tmp_path / "new", opened).get_trials()) == 1
    assert {path.name: path.read_bytes() for path in old.iterdir()} == before


@pytest.mark.parametrize("reason", ["no journal", "another account's", "of another study"])
def test_a_search_that_cannot_be_read_ends_no_larger_one(tmp_path, monkeypatch, reason):
    old = tmp_path / "old"
    spec = finished_search(old)

    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    if reason == "no journal":
        (old / JOURNAL).unlink()
    elif reason == "another account's":
        monkeypatch.setattr(warm_start, "read_study", refused)
    else:
        replace(spec, study="none").write(old)
    before = sorted(old.iterdir())
    opened = _open(make_spec(trials=6), tmp_path / "new")
    assert study_of(tmp_path / "new", opened).get_trials() == []
    assert sorted(old.iterdir()) == before
