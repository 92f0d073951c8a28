"""The branches that a teacher stands on, on page and terminal."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from helpers.evaluation_case import EvaluationCase, make_job
from rich.console import Console

from multistill.report.html import render
from multistill.report.pretraining import describe_pretraining
from multistill.report.terminal import table
from multistill.workspace import Artifact

SCORES: dict[str, Any] = {
    "teacher-audio": {"dimension": "arousal", "clips": 129, "ccc": 0.612, "rmse": 0.5},
    "teacher-text": {"dimension": "valence", "clips": 128, "ccc": None, "rmse": 0.75},
}


def test_page_and_terminal_show_what_was_learnt_before_the_teacher(
    evaluation_case: EvaluationCase,
) -> None:
    report, page = evaluation_case.default_report
    assert report["pretraining"] == []
    assert 'id="pretraining"' not in page
    artifact = Artifact("pretrained", "x", Path("x"), {"summary": {"scores": SCORES}})
    report = {**report, "search": None, "pretraining": describe_pretraining(artifact)}
    page = render(report, trials=[], histories={}, quality=None, job=make_job())
    section = re.search(r'<section id="pretraining">.*?</section>', page, re.DOTALL)
    assert section is not None
    console = Console(width=120, record=True)
    console.print(table(report))
    printed = console.export_text()
    cells = " ".join(re.sub(r"<[^>]*>", " ", section[0]).split())
    for shown in (
        "teacher-audio arousal 129 0.612 0.500",
        "teacher-text valence 128 - 0.750",
    ):
        assert shown in cells
    assert "teacher-audio: arousal CCC 0.612, RMSE 0.500 on 129 clips" in printed
    assert "teacher-text: valence CCC -, RMSE 0.750 on 128 clips" in printed
