"""Weights from packages: what is stored, what is refused, what the commands say."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from multistill.cli import main
from multistill.config import FeaturesConfig, SpeechEncoderConfig
from multistill.doctor import _encoders
from multistill.encoders import packaged
from multistill.encoders.packaged import SMART_TURN, PackagedWeights
from multistill.encoders.preflight import missing_weights
from multistill.encoders.registry import load_speech, resolve_speech
from multistill.encoders.smart_turn import empty_encoder
from multistill.errors import MultistillError
from multistill.pipeline import jobfile
from multistill.pipeline.recipes import steps_of
from multistill.workspace import Workspace

needs_weights = pytest.mark.skipif(
    not SMART_TURN.is_stored(), reason=f"needs `{SMART_TURN.command}`, which `make install` runs"
)
LICENCE = "BSD 2-Clause License\n\nCopyright (c) Daily\n"


@pytest.fixture
def original() -> bytes:
    return SMART_TURN.original().read_bytes()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv(packaged.CACHE_VARIABLE, str(folder))
    return folder


def write_wheel(folder: Path, original: bytes) -> tuple[Path, PackagedWeights]:
    """A wheel with the published file, and the table's entry for it."""
    wheel = folder / "pipecat_ai-1.14.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(SMART_TURN.member, original)
        archive.writestr(SMART_TURN.licence_member, LICENCE)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return wheel, replace(SMART_TURN, wheel_sha256=digest)


@needs_weights
def test_the_stored_tensors_are_those_of_the_encoder(
    original: bytes, cache: Path, tmp_path: Path
) -> None:
    wheel, weights = write_wheel(tmp_path, original)
    folder = packaged.get(weights, wheel)
    assert folder.is_relative_to(cache)
    assert weights.is_stored()
    with safe_open(folder / "model.safetensors", "pt") as stored:
        names = set(stored.keys())
    assert names == set(empty_encoder().state_dict())
    notice = (folder / "NOTICE.txt").read_text(encoding="utf-8")
    assert LICENCE in notice
    assert "Copyright (c) 2022 OpenAI" in notice
    assert (folder / "original.onnx").read_bytes() == original


@needs_weights
def test_two_conversions_are_the_same_bytes(original: bytes, cache: Path, tmp_path: Path) -> None:
    wheel, weights = write_wheel(tmp_path, original)
    first = (packaged.get(weights, wheel) / "model.safetensors").read_bytes()
    assert (packaged.get(weights, wheel) / "model.safetensors").read_bytes() == first


@pytest.mark.parametrize("content", [b"", b"not a wheel", b"PK\x05\x06" + bytes(18)])
def test_a_wheel_with_another_checksum_is_refused_and_nothing_is_stored(
    content: bytes, cache: Path, tmp_path: Path
) -> None:
    wheel = tmp_path / "pipecat_ai-1.14.0-py3-none-any.whl"
    wheel.write_bytes(content)
    with pytest.raises(MultistillError, match=r"is not the published wheel of pipecat-ai==1\.14"):
        packaged.get(SMART_TURN, wheel)
    assert not cache.exists()


@needs_weights
def test_a_changed_byte_of_the_real_wheel_is_refused(
    original: bytes, cache: Path, tmp_path: Path
) -> None:
    wheel, weights = write_wheel(tmp_path, original)
    content = bytearray(wheel.read_bytes())
    content[1000] ^= 1
    wheel.write_bytes(content)
    with pytest.raises(MultistillError, match="nothing was stored"):
        packaged.get(weights, wheel)
    assert not cache.exists()


@needs_weights
def test_a_damaged_file_is_told_and_the_command_mends_it(
    original: bytes, cache: Path, tmp_path: Path
) -> None:
    wheel, weights = write_wheel(tmp_path, original)
    path = packaged.get(weights, wheel) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(MultistillError, match=r"is damaged; run `multistill weights get smart-tu"):
        weights.load()
    packaged.get(weights, wheel)
    assert weights.load()
    path.unlink()
    with pytest.raises(MultistillError, match="cannot be read"):
        weights.load()


def test_without_the_weights_every_way_says_the_command(cache: Path) -> None:
    config = SpeechEncoderConfig(model="smart-turn")
    with pytest.raises(MultistillError, match="run `multistill weights get smart-turn`"):
        load_speech(config, None, torch.device("cpu"))
    features = FeaturesConfig.model_validate({"speech": "smart-turn"})
    [sentence] = missing_weights(features)
    assert sentence.startswith("features.speech.model: the weights of `smart-turn` are not on")
    job = jobfile.parse("name: t\ncorpora: [{kind: demo}]\nfeatures: {speech: smart-turn}", "j")
    [step] = [one for one in steps_of(job, Workspace(cache)) if one.name == "features"]
    assert step.problems() == [sentence]
    finding = next(one for one in _encoders(job) if "smart-turn" in one.sentence)
    assert not finding.ok
    assert finding.fix == "run `multistill weights get smart-turn`"


def test_validate_refuses_and_submit_does_not(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "job.yaml"
    text = f"name: t\nworkspace: {tmp_path}\ncorpora: [{{kind: demo}}]\n"
    file.write_text(text + "features: {speech: smart-turn}\n", encoding="utf-8")
    with pytest.raises(SystemExit) as end:
        main(["validate", str(file)])
    assert end.value.code == 2
    assert "run `multistill weights get smart-turn`, or use `log-mel`" in capsys.readouterr().err
    # The machine that submits needs no weights, the nodes do.
    assert jobfile.load(file, for_cluster=True).features.speech.model == "smart-turn"


def test_the_identity_is_that_of_the_published_file_on_every_machine(cache: Path) -> None:
    resolved = resolve_speech(SpeechEncoderConfig(model="smart-turn"))
    assert resolved == f"pipecat-ai-1.14.0-{SMART_TURN.member_sha256[:16]}-{packaged.CONVERSION}"


class Pip:
    """Stands in for `pip download`: leaves a file or an error."""

    def __init__(self, wheel: Path | None, stderr: str = "") -> None:
        self.wheel, self.stderr = wheel, stderr
        self.command: list[str] = []

    def __call__(self, command: list[str], **_: Any) -> Any:
        self.command = command
        if self.wheel is not None:
            folder = Path(command[command.index("--dest") + 1])
            (folder / self.wheel.name).write_bytes(self.wheel.read_bytes())
        return subprocess.CompletedProcess(command, int(self.wheel is None), "", self.stderr)


@needs_weights
def test_a_download_takes_the_pinned_version_without_its_dependencies(
    original: bytes, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel, weights = write_wheel(tmp_path, original)
    pip = Pip(wheel)
    monkeypatch.setattr(subprocess, "run", pip)
    packaged.get(weights)
    assert weights.is_stored()
    assert "--no-deps" in pip.command
    assert pip.command[-1] == "pipecat-ai==1.14.0"


def test_a_download_that_fails_says_why_and_what_to_do(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", Pip(None, "WARNING: x\nERROR: No matching version.\n"))
    with pytest.raises(MultistillError, match=r"\(No matching version\); run `pip download --no-d"):
        packaged.get(SMART_TURN)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MultistillError, match="this Python environment has no pip"):
        packaged.get(SMART_TURN)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(["weights", *arguments])
    return int(end.value.code or 0)


def test_the_command_names_what_there_is(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("get", "wav2vec2") == 2
    assert "there is smart-turn" in capsys.readouterr().err
    assert run("get", "smart-turn", "--wheel", str(tmp_path / "none.whl")) == 2
    assert "there is no file" in capsys.readouterr().err
    assert run("list", "--json") == 0
    [row] = json.loads(capsys.readouterr().out)
    assert row["stored"] is False
    assert row["source"] == "pipecat-ai==1.14.0"


@needs_weights
def test_what_is_there_is_not_fetched_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", Pip(None))
    assert run("get", "smart-turn") == 0
    assert "already in" in capsys.readouterr().out
