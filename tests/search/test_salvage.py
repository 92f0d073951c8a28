"""A journal that is damaged in the middle: what stands before is kept, the rest runs again."""

from __future__ import annotations

import pytest
from helpers.recording_logger import RecordingLogger
from helpers.search_case import DISTRIBUTIONS, make_spec, study_of, write_spec

from multistill.errors import MultistillError
from multistill.search.locks import DriverLease
from multistill.search.salvage import salvage
from multistill.search.storage import JOURNAL, quiet_optuna, run_suffix
from multistill.search.study import _salvage
from multistill.search.trial_folders import trial_folder, unfinished_trials

DAMAGE = {
    "zeros, as after a power failure": lambda line: bytes(len(line) - 1) + b"\n",
    "an altered byte": lambda line: b"}" + line[1:],
    "no object": lambda line: b"3\n",
    "bytes that are no text": lambda line: b"\xff\xfe" + line[2:],
}


def finished_study(folder):
    with quiet_optuna():
        study = study_of(folder, make_spec())
        for value in (0.1, 0.2, 0.3):
            study.tell(study.ask(DISTRIBUTIONS), value)
    return (folder / JOURNAL).read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_trials_before_the_damage_are_kept_and_the_search_goes_on(tmp_path, damage):
    lines, spec = finished_study(tmp_path), write_spec(tmp_path)
    suffix = run_suffix(study_of(tmp_path, spec))
    assert suffix == run_suffix(study_of(tmp_path, spec))
    [second] = [n for n, line in enumerate(lines) if b"[0.2]" in line]
    lines[second] = damage(lines[second])
    damaged = b"".join(lines)
    (tmp_path / JOURNAL).write_bytes(damaged)
    trial_folder(tmp_path, 2).mkdir(parents=True)  # a checkpoint of the trial that is lost
    logger = RecordingLogger()
    _salvage(tmp_path, logger)
    [message] = logger.messages
    assert f"damaged in line {second + 1}" in message
    [aside] = tmp_path.glob(f"{JOURNAL}.damaged-*")
    assert aside.name in message
    assert aside.read_bytes() == damaged
    with quiet_optuna():
        study = study_of(tmp_path, spec)
        # The numbers of lost trials are given to others, which must not continue their runs.
        assert run_suffix(study) != suffix
        assert study.trials[0].value == 0.1
        assert [trial.state.name for trial in study.trials] == ["COMPLETE", "RUNNING"]
        assert unfinished_trials(tmp_path, study) == []
        study.tell(1, 0.5)  # the trial that lost its end, run again
        assert study.ask(DISTRIBUTIONS).number == 2
    assert salvage(tmp_path) is None


def test_nothing_is_cut_while_another_driver_runs(tmp_path):
    lines = finished_study(tmp_path)
    damaged = b"".join([*lines[:3], b"3\n", *lines[4:]])
    (tmp_path / JOURNAL).write_bytes(damaged)
    with DriverLease(tmp_path), pytest.raises(MultistillError, match="damaged in line 4"):
        _salvage(tmp_path, RecordingLogger())
    assert (tmp_path / JOURNAL).read_bytes() == damaged
    assert "line 4" in str(salvage(tmp_path))


@pytest.mark.parametrize("end", [b"", b'{"op_code": 4, "worker'])
def test_an_intact_journal_is_left_alone(tmp_path, end):
    content = b"".join(finished_study(tmp_path)) + end
    (tmp_path / JOURNAL).write_bytes(content)
    assert salvage(tmp_path) is None
    assert (tmp_path / JOURNAL).read_bytes() == content
    assert salvage(tmp_path / "none") is None
