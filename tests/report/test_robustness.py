"""The robustness pack on page, picture, terminal and MLflow."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers.distorted_case import make_distorted, noisy
from helpers.evaluation_case import EvaluationCase, make_job

from multistill.evaluation.evaluate import EvaluatedFold, evaluate
from multistill.evaluation.inputs import ReferenceInputs
from multistill.pipeline.record import robustness_figures
from multistill.report.robustness import heat_map, lines
from multistill.report.terminal import table
from multistill.workspace import read_json


def test_page_picture_terminal_and_records_show_the_pack(
    evaluation_case: EvaluationCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = evaluation_case
    report, page = case.default_report
    assert report["robustness"] is None
    assert 'id="robustness"' not in page and 'href="#robustness"' not in page
    assert heat_map(None) is None and lines(None) == []
    folder = make_distorted(case, tmp_path / "distorted", noisy)
    (tmp_path / "evaluation").mkdir()
    config = make_job(evaluation={"resamples": 100, "latency_clips": 0}).evaluation
    evaluate(
        [EvaluatedFold(case.manifest, case.candidates)],
        case.store,
        config,
        tmp_path / "evaluation",
        inputs=ReferenceInputs(distorted=folder),
    )
    pack = read_json(tmp_path / "evaluation" / "metrics.json")["robustness"]
    changed = {**case.metrics, "robustness": pack}
    monkeypatch.setattr(
        "multistill.report.build.read_json",
        lambda path: changed if path.name == "metrics.json" else read_json(path),
    )
    report, page = case.report()
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    section = re.search(r'<section id="robustness">.*?</section>', page, re.DOTALL)
    assert section is not None and 'href="#robustness"' in page
    words = " ".join(re.sub(r"<[^>]*>", " ", section[0]).split())
    audio = next(model for model in pack["models"] if model["name"] == "audio")["conditions"]
    loss = audio["white-10"]["change"]["value"]
    assert f"\u2212{-loss:.3f}" in words
    assert "text missing" in words and "first channel only (all recordings have one" in words
    assert f"{100 * audio['white-10']['unchanged']['value']:.1f} % unchanged" in words
    for narrow in (False, True):
        picture = heat_map(pack, narrow)
        assert picture is not None and f"\u2212{-loss:.2f}" in picture
        assert picture.count("\u00b7") >= 3 + 9, "an audio model reads no text, and the reverse"
    terminal = lines(pack)
    assert any(line.startswith("  audio: ") and f"{loss:+.3f}" in line for line in terminal)
    assert all(line in str(table(report).caption) for line in terminal)
    figures = robustness_figures(pack)
    assert figures["test_audio_uar_change_white-10"] == loss
    assert robustness_figures(None) == {}
