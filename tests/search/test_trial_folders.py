"""Folders with the checkpoints of trials."""

from __future__ import annotations

from helpers.search_case import finish_trial, study_of, write_spec

from multistill.search.trial_folders import trial_folder, trial_lock, unfinished_trials


def test_folders_of_finished_trials_are_removed_unless_a_process_writes_to_them(tmp_path):
    study = study_of(tmp_path, write_spec(tmp_path))
    locked, left = finish_trial(study, 0.5, "a"), finish_trial(study, None, "a")
    running = study.ask().number
    for number in (locked, left, running):
        trial_folder(tmp_path, number).mkdir(parents=True)
        (trial_folder(tmp_path, number) / "optimizer.safetensors").touch()
    with trial_lock(tmp_path, locked):
        assert unfinished_trials(tmp_path, study) == [locked, running]
    assert unfinished_trials(tmp_path, study) == [running]
    assert [path.name for path in (tmp_path / "trials").iterdir()] == [f"{running:04d}"]
