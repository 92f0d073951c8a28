"""report.html: one valid page without external resources, and what its tables show."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from helpers.evaluation_case import EvaluationCase, make_job

from multistill.workspace import read_json


class Structure(HTMLParser):
    """Open elements, ids, external links, table texts and unnamed figures of a page."""

    VOID = frozenset({"meta", "br", "link", "img", "hr", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.external: list[str] = []
        self.tables: list[str] = []
        self.unnamed = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        if values.get("id"):
            self.ids.append(str(values["id"]))
        for name in ("src", "href", "xlink:href"):
            link = values.get(name) or ""
            if link and not link.startswith(("#", "data:")):
                self.external.append(link)
        if tag == "table":
            self.tables.append("")
        if tag == "svg" and not values.get("aria-label"):
            self.unnamed += 1

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "table" in self.open:
            self.tables[-1] += f" {data}"


def parse(page: str) -> Structure:
    structure = Structure()
    structure.feed(page)
    return structure


@pytest.fixture(scope="module")
def page(evaluation_case: EvaluationCase) -> str:
    return evaluation_case.default_report[1]


def test_page_is_well_formed_and_loads_nothing_external(page: str) -> None:
    structure = parse(page)
    assert structure.open == []
    assert structure.external == []
    assert "<script" not in page
    assert "@import" not in page
    assert len(structure.ids) == len(set(structure.ids)), "ids are unique, inside figures too"
    assert structure.unnamed == 0, "every figure has an alternative text"
    assert not re.search("#0([1-9])0\\1", page), "placeholder colours are replaced"


def test_every_link_target_is_on_the_page(page: str) -> None:
    ids = set(parse(page).ids)
    targets = set(re.findall(r'(?:href="#|url\(#)([^")]+)', page))
    assert targets
    assert targets <= ids


def test_every_table_of_results_names_encoders_and_baseline(page: str) -> None:
    tables = [text for text in parse(page).tables if "UAR" in text or "ECE" in text]
    assert len(tables) >= 4
    for text in tables:
        assert "untrained stand-in" in text
        assert "always " in text or "shares of training" in text
        assert "SYNTHETIC" in text


def test_a_leaky_split_is_named_on_every_table_of_results(evaluation_case: EvaluationCase) -> None:
    job = make_job(name="a&b", split={"by": "random", "allow_leak": True})
    report, page = evaluation_case.report(job, synthetic=False)
    assert report["warnings"][0]["title"] == "LEAKY SPLIT"
    for text in parse(page).tables:
        if "UAR" in text:
            assert "LEAKY SPLIT" in text
    assert "SYNTHETIC" not in page
    assert "<title>a&amp;b" in page, "names are escaped"


def test_page_of_two_thousand_trials_is_small(evaluation_case: EvaluationCase) -> None:
    _, page = evaluation_case.report(trials=2000)
    assert len(page) < 1_500_000
    assert page.count("<tr") < 300


def test_slice_columns_show_the_scores_of_the_model_in_their_header(
    evaluation_case: EvaluationCase, page: str
) -> None:
    text = next(text for text in parse(page).tables if "by gender" in text)
    metrics = evaluation_case.metrics
    models = [model for model in metrics["models"] if model["role"] != "control"]
    _, header, body = text.split("by session")  # the caption names the protocol
    assert header.split()[-len(models) :] == [model["name"] for model in models]
    female = body[body.index("female") :].split()
    expected = [
        next(part for part in model["slices"] if part["name"] == "female")["metrics"]["uar"]
        for model in (metrics["baseline"], *models)
    ]
    assert female[2::3][: len(expected)] == [f"{uar['value']:.3f}" for uar in expected]


def test_page_shows_the_quality_of_the_corpus(evaluation_case: EvaluationCase, page: str) -> None:
    quality = read_json(evaluation_case.manifest / "quality.json")
    assert "Krippendorff" in page
    assert f"{quality['raters']['krippendorff_alpha']:.3f}" in page
    assert "before and after the class caps" in page
    assert "train before caps" in page


def test_settings_searched_besides_distillation_are_reported_as_a_bias(
    evaluation_case: EvaluationCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = evaluation_case.metrics
    comparison = {**metrics["distillation"][0], "model": "multimodal-search", "seeds": 2}
    changed = {**metrics, "distillation": [comparison]}
    monkeypatch.setattr(
        "multistill.report.build.read_json",
        lambda path: changed if path.name == "metrics.json" else read_json(path),
    )
    note = "there was no separate search for the control"
    for space, reported in (
        ({"distillation.weight": {"low": 0.1, "high": 0.9}}, False),
        ({"train.learning_rate": {"low": 1e-4, "high": 1e-3}}, True),
    ):
        job = make_job(
            students=[{"name": "multimodal", "model": {"preset": "small-student"}}],
            search={"space": space},
        )
        page = " ".join(evaluation_case.report(job)[1].split())
        assert (note in page) is reported
    assert "first seed" in page, "McNemar's test is of the first seed only"


def test_no_sentence_shows_a_backtick(evaluation_case: EvaluationCase) -> None:
    """They are written for terminals, where backticks mark what is to be typed."""
    report, page = evaluation_case.default_report
    sentences = [warning["text"] for warning in report["warnings"]]
    assert any("`" in sentence for sentence in sentences)
    assert "`" not in page[page.index("<body") :]
