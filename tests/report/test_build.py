"""Evaluation of real little models on real files, and the report drawn from it."""

from __future__ import annotations

import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers.evaluation_case import (
    artifact,
    make_job,
    make_manifest,
    make_model,
    make_quality,
    make_search,
    make_store,
    make_targets,
)
from rich.console import Console

from multistill.config import CLASSES, JobConfig
from multistill.errors import MultistillError
from multistill.evaluation.evaluate import Candidate, evaluate
from multistill.inference.latency import NEEDED, EncoderLatency
from multistill.report.build import warnings, write_report
from multistill.report.terminal import count, score, table
from multistill.workspace import read_json

SUMMARY = {"rejected": 3, "synthetic": True, "leaks": {"sessions": 0, "speakers": 0}}
CONTRACT = {"job", "created", "versions", "corpus", "baseline", "models", "search", "stages"}


class Case:
    """Everything that one job leaves before its report."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.manifest = make_manifest(home / "manifest")
        make_quality(self.manifest, home)
        self.store = make_store(self.manifest, home / "features")
        models = {
            "teacher": ("small-teacher", 60),
            "teacher-2": ("small-teacher", 20),
            "multimodal": ("small-student", 40),
            "multimodal-control": ("small-student", 1),
            "audio": ("small-audio-student", 40),
            "text": ("small-text-student", 40),
        }
        self.folders = {
            name: make_model(self.manifest, self.store, home / name, preset, steps, seed)
            for seed, (name, (preset, steps)) in enumerate(models.items())
        }
        self.entries = [
            Candidate("teacher", "teacher", [self.folders["teacher"], self.folders["teacher-2"]]),
            self.entry("multimodal", compare_to="multimodal-control", mlflow_run_id="abc123"),
            self.entry("multimodal-control", role="control"),
            self.entry("audio", compare_to="multimodal-control"),
            self.entry("text"),
        ]
        self.distill = make_targets(self.manifest, home / "distill")
        self.out = home / "evaluation"
        self.out.mkdir()
        self.summary = evaluate(
            self.manifest, self.store, self.entries, make_job().evaluation, self.out, seed=5
        )
        self.facts: dict[str, Any] = read_json(self.out / "metrics.json")

    def entry(self, name: str, role: str = "student", **more: Any) -> Candidate:
        return Candidate(name, role, [self.folders[name]], **more)

    def report(
        self, job: JobConfig | None = None, trials: int = 40, **summary: Any
    ) -> tuple[dict[str, Any], str]:
        out = self.home / f"report-{time.monotonic_ns()}"
        out.mkdir()
        found = make_search(out / "search", trials)
        stages = [
            {"name": "prepare", "fingerprint": "0123456789abcdef", "seconds": 1.0, "cached": True}
        ]
        report = write_report(
            out,
            job=job or make_job(),
            artifacts={
                "manifest": artifact("prepare", self.manifest, {**SUMMARY, **summary}),
                "features": artifact("features", self.store, {"clips": 384, "quarantined": 1}),
                "soft_targets": artifact("distill", self.distill),
                "evaluation": artifact("evaluate", self.out),
                "search": artifact("search", out / "search", found),
            },
            histories={
                name: read_json(folder / "history.json") for name, folder in self.folders.items()
            },
            stages=stages,
        )
        return report, (out / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("case"))


@pytest.fixture(scope="module")
def written(case: Case) -> tuple[dict[str, Any], str]:
    return case.report()


def test_predictions_hold_every_answer_of_every_model_and_the_baseline(case: Case) -> None:
    answers = pq.read_table(case.out / "predictions.parquet").to_pandas()
    clips = case.facts["test"]["clips"]
    probes = {f"linear probe, {modality}" for modality in ("multimodal", "audio", "text")}
    names = {"majority baseline", *probes, *(e.name for e in case.entries)}
    assert set(answers["model"]) == names
    assert len(answers) == clips * len(names)
    shares = np.stack(answers["distribution"].to_list())
    assert shares.sum(axis=1) == pytest.approx(1.0, abs=1e-5)
    student = answers[answers["model"] == "multimodal"]
    modes = np.stack(student["distribution"].to_list()).argmax(axis=1)
    assert [CLASSES[mode] for mode in modes] == student["label"].to_list()


def test_several_seeds_are_compared_by_their_means(case: Case, tmp_path: Path) -> None:
    def trained(name: str, other: str, **more: Any) -> Candidate:
        return case.entry(name, repeats=[case.folders[other]], **more)

    entries = [
        trained("multimodal", "audio", compare_to="multimodal-control"),
        trained("multimodal-control", "text", role="control"),
        case.entry("text", compare_to="multimodal-control"),
    ]
    config = make_job().evaluation.model_copy(update={"latency_clips": 0})
    evaluate(case.manifest, case.store, entries, config, tmp_path, seed=5)
    facts = read_json(tmp_path / "metrics.json")
    alone = {model["name"]: model["metrics"]["macro_f1"] for model in case.facts["models"]}
    found = {model["name"]: model for model in facts["models"]}
    assert found["multimodal"]["metrics"]["macro_f1"] == alone["multimodal"], "its own figures"
    seeds = found["multimodal"]["seeds"]["metrics"]["macro_f1"]
    first, second = (alone[name]["value"] for name in ("multimodal", "audio"))
    assert seeds["values"] == pytest.approx([first, second])
    assert seeds["value"] == pytest.approx((first + second) / 2)
    assert seeds["sd"] == pytest.approx(abs(first - second) / 2**0.5)
    assert seeds["low"] <= seeds["value"] <= seeds["high"]
    both, single = facts["distillation"]
    expected = seeds["value"] - (alone["multimodal-control"]["value"] + alone["text"]["value"]) / 2
    assert both["seeds"] == 2 and "mean of 2 seeds" in both["sentence"]
    assert both["differences"]["macro_f1"]["value"] == pytest.approx(expected)
    assert single["seeds"] == 1, "one training is never compared with a mean"
    assert "seeds" not in found["text"]


def test_metrics_can_be_recomputed_from_the_predictions(case: Case) -> None:
    answers = pq.read_table(case.out / "predictions.parquet").to_pandas()
    facts = case.facts
    for model in (facts["baseline"], *facts["references"], *facts["models"]):
        own = answers[(answers["model"] == model["name"]) & answers["truth"].notna()]
        accuracy = (own["truth"] == own["label"]).mean()
        assert model["metrics"]["accuracy"]["value"] == pytest.approx(accuracy)
        for figures in model["metrics"].values():
            assert figures["low"] <= figures["high"]


def test_clips_without_features_and_ties_are_counted(case: Case) -> None:
    test = case.facts["test"]
    manifest = pq.read_table(case.manifest / "manifest.parquet").to_pandas()
    rows = manifest[manifest["split"] == "test"]
    assert test["without_features"] == 1
    assert test["clips"] == len(rows) - 1
    assert test["ties"] + test["decided"] == test["clips"]
    assert test["ties"] > 0


def test_trained_models_beat_the_baseline_and_parameters_add_up(case: Case) -> None:
    by_name = {model["name"]: model for model in case.facts["models"]}
    baseline = case.facts["baseline"]["metrics"]
    assert baseline["uar"]["value"] == pytest.approx(1 / 7)
    assert by_name["teacher"]["metrics"]["uar"]["low"] > baseline["uar"]["high"]
    assert by_name["teacher"]["members"] == 2
    text, audio = by_name["text"], by_name["audio"]
    assert text["params_end_to_end"] == text["params_trainable"] + 5_000
    assert audio["params_end_to_end"] == audio["params_trainable"]


def test_latency_end_to_end_adds_the_encoders_of_the_modality(case: Case) -> None:
    latency = case.facts["latency"]
    assert latency["reason"] is None
    assert set(latency["parts"]) == {"decode", "speech", "text"}
    for model in case.facts["models"]:
        head, whole = model["latency_ms"], model["latency_end_to_end_ms"]
        assert 0 < head["p50"] <= head["p95"]
        parts = NEEDED[model["modality"]]
        assert whole["p95"] >= max(latency["parts"][part]["p50"] for part in parts)
        assert model["real_time_factor"] == pytest.approx(whole["p50"] / 500, rel=0.5)


def test_encoders_that_cannot_be_run_here_cost_the_timing_only(case: Case) -> None:
    info = {"settings": {"speech": {"model": "nobody/there"}}}
    road = EncoderLatency(case.manifest, info, ["case-12-00"], 1, torch.device("cpu"))
    assert road.end_to_end("audio", [1.0]) is None
    assert road.reason is not None and "nobody/there" in road.reason


def test_distillation_is_judged_against_the_control(case: Case) -> None:
    lines = {line["model"]: line for line in case.facts["distillation"]}
    assert set(lines) == {"multimodal", "audio"}
    assert lines["multimodal"]["verdict"] == "helped"  # its control was hardly trained
    assert case.summary["distillation"][0] == lines["multimodal"]["sentence"]


def test_equal_seeds_give_equal_metrics(case: Case, tmp_path: Path) -> None:
    config = make_job().evaluation.model_copy(update={"latency_clips": 0})
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        evaluate(case.manifest, case.store, case.entries[1:3], config, tmp_path / name, seed=9)
    assert (tmp_path / "a/metrics.json").read_text() == (tmp_path / "b/metrics.json").read_text()


def test_slices_split_the_test_set(case: Case) -> None:
    slices = case.facts["baseline"]["slices"]
    decided = case.facts["test"]["decided"]
    for by in ("session", "gender", "votes", "transcript"):
        sizes = [line["clips"] for line in slices if line["by"] == by]
        assert len(sizes) > 1, by
        assert sum(sizes) == decided, by


def test_an_unknown_control_or_a_doubled_name_is_refused(case: Case, tmp_path: Path) -> None:
    config = make_job().evaluation
    wrong = [case.entry("multimodal", compare_to="nobody")]
    with pytest.raises(MultistillError, match="`nobody`"):
        evaluate(case.manifest, case.store, wrong, config, tmp_path)
    twice = [case.entry("audio"), case.entry("audio")]
    with pytest.raises(MultistillError, match="two models"):
        evaluate(case.manifest, case.store, twice, config, tmp_path)


def test_no_scorable_test_clip_is_one_sentence(case: Case, tmp_path: Path) -> None:
    empty = pq.read_table(case.manifest / "manifest.parquet", filters=[("split", "!=", "test")])
    pq.write_table(empty, tmp_path / "manifest.parquet")
    with pytest.raises(MultistillError, match="nothing can be scored"):
        evaluate(tmp_path, case.store, case.entries, make_job().evaluation, tmp_path)


def test_teacher_is_surer_of_clips_it_was_trained_on(written: tuple[dict[str, Any], str]) -> None:
    report, page = written
    lines = {line["name"]: line for line in report["teacher_calibration"]}
    assert set(lines) == {
        "training, seen by the teacher",
        "training, out of fold",
        "validation",
        "test",
    }
    assert lines["training, seen by the teacher"]["accuracy"] > lines["test"]["accuracy"]
    assert "out of fold" in page


def test_report_has_the_keys_of_the_contract(written: tuple[dict[str, Any], str]) -> None:
    report, _ = written
    assert set(report) >= CONTRACT
    assert {"counts", "splits", "class_shares", "leaks"} <= set(report["corpus"])
    assert {"trials", "best", "study"} <= set(report["search"])
    assert {"name", "fingerprint", "seconds", "cached"} <= set(report["stages"][0])
    for model in report["models"]:
        assert {"name", "role", "modality", "params_trainable", "params_end_to_end"} <= set(model)
        assert {"metrics", "mlflow_run_id"} <= set(model)
        for metric in ("accuracy", "uar", "macro_f1", "weighted_f1"):
            assert set(model["metrics"][metric]) == {"value", "low", "high"}
    assert json.loads(json.dumps(report, allow_nan=False)) == report


class Structure(HTMLParser):
    """Collects what the page's tests ask for."""

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


def structure(page: str) -> Structure:
    found = Structure()
    found.feed(page)
    return found


def test_page_is_whole_and_needs_nothing_from_elsewhere(
    written: tuple[dict[str, Any], str],
) -> None:
    found = structure(written[1])
    assert found.open == []
    assert found.external == []
    assert "<script" not in written[1]
    assert "@import" not in written[1]
    assert len(found.ids) == len(set(found.ids)), "ids are unique, those of pictures included"
    assert found.unnamed == 0, "every picture says what it shows"
    assert not re.search("#0([1-9])0\\1", written[1]), "pictures take the page's colours"


def test_every_links_target_is_on_the_page(written: tuple[dict[str, Any], str]) -> None:
    _, page = written
    ids = set(structure(page).ids)
    targets = set(re.findall(r'(?:href="#|url\(#)([^")]+)', page))
    assert targets
    assert targets <= ids


def test_every_table_of_results_names_encoders_and_baseline(
    written: tuple[dict[str, Any], str],
) -> None:
    tables = [text for text in structure(written[1]).tables if "UAR" in text or "ECE" in text]
    assert len(tables) >= 4
    for text in tables:
        assert "untrained stand-in" in text
        assert "always " in text or "shares of training" in text
        assert "SYNTHETIC" in text


def test_leaky_split_stands_on_every_table_of_results(case: Case) -> None:
    job = make_job(name="a&b", split={"by": "random", "allow_leak": True})
    report, page = case.report(job, synthetic=False)
    assert report["warnings"][0]["title"] == "LEAKY SPLIT"
    for text in structure(page).tables:
        if "UAR" in text:
            assert "LEAKY SPLIT" in text
    assert "SYNTHETIC" not in page
    assert "<title>a&amp;b" in page, "names are text, not markup"


def test_banners_follow_what_was_counted(case: Case) -> None:
    def kinds(sessions: int, synthetic: bool, **leaks: int) -> set[str]:
        corpus = {
            "leaks": {"sessions": sessions, "speakers": 0, **leaks},
            "synthetic": synthetic,
            "splits": {"test": {"utterances": 96}},
        }
        return {warning["kind"] for warning in warnings(corpus, case.facts, make_job())}

    always = {"untrained", "few-sessions", "left-out"}
    assert kinds(0, False) == always
    assert kinds(2, False) == always | {"leak"}
    assert kinds(0, True) == always | {"synthetic"}
    assert kinds(0, False, recordings=1) == always | {"recordings"}
    assert kinds(0, False, transcript_rows=96) == always | {"transcripts"}


def test_page_of_two_thousand_trials_is_small(case: Case) -> None:
    _, page = case.report(trials=2000)
    assert len(page) < 1_500_000
    assert page.count("<tr") < 300


def test_slices_on_the_page_belong_to_the_model_above_them(
    case: Case, written: tuple[dict[str, Any], str]
) -> None:
    text = next(text for text in structure(written[1]).tables if "by gender" in text)
    shown = [model for model in case.facts["models"] if model["role"] != "control"]
    head, body = text.split("by session")
    assert head.split()[-len(shown) :] == [model["name"] for model in shown]
    female = body[body.index("female") :].split()
    expected = [
        next(line for line in model["slices"] if line["name"] == "female")["metrics"]["uar"]
        for model in (case.facts["baseline"], *shown)
    ]
    assert female[2::3][: len(expected)] == [f"{uar['value']:.3f}" for uar in expected]


def test_quality_of_the_corpus_stands_on_the_page(
    case: Case, written: tuple[dict[str, Any], str]
) -> None:
    quality = read_json(case.manifest / "quality.json")
    _, page = written
    assert "Krippendorff" in page
    assert f"{quality['raters']['krippendorff_alpha']:.3f}" in page
    assert "before and after the caps" in page
    assert "train before caps" in page


def test_settings_searched_beside_the_distillation_are_named_as_a_bias(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = {**case.facts["distillation"][0], "model": "multimodal-search", "seeds": 2}
    facts = {**case.facts, "distillation": [line]}
    monkeypatch.setattr(
        "multistill.report.build.read_json",
        lambda path: facts if path.name == "metrics.json" else read_json(path),
    )
    note = "control had no search of its own"
    for space, told in (
        ({"distillation.weight": {"low": 0.1, "high": 0.9}}, False),
        ({"train.learning_rate": {"low": 1e-4, "high": 1e-3}}, True),
    ):
        job = make_job(
            students=[{"name": "multimodal", "model": {"preset": "small-student"}}],
            search={"space": space},
        )
        page = " ".join(case.report(job)[1].split())
        assert (note in page) is told
    assert "first seed" in page, "McNemar's columns are not of the means"


def test_page_without_a_search_has_no_search_section(case: Case, tmp_path: Path) -> None:
    report = write_report(
        tmp_path,
        job=make_job(search={"enabled": False}),
        artifacts={
            "manifest": artifact("prepare", case.manifest, SUMMARY),
            "features": artifact("features", case.store),
            "soft_targets": artifact("distill", case.distill),
            "evaluation": artifact("evaluate", case.out),
        },
    )
    assert report["search"] is None
    assert 'id="search"' not in (tmp_path / "report.html").read_text()


def test_terminal_table_shows_baseline_flags_and_intervals(
    written: tuple[dict[str, Any], str],
) -> None:
    console = Console(width=80)
    with console.capture() as captured:
        console.print(table(written[0]))
    text = captured.get()
    for wanted in ("SYNTHETIC CORPUS", "always ", "untrained stand-in", "linear probe", "weighted"):
        assert wanted in text
    uar = written[0]["models"][0]["metrics"]["uar"]
    assert f"{uar['value']:.3f}" in text
    assert f"{uar['low']:.2f}–{uar['high']:.2f}" in text
    assert "…" not in text, "nothing is cut off in a log of 80 columns"
    told = " ".join(text.split())
    assert "distillation helped" in told
    assert "best of 40 trials has temperature" in told


def test_scores_and_counts_read_well() -> None:
    assert score({"value": 0.5, "low": 0.4, "high": 0.6}) == "0.500 [0.400, 0.600]"
    assert score({"value": None, "low": None, "high": None}) == "-"
    assert [count(n) for n in (None, 907, 41_234, 15_755_783)] == ["-", "907", "41.2 k", "15.8 M"]
