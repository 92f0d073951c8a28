"""What `predict` and `Predictor` tell the user to do helps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import soundfile
from helpers.advice import says, told
from helpers.features_case import save_wav2vec2
from helpers.predictor_case import save_predictor, speech_like

from multistill import Predictor
from multistill.audio import mpeg4
from multistill.cli.app import main
from multistill.errors import UsageError
from multistill.inference.at_scale import predict_at_scale
from multistill.inference.find_clips import find_clips
from multistill.inference.rows import writer
from multistill.tracking.logger import NullLogger
from multistill.workspace import Workspace, write_json


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_predictor(tmp_path / "model")


def write_clip(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, speech_like(1.0), 16_000)
    return path


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main(["predict", *map(str, arguments)])
    return int(end.value.code or 0)


def test_which_clips(tmp_path: Path) -> None:
    with told("there is nothing to predict; give --audio or --text", UsageError):
        find_clips([], None)
    find_clips([], "hello")
    with told("--audio is empty; name a file, a folder, a pattern or a table", UsageError):
        find_clips([""], None)
    one, two = write_clip(tmp_path / "one.wav"), write_clip(tmp_path / "more" / "two.wav")
    with told("name one file with --audio, or give a table with the columns audio and text"):
        find_clips([str(one), str(two)], "hello")
    find_clips([str(one)], "hello")
    with told("two clips are called `{}`; give each an id of its own", UsageError):
        find_clips([str(one), str(one)], None)
    table = tmp_path / "clips.csv"
    table.write_text("id,audio\na,one.wav\nb,one.wav\n")
    assert len(find_clips([str(table)], None)) == 2
    (tmp_path / "empty").mkdir()
    with told("there is no recording below `{}` ({}); name another folder", UsageError):
        find_clips([str(tmp_path / "empty")], None)
    find_clips([str(two.parent)], None)
    with told("no file is called `{}`; check the pattern", UsageError):
        find_clips([str(tmp_path / "*.flac")], None)
    find_clips([str(tmp_path / "*.wav")], None)
    with told("{} cannot be read ({}); name another table", UsageError):
        find_clips([str(tmp_path / "none.csv")], None)
    table.write_text("path,words\none.wav,hello\n")
    with told("neither a column `audio` nor `text`, only {}; rename its columns", UsageError):
        find_clips([str(table)], None)
    table.write_text("audio,text\none.wav,hello\n")
    [clip] = find_clips([str(table)], None)
    assert clip.input.audio == one and clip.input.text == "hello"


def test_failed_clips_and_their_rows(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mpeg4, "PACKAGE", "not_installed")
    (bad := tmp_path / "clips" / "bad.m4a").parent.mkdir()
    bad.write_bytes(b"\0\0\0\x20ftypM4A \0\0\0\0")
    good = write_clip(tmp_path / "clips" / "good.wav")
    assert run(model, "--audio", bad.parent) == 1
    captured = capsys.readouterr()
    says("{} of {} clips could not be predicted; see `error` of their rows", captured.err)
    [error] = [row["error"] for row in map(json.loads, captured.out.splitlines()) if "error" in row]
    says("sound in MPEG-4 files (M4A, AAC) is read with the package av; run `pip install", error)
    samples, rate = soundfile.read(good)
    soundfile.write(bad.with_suffix(".flac"), samples, rate)
    soundfile.write(dump := bad.with_suffix(".sds"), samples, rate, format="SDS")
    dump.rename(bad)
    assert run(model, "--audio", bad) == 1
    says("a MIDI Sample Dump (SDS) is not read; save it as WAV or FLAC", capsys.readouterr().err)
    bad.unlink()
    assert run(model, "--audio", bad.parent) == 0


def test_arguments(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with told("temperature: {} is not above 0; use 1 for none", UsageError):
        Predictor.load(model, temperature=0.0)
    with told("device: `{}` cannot be used ({}); use cpu, or leave it out", UsageError):
        Predictor.load(model, "nowhere")
    predictor = Predictor.load(model, "cpu", temperature=1.0)
    clip = (speech_like(1.0), 16_000)
    with told("unsure_below: {} is no probability; use a value from 0 to 1", UsageError):
        predictor.predict(clip, unsure_below=50)
    predictor.predict(clip, unsure_below=0.5)
    with told("only: no class is possible; name one, or leave it out", UsageError):
        predictor.predict(clip, only=[])
    with told("only: the model has no class `{}`; use some of its classes: {}", UsageError):
        predictor.predict(clip, only=["happiness"])
    predictor.predict(clip, only=["happy"])
    with (
        told("--out {}: `{}` is no format; use an ending of {}", UsageError),
        writer(tmp_path / "out.xlsx", [], []),
    ):
        pass
    with writer(tmp_path / "out.csv", [], []):
        pass
    path = write_clip(tmp_path / "a.wav")
    assert run(model, "--audio", path, "--audio", tmp_path, "--ray") == 2
    capsys.readouterr()
    table = tmp_path / "words.csv"
    table.write_text("text\nhello\n")
    assert run(model, "--audio", table, "--ray") == 2
    says(
        "--ray keeps its shards beside the result; name a file with --out", capsys.readouterr().err
    )
    assert run(model, "--audio", table, "--ray", "--out", tmp_path / "o.csv") == 0
    text = save_predictor(tmp_path / "text", "small-text-student")
    with told("--ray: not with this model, {}; use --no-ray", UsageError):
        list(predict_at_scale(Predictor.load(text), [], tmp_path, None, None, NullLogger()))
    assert run(text, "--audio", table, "--no-ray", "--out", tmp_path / "o.csv") == 0


def test_encoders_of_a_model(tmp_path: Path) -> None:
    encoder = save_wav2vec2(tmp_path / "encoder")
    model = save_predictor(tmp_path / "model", features={"speech": str(encoder)})
    weights = encoder / "model.safetensors"
    original = weights.read_bytes()
    weights.write_bytes(original[:-4] + b"\0\0\0\0")
    with told("restore those weights, or train the model again"):
        Predictor.load(model)
    weights.write_bytes(original)
    Predictor.load(model)
    encoder.rename(tmp_path / "elsewhere")
    with told("needs the {} encoder `{}` ({}); put it where it was when the model was trained"):
        Predictor.load(model)
    (tmp_path / "elsewhere").rename(encoder)
    Predictor.load(model)
    config = json.loads((model / "config.json").read_text())
    speech = {**config["encoders"]["speech"], "settings": {"model": str(encoder), "unknown": 1}}
    newer = {**config, "encoders": {**config["encoders"], "speech": speech}}
    write_json(model / "config.json", newer)
    with told("(features.{}); use the version of multistill that trained it"):
        Predictor.load(model)
    write_json(model / "config.json", {**config, "encoders": {}})
    with told("does not say which {} encoder it reads, so recordings cannot be encoded for it"):
        Predictor.load(model)
    write_json(model / "config.json", config)
    Predictor.load(model)


def test_jobs(model: Path, tmp_path: Path) -> None:
    workspace = tmp_path / "ws"
    with told("neither a model folder nor a job that has finished in `{}`; give one of them"):
        Predictor.load("job", workspace=workspace)
    report = workspace / "reports" / "job" / "latest"
    report.mkdir(parents=True)
    write_json(report / "report.json", {"stages": [{"name": "students", "fingerprint": "f" * 16}]})
    summary = {"models": {"audio": {"fingerprint": "0" * 16, "role": "student"}}}
    Workspace(workspace).make("students", "f" * 16, lambda out: summary)
    with told("has no student in `{}` any more; run it again, or give a model folder"):
        Predictor.load("job", workspace=workspace)
    shutil.copytree(model, workspace / "models" / ("0" * 16))
    Predictor.load("job", workspace=workspace)


def test_models_of_mlflow(
    model: Path, tmp_path: Path, mlflow_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    workspace = tmp_path / "ws"
    workspace.mkdir()

    def load(name: str, **more: Any) -> Predictor:
        return Predictor.load(name, workspace=workspace, **more)

    with told("there is no MLflow database in `{}`; set MLFLOW_TRACKING_URI, or give the"):
        load("models:/m@champion")
    shutil.copy(mlflow_database, workspace / "mlflow.db")
    with told("{} cannot be read from {} ({}); check the name, and that the server runs"):
        load("models:/m@champion")
    client = MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}")
    experiment = client.create_experiment("e", artifact_location=(tmp_path / "a").as_uri())
    client.create_registered_model("m")
    for content in (tmp_path / "other", model):
        content.mkdir(exist_ok=True)
        (content / "note.txt").write_text("note")
        run_id = client.create_run(experiment).info.run_id
        client.log_artifacts(run_id, str(content), artifact_path="model")
        source = f"{client.get_run(run_id).info.artifact_uri}/model"
        client.create_model_version("m", source, run_id)
    with told("holds no {} with {}; give a model that multistill registered"):
        load("models:/m/1")
    client.set_registered_model_alias("m", "champion", "2")
    assert load("models:/m@champion").name == load("models:/m/2").name == "m version 2"
    assert load(f"runs:/{run_id}").predict(None, "hello").label is not None
