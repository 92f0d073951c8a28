"""The folder to hand over: it loads as it was, its card says what is known, its code runs."""

from __future__ import annotations

import ast
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.exported_clips import run_without, write_clip
from helpers.predictor_case import save_predictor

from multistill import Predictor
from multistill.errors import UsageError
from multistill.export.card import card, find_report
from multistill.export.formats import Export, export
from multistill.export.to_folder import CARD, PROGRAM
from multistill.inference.quantize import quantize
from multistill.models.files import read_model_config
from multistill.workspace import write_json

SCORE = {"value": 0.61, "low": 0.5, "high": 0.7}


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Export]:
    folder = tmp_path_factory.mktemp("light")
    model = save_predictor(folder / "model", "light-student-s", temperature=1.3)
    return model, export(model, folder / "out", "folder", workspace=folder / "none")


def test_the_folder_predicts_as_the_model_did(light: tuple[Path, Export], tmp_path: Path) -> None:
    model, done = light
    write_clip(tmp_path / "clip.wav")
    first, second = (Predictor.load(each, "cpu") for each in (model, done.out))
    clip = tmp_path / "clip.wav"
    assert first.predict(clip).distribution == second.predict(clip).distribution
    assert set(done.files) == {"model.safetensors", "config.json", PROGRAM, CARD}


def test_the_program_holds_no_pickle_and_no_paths(light: tuple[Path, Export]) -> None:
    _, done = light
    with zipfile.ZipFile(done.out / PROGRAM) as archive:
        for name in archive.namelist():
            content = archive.read(name)
            assert not content.startswith(b"PK"), name
            if "/weights/weight_" not in name:  # numbers, which may begin with any byte
                assert not content.startswith(b"\x80"), name
                assert b"multistill/export" not in content


def test_code_of_the_card_runs_with_torch_alone(light: tuple[Path, Export], tmp_path: Path) -> None:
    _, done = light
    text = (done.out / CARD).read_text(encoding="utf-8")
    with_package, alone = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert "Predictor.load" in with_package and len(alone.splitlines()) <= 20
    for file in done.out.iterdir():
        (tmp_path / file.name).symlink_to(file)
    write_clip(tmp_path / "clip.wav")
    printed = run_without(["multistill", "transformers"], alone, tmp_path)
    wanted = Predictor.load(done.out, "cpu").predict(tmp_path / "clip.wav").distribution
    found = ast.literal_eval(printed.strip())
    assert list(found) == list(wanted)
    np.testing.assert_allclose(list(found.values()), list(wanted.values()), atol=1e-4)


def report_of(task: str, **model: Any) -> dict[str, Any]:
    """A report.json with one model."""
    part = {"utterances": 10, "speakers": 2, "sessions": 1, "hours": 0.01}
    return {
        "job": "emodb",
        "created": "2026-01-01",
        "confidence": 0.95,
        "split": {"by": "speaker"},
        "protocol": {"sentence": "Each speaker is tested once."},
        "corpus": {"counts": {"corpora": {"emodb": 535}}, "splits": {"train": part}},
        "baseline": {"metrics": {"uar": {"value": 0.14}}},
        "warnings": [
            {"kind": "few-groups", "title": "FEW SPEAKERS", "text": "There are two."},
            {"kind": "encoder-data", "title": "KNOWS", "text": "X was trained on EMO-DB."},
        ],
        "models": [
            {
                "training": [{"task": "other"}, {"task": task}],
                "metrics": {"uar": SCORE, "macro_f1": {**SCORE, "low": None, "high": None}},
                "calibration": {"ece": {"value": 0.07, "low": 0.01, "high": 0.2}},
                "slices": [
                    {
                        "by": "gender",
                        "name": "F",
                        "clips": 82,
                        "small": False,
                        "metrics": {"uar": SCORE, "macro_f1": None},
                    }
                ],
                "fairness": [],
                "not_trained": None,
                **model,
            }
        ],
    }


def test_the_card_says_what_the_report_says(tmp_path: Path) -> None:
    model = save_predictor(tmp_path / "ws" / "models" / "abc", "light-student-s")
    config = read_model_config(model)
    config["training"]["task"] = "0123"
    write_json(model / "config.json", config)
    latest = tmp_path / "ws" / "reports" / "emodb" / "latest"
    int8 = {"metrics": {"uar": {"value": 0.58, "low": 0.4, "high": 0.7}}, "bytes": 1}
    write_json(latest / "report.json", report_of("0123", int8=int8))
    damaged = tmp_path / "ws" / "reports" / "old" / "latest" / "report.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_text("{")
    report = find_report(config, [tmp_path / "ws", tmp_path / "none"])
    assert report is not None and report["job"] == "emodb"
    text = card(config, "case", report, ["pass\n"], int8=False)
    for line in (
        "Corpora: emodb (535 clips). Split by speaker.",
        "| train | 10 | 2 | 1 | 0.01 |",
        "Each speaker is tested once. Test, job `emodb`:",
        "| UAR | 0.610 | 0.500 to 0.700 |",
        "| macro F1 | 0.610 | none: too few groups of clips |",
        "| calibration error, calibrated | 0.070 | 0.010 to 0.200 |",
        "| gender: F | 82 | 0.610 (0.500 to 0.700) |  |",
        "**FEW SPEAKERS.** There are two.",
        "X was trained on EMO-DB.",
        "The speech encoder is `log-mel`.",
        "Not recorded.",
    ):
        assert line in text
    assert "unknown" not in text and "KNOWS" not in text and "electra" not in text
    rounded = card(config, "case", report, ["pass\n"], int8=True)
    assert "| UAR | 0.580 |" in rounded and "rounded to 8 bits" in rounded
    config["training"]["task"] = "4567"
    assert find_report(config, [tmp_path / "ws"]) is None


def test_a_card_of_dimensions_alone_has_their_agreement(tmp_path: Path) -> None:
    model = save_predictor(tmp_path / "model", "va-audio")
    config = read_model_config(model)
    config["training"] |= {"task": "0123", "validation": {"ccc": 0.4}}
    report = report_of("0123", metrics={"ccc": SCORE, "rmse": SCORE}, slices=[], calibration=None)
    report["baseline"]["metrics"] = {"ccc": {"value": 0.0}, "rmse": {"value": 1.0}}
    text = card(config, "case", report, ["pass\n"], int8=False)
    assert "| CCC | 0.610 | 0.500 to 0.700 |" in text and "UAR" not in text
    assert "On validation, on which the epoch was chosen: CCC 0.400." in card(
        config, "case", None, ["pass\n"], int8=False
    )


def test_the_card_of_a_model_without_a_job_calls_it_unknown(
    light: tuple[Path, Export], tmp_path: Path
) -> None:
    _, done = light
    assert any("no finished job has this model" in note for note in done.notes)
    text = (done.out / CARD).read_text(encoding="utf-8")
    assert text.startswith("---\nlibrary_name: multistill\n")
    for title in ("Use", "Data", "Results", "Slices", "Limits", "Encoders", "Licence"):
        assert f"\n## {title}\n" in text
    assert "is unknown: the model was not found in a finished job" in text


def test_a_model_with_a_trained_encoder_has_no_program(tmp_path: Path) -> None:
    from helpers.features_case import save_wav2vec2

    encoder = save_wav2vec2(tmp_path / "encoder")
    features = {"speech": {"model": str(encoder), "train": "full"}}
    model = save_predictor(tmp_path / "model", features=features)
    done = export(model, tmp_path / "out", "folder")
    assert "encoder.safetensors" in done.files and PROGRAM not in done.files
    assert any(f"without {PROGRAM}" in note for note in done.notes) and done.reads is None
    text = (done.out / CARD).read_text(encoding="utf-8")
    assert "trained with this model" in text and text.count("```python") == 1
    write_clip(tmp_path / "clip.wav")
    assert Predictor.load(done.out, "cpu").predict(tmp_path / "clip.wav").label is not None


def test_a_network_that_does_not_become_a_graph_has_no_program(tmp_path: Path) -> None:
    model = save_predictor(tmp_path / "model", "va-audio")
    done = export(model, tmp_path / "out", "folder")
    assert PROGRAM not in done.files
    assert any(f"without {PROGRAM}: " in note and "va-audio" in note for note in done.notes)
    write_clip(tmp_path / "clip.wav")
    found, wanted = (
        Predictor.load(each, "cpu").predict(tmp_path / "clip.wav") for each in (done.out, model)
    )
    assert found.dimensions == wanted.dimensions and found.dimensions
    with pytest.raises(UsageError, match="recurrent layers of the network va-audio"):
        export(model, tmp_path / "onnx", "onnx")


def test_an_empty_folder_is_filled_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_predictor(tmp_path / "model", "va-audio")
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "here")
    for out in (tmp_path / "link", Path()):
        monkeypatch.chdir(tmp_path / "here")
        done = export(model, out, "folder")
        assert sorted(done.files) == sorted(path.name for path in Path().iterdir())
        assert (tmp_path / "link").is_symlink() and CARD in done.files
        for path in Path().iterdir():
            path.unlink()


def test_a_folder_in_8_bits_is_exported_in_8_bits(
    light: tuple[Path, Export], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = light
    quantize(model, tmp_path / "int8")
    monkeypatch.setattr("multistill.export.programs.trace", lambda folder, head_only: None)
    done = export(tmp_path / "int8", tmp_path / "out", "folder")
    assert "rounded to 8 bits" in (done.out / CARD).read_text(encoding="utf-8")
