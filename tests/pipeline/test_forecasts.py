"""A job is measured, forecast and beside the truth, in real processes but without Ray."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.generators import kemdy20

from multistill import pipeline
from multistill.config import JobConfig
from multistill.forecast.estimate import Counts, Estimator
from multistill.forecast.rates import Rates
from multistill.forecast.record import beside_truth
from multistill.forecast.text import forecast_lines
from multistill.pipeline import forecasts, jobfile, probing
from multistill.pipeline.plan import describe

JOB = """
name: measured
workspace: {workspace}
corpora:
  - kind: kemdy20
    path: {corpus}
split: {{test: 0.34, valid: 0.2}}
features: {{speech: {{model: log-mel}}, text: {{model: hashed-ngrams}}, max_quarantined: 0.2}}
distillation: {{targets: in-sample}}
teacher:
  model: {{preset: small-teacher, width: 16, layers: 1, feedforward: 16, classifier: 16}}
  train: {{epochs: 2, batch_size: 16}}
students:
  - name: audio
    model: {{preset: small-audio-student, width: 16, feedforward: 16, classifier: 16}}
    train: {{epochs: 12, batch_size: 8}}
search: {{trials: 4, epochs: 6, grace_epochs: 2}}
"""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> JobConfig:
    folder = tmp_path_factory.mktemp("measured")
    kemdy20.make(
        folder / "corpus",
        sessions=range(1, 7),
        segments_per_session=12,
        glitches=False,
        samples=12_000,
    )
    text = JOB.format(workspace=folder / "ws", corpus=folder / "corpus")
    found = jobfile.parse(text, "measured.yaml")
    probing.measure(found)
    return found


@pytest.mark.timeout(300)
def test_every_stage_of_a_measured_job_has_a_forecast(job: JobConfig) -> None:
    facts = describe(job)
    found = facts["forecast"]
    assert [entry["stage"] for entry in found["stages"]] == [
        stage["stage"] for stage in facts["stages"]
    ]
    assert found["missing"] == []
    for entry in found["stages"]:
        ends = entry["seconds"]
        assert 0 < ends["low"] <= ends["value"] <= ends["high"]
    assert found["total"]["disk_gb"]["value"] > 0
    assert set(found["memory"]) >= {"encoder_bytes", "training_bytes"}
    titles = {entry["what"] for entry in found["basis"]}
    assert {"encoding", "training of teacher", "training of audio"} <= titles
    assert not (Path(job.workspace) / "features").exists()


@pytest.mark.timeout(300)
def test_a_run_leaves_a_whole_forecast_in_place(job: JobConfig) -> None:
    before = forecasts.kept_forecast(job)
    assert before is not None
    forecasts.keep_missing(job, [], {}, [])
    assert forecasts.kept_forecast(job) == before
    took = [{"name": "teacher", "seconds": 12.0}, {"name": "unknown", "seconds": 1.0}]
    both = beside_truth(before, took)
    assert both is not None
    assert [entry["stage"] for entry in both["stages"]] == ["teacher"]


@pytest.mark.timeout(300)
def test_a_forecast_of_another_size_grows_with_it(job: JobConfig) -> None:
    pipeline.run(job, until="prepare")
    small, large = (describe(job, hours=h, nodes=n) for h, n in ((100.0, 2), (200.0, 4)))
    of_stage = [
        {entry["stage"]: entry["seconds"]["value"] for entry in facts["forecast"]["stages"]}
        for facts in (small, large)
    ]
    assert of_stage[1]["prepare"] > 1.9 * of_stage[0]["prepare"]  # one process, whatever the nodes
    assert of_stage[1]["features"] == pytest.approx(of_stage[0]["features"], rel=0.01)
    scales = [facts["forecast"]["scale"] for facts in (small, large)]
    assert scales[1]["workers"] == 2 * scales[0]["workers"]
    for few, many in zip(scales[0]["strains"], scales[1]["strains"], strict=True):
        assert many["what"] == few["what"]
        assert many["amount"] == pytest.approx(2 * few["amount"])
    assert small["forecast_and_truth"] is None
    assert any("200 h of audio, 4 nodes" in text for _, text in forecast_lines(large))


def test_a_cluster_has_what_the_job_waits_for_and_once_connected_its_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    values = ["address=n1:1", "wait_for.CPU=16", "wait_for.GPU=8"]
    text = f"name: t\nworkspace: {tmp_path}\ncorpora: [{{kind: demo}}]\n"
    job = jobfile.parse(text, "t.yaml", [f"resources.{value}" for value in values])
    here = {"CPU": 8.0, "GPU": 4.0, "cores": 8.0}
    row = {"workers": 1, "gpus_per_worker": 1.0, "cpus_per_worker": 1}

    def together() -> int:
        machine = forecasts.machine_of(job, here)
        return Estimator(Rates(tmp_path), machine, Counts(1, 1.0, 1, 1, 1)).layout(row, 100)[0]

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    assert together() == 8
    nodes = [{"CPU": 8.0, "GPU": 3.0, "memory": 1e9}, {"CPU": 8.0, "GPU": 3.0}, {"memory": 1e9}]
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr("multistill.cluster.nodes.cluster_nodes", lambda: nodes)
    assert together() == 6
    assert len(forecasts.machine_of(job, here).nodes) == 2
    alone = jobfile.parse(text, "t.yaml")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert forecasts.machine_of(alone, here).resources == {"CPU": 8.0, "GPU": 4.0}
