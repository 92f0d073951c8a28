"""Advice about forecasts and limits of a job: provoked and followed, without Ray."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from helpers.advice import says, told
from helpers.generators import kemdy20

from multistill import pipeline
from multistill.audio import SAMPLE_RATE
from multistill.cli.app import main
from multistill.config import FeaturesConfig, JobConfig
from multistill.corpora.manifest import manifest_schema
from multistill.errors import JobFileError, MultistillError, UsageError
from multistill.forecast.probe import _encode_in_worker
from multistill.pipeline import jobfile
from multistill.pipeline.plan import describe

JOB = """
name: limited
workspace: {workspace}
corpora: [{{kind: demo}}]
features: {{speech: {{model: log-mel}}, text: {{model: hashed-ngrams}}}}
resources: {resources}
"""


def test_submit_asks_about_what_is_beyond_the_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sent: list[JobConfig] = []

    def submit(job: JobConfig, *_: Any, **__: Any) -> Any:
        sent.append(job)
        return SimpleNamespace(
            submission_id="x", status="SUCCEEDED", exit_code=0, page=None, as_json=dict
        )

    monkeypatch.setattr("multistill.cluster.submit", submit)
    file = tmp_path / "job.yaml"
    file.write_text(JOB.format(workspace=tmp_path / "ws", resources="{allow: {hours: 1}}"))
    command = ["submit", str(file), "--address", "http://127.0.0.1:1"]
    with pytest.raises(SystemExit) as refused:
        main(command)
    assert (refused.value.code, sent) == (2, [])
    says("add --yes to submit it all the same", capsys.readouterr().err)
    with pytest.raises(SystemExit) as done:
        main([*command, "--yes"])
    assert (done.value.code, len(sent)) == (0, 1)
    with pytest.raises(SystemExit):
        main([*command, "--set", "resources.allow={}"])
    assert len(sent) == 2
    for answer, count in ((False, 2), (True, 3)):
        monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
        monkeypatch.setattr("multistill.cli.jobs.sys.stderr.isatty", lambda: True, raising=False)
        monkeypatch.setattr("typer.confirm", lambda *_, answer=answer, **__: answer)
        with pytest.raises(SystemExit):
            main(command)
        assert len(sent) == count


def test_a_limit_of_cost_needs_a_price(tmp_path: Path) -> None:
    def parse(resources: str) -> JobConfig:
        return jobfile.parse(JOB.format(workspace=tmp_path, resources=resources), "x.yaml")

    with told("`allow.cost` needs a `price`; set `resources.price`", JobFileError):
        parse("{allow: {cost: 3}}")
    assert parse("{allow: {cost: 3}, price: {gpu_hour: 2}}").resources.price


def test_plan_says_how_to_measure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(JOB.format(workspace=tmp_path / "ws", resources="{}"))
    with pytest.raises(SystemExit):
        main(["plan", str(file)])
    says(
        "nothing measured here yet: `multistill plan JOB --measure`",
        " ".join(capsys.readouterr().out.split()),
    )
    assert describe(jobfile.load(file))["forecast"] is None
    assert not (tmp_path / "ws").exists()  # `plan` writes nothing


def test_another_size_needs_a_manifest(tmp_path: Path) -> None:
    kemdy20.make(tmp_path / "corpus", sessions=range(1, 7), segments_per_session=4, glitches=False)
    text = JOB.format(workspace=tmp_path / "ws", resources="{}")
    corpus = f"{{kind: kemdy20, path: {tmp_path / 'corpus'}}}"
    job = jobfile.parse(text.replace("{kind: demo}", corpus), "job.yaml")
    with told("`multistill run JOB --until prepare` first", UsageError):
        describe(job, hours=1e6)
    pipeline.run(job, until="prepare")
    assert describe(job, hours=1e6, nodes=10)["forecast"] is None  # nothing was measured


def test_a_probe_without_a_usable_clip(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    config = FeaturesConfig(speech={"model": "log-mel"}, text={"model": "hashed-ngrams"})
    row = {
        "utterance_id": "a/1",
        "audio_path": str(tmp_path / "1.wav"),
        "audio_digest": "",
        "text": "yes",
        "duration_s": 1.0,
    }
    fields = [manifest_schema(["x"]).field(name) for name in row]
    pq.write_table(pa.Table.from_pylist([row], schema=pa.schema(fields)), tmp_path / "m.parquet")
    with told("check the recordings with `multistill validate JOB --data`", MultistillError):
        _encode_in_worker(tmp_path / "m.parquet", config, tmp_path / "out", False)
    noise = np.random.default_rng(0).normal(size=SAMPLE_RATE).astype(np.float32) / 10
    soundfile.write(tmp_path / "1.wav", noise, SAMPLE_RATE)
    values = _encode_in_worker(tmp_path / "m.parquet", config, tmp_path / "again", False)
    assert values["seconds_per_audio_second"] > 0
    assert values["bytes_per_audio_second"] > 0
