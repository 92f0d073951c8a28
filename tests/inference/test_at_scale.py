"""Many clips on Ray: the same answers, failures among them, and shards that a rerun continues."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import soundfile
from helpers.predictor_case import save_predictor, speech_like

from multistill import Predictor
from multistill.cli.app import main
from multistill.errors import UsageError
from multistill.inference.at_scale import predict_at_scale
from multistill.tracking.logger import NullLogger


def test_answers_on_ray_are_those_of_one_process(
    ray_session: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_predictor(tmp_path / "model")
    rows = []
    for number in range(5):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, speech_like(0.5 + number / 4, seed=number), 16_000)
        rows.append({"id": f"clip {number}", "audio": path.name, "text": "hello" * (number % 2)})
    (tmp_path / "5.wav").write_bytes(b"no sound")
    rows += [
        {"id": "broken", "audio": "5.wav", "text": "hello"},
        {"id": "words", "audio": None, "text": "hello"},
        {"id": "no text", "audio": "0.wav", "text": "a\x07"},
    ]
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "clips.parquet")
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for way in ("--ray", "--no-ray"):
        out = tmp_path / f"out{way}.jsonl"
        arguments = [str(model), "--audio", str(tmp_path / "clips.parquet"), way]
        with pytest.raises(SystemExit) as end:
            main(["predict", *arguments, "--out", str(out)])
        assert end.value.code == 1 and "2 of 8 clips could not" in capsys.readouterr().err
        lines = [json.loads(line) for line in out.read_text().splitlines()]
        found[way] = {line["id"]: line for line in lines}
        assert len(lines) == 8 and not list(tmp_path.glob(".*"))
    assert list(found["--no-ray"]) == [row["id"] for row in rows]
    for name, wanted in found["--no-ray"].items():
        row = found["--ray"][name]
        assert row.get("error") == wanted.get("error")
        if "error" not in row:
            assert row["label"] == wanted["label"] and row["missing"] == wanted["missing"]
            assert row["distribution"] == pytest.approx(wanted["distribution"], abs=1e-4)


def test_models_that_the_features_stage_cannot_serve_are_refused(tmp_path: Path) -> None:
    predictor = Predictor.load(save_predictor(tmp_path / "m", "small-text-student"))
    with pytest.raises(UsageError, match="--ray: not with this model, it reads text alone"):
        list(predict_at_scale(predictor, [], tmp_path, None, None, NullLogger()))


def test_ray_needs_a_place_for_its_shards(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_predictor(tmp_path / "m")
    (tmp_path / "a.csv").write_text("text\nhello\n")
    with pytest.raises(SystemExit) as end:
        main(["predict", str(model), "--audio", str(tmp_path / "a.csv"), "--ray"])
    assert end.value.code == 2
    assert "name a file with --out" in capsys.readouterr().err
