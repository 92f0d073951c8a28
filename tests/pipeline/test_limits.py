"""Limits are no part of a fingerprint: those of the job are held against what exists already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from multistill import pipeline
from multistill.errors import MultistillError
from multistill.features.quarantine import write_quarantine
from multistill.pipeline import jobfile
from multistill.pipeline.plan import describe
from multistill.pipeline.recipes import steps_of
from multistill.workspace import Workspace

CLIPS, MISSING = 12, 3
QUARANTINED = [[f"u{n}", f"/wav/{n}.wav", "empty: no sample"] for n in range(2)]
UNKNOWN = {"share": 0.15, "transcripts": 9, "example": "entirely other words"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A job file: 3 of 12 rows are rejected, 2 of 9 clips quarantined, 15 % of tokens unknown."""
    home = tmp_path_factory.mktemp("limits")
    lines = ["audio_path,text,label,speaker"]
    for number in range(CLIPS):
        lines.append(f"{number}.wav,text {number},{('happy', 'sad')[number % 2]},p{number % 6}")
        if number < CLIPS - MISSING:
            wave = 0.1 * np.random.default_rng(number).normal(size=8000)
            soundfile.write(home / f"{number}.wav", wave, 16_000)
    (home / "table.csv").write_text("\n".join(lines) + "\n")
    text = (
        f"name: t\nworkspace: {home / 'ws'}\n"
        f"corpora: [{{kind: table, path: {home / 'table.csv'}}}]\nsplit: {{by: speaker}}\n"
    )
    job = jobfile.parse(text, "t.yaml")
    prepared = pipeline.run(job, until="prepare").stages["prepare"]
    workspace = Workspace(job.workspace)
    features = steps_of(job, workspace)[1]

    def build(out: Path) -> dict[str, Any]:
        write_quarantine(out / "quarantine.parquet", QUARANTINED)
        return {"clips": CLIPS - MISSING, "quarantined": 2, "unknown_tokens": UNKNOWN}

    workspace.make(features.kind, features.fingerprint({"manifest": prepared}), build)
    return text + "features: {max_quarantined: 0.25, text: {max_unknown: 0.2}}\n"


LIMITS = [
    # setting, a value that is kept to, one that is not, what is said
    ("corpora.0.max_rejected", "0.25", "0.2", r"corpus `table`: 25\.0% .* limit is 20\.0% .*3 x"),
    ("features.max_quarantined", "0.23", "0.1", r"2 of 9 clips .* limit is 0\.9 .*2 x empty"),
    ("features.text.max_unknown", "0.15", "0.1", r"15% of the tokens of 9 .* limit is 10%"),
]


@pytest.mark.parametrize(("setting", "kept", "broken", "sentence"), LIMITS)
def test_a_lowered_limit_is_held_against_finished_stages(
    made: str,
    setting: str,
    kept: str,
    broken: str,
    sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stage = "prepare" if setting.startswith("corpora") else "features"
    low = jobfile.parse(made, "t.yaml", [f"{setting}={broken}"])
    assert [s.state for s in pipeline.status(low)][:2] == ["done", "done"], "no other fingerprint"
    with pytest.raises(MultistillError, match=sentence):
        pipeline.run(low, until=stage)
    assert "nothing to do" not in capsys.readouterr().err
    problems = describe(low)["problems"]
    assert len(problems) == 1
    with pytest.raises(MultistillError, match=sentence):
        raise MultistillError(problems[0])
    # Following the advice, "raise the limit": everything is found again.
    raised = jobfile.parse(made, "t.yaml", [f"{setting}={kept}"])
    assert not pipeline.run(raised, until=stage).worked
    assert describe(raised)["problems"] == []


def test_a_limit_of_a_later_stage_does_not_stop_an_earlier_one(made: str) -> None:
    low = jobfile.parse(made, "t.yaml", ["features.max_quarantined=0"])
    assert not pipeline.run(low, until="prepare").worked


def test_every_limit_of_the_job_file_is_tried() -> None:
    """A share above which a job stops is called `max_...`, and is outside the fingerprint."""
    from multistill.config.schema import sections

    found = {
        f"{place}.{name}".replace("[]", ".0")
        for section, places in sections().items()
        for name, field in section.model_fields.items()
        for place in places
        if name.startswith("max_")
        and isinstance(field.default, float)
        and isinstance(field.json_schema_extra, dict)
        and field.json_schema_extra.get("execution")
    }
    assert found == {setting for setting, *_ in LIMITS}


def test_stores_that_did_not_count_unknown_tokens_are_used(made: str) -> None:
    job = jobfile.parse(made, "t.yaml", ["features.text.max_unknown=0"])
    features = steps_of(job, Workspace(job.workspace))[1]
    prepared = pipeline.run(job, until="prepare").stages["prepare"]
    artifact = features.workspace.find("features", features.fingerprint({"manifest": prepared}))
    assert artifact is not None
    assert list(features.over_limits(artifact))
    del artifact.meta["summary"]["unknown_tokens"]
    assert list(features.over_limits(artifact)) == []
