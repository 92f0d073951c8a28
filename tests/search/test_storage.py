"""The journal of a study on disk."""

from __future__ import annotations

from helpers.search_case import DISTRIBUTIONS, make_spec, study_of

from multistill.search.storage import JOURNAL, quiet_optuna


def test_a_line_torn_by_a_crash_costs_that_line_only(tmp_path):
    spec = make_spec()
    with quiet_optuna():
        study = study_of(tmp_path, spec)
        for value in (0.1, 0.2):
            study.tell(study.ask(DISTRIBUTIONS), value)
        content = (tmp_path / JOURNAL).read_bytes()
        (tmp_path / JOURNAL).write_bytes(content + b'{"op_code": 4, "worker')
        again = study_of(tmp_path, spec)
        again.tell(again.ask(DISTRIBUTIONS), 0.3)
        values = [trial.value for trial in study_of(tmp_path, spec).get_trials()]
    assert values == [0.1, 0.2, 0.3]
