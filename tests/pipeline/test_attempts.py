"""What an attempt at a job reached."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from multistill.pipeline import jobfile
from multistill.pipeline.attempts import reached
from multistill.pipeline.recipes import steps_of
from multistill.search.storage import JOURNAL
from multistill.workspace import Workspace

TRIAL = '{"op_code": 6, "trial_id": 0, "state": %d, "values": [0.5]}\n'


def checkpoint(folder: Path) -> None:
    path = folder / "training" / "teacher" / "epoch-000002" / "model.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(2**17))


def step_saved_in_place(folder: Path) -> None:
    (folder / "state.json").write_text('{"step": 2}')


def trial(folder: Path) -> None:
    (folder / JOURNAL).write_text(TRIAL % 0 + TRIAL % 1)


def nothing(folder: Path) -> None:
    (folder / "state.json").write_text('{"step": 1}')  # written again, equal


def only_started(folder: Path) -> None:
    (folder / JOURNAL).write_text(TRIAL % 0 + TRIAL % 3)
    for name in (".ray-train/x/snapshot.json", "tune/1/x.json", "drivers/host-1", "study.lock"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("new")


def trial_in_a_damaged_journal(folder: Path) -> None:
    (folder / JOURNAL).write_bytes(b"\xff\xfe\n" + (TRIAL % 0 + TRIAL % 1).encode())


@pytest.mark.parametrize(
    ("attempt", "is_progress"),
    [
        (checkpoint, True),
        (step_saved_in_place, True),
        (trial, True),
        (trial_in_a_damaged_journal, True),
        (nothing, False),
        (only_started, False),
    ],
)
def test_progress_is_what_a_later_attempt_continues_from(
    attempt: Callable[[Path], None], is_progress: bool, tmp_path: Path
) -> None:
    job = jobfile.parse(f"name: t\nworkspace: {tmp_path}\ncorpora: [{{kind: demo}}]\n", "t.yaml")
    step = steps_of(job, Workspace(tmp_path))[0]
    partial = Workspace(tmp_path).partial(step.kind, step.fingerprint({}))
    partial.mkdir(parents=True)
    (partial / "state.json").write_text('{"step": 1}')
    (partial / JOURNAL).write_text(TRIAL % 0)
    before = reached(job)
    attempt(partial)
    assert (reached(job) != before) == is_progress


def test_a_finished_stage_is_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multistill.corpora.prepare.is_current", lambda *_: True)
    job = jobfile.parse(f"name: t\nworkspace: {tmp_path}\ncorpora: [{{kind: demo}}]\n", "t.yaml")
    assert reached(job) == frozenset()
    workspace = Workspace(tmp_path)
    step = steps_of(job, workspace)[0]
    workspace.make(step.kind, step.fingerprint({}), lambda out: {"content": "x"})
    assert reached(job)
