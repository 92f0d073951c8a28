"""ONNX graphs answer as `Predictor` does, for every length, with ONNX Runtime alone."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers.encoder_states import random_states
from helpers.exported_clips import run_without, waves, write_clip
from helpers.paths import ROOT
from helpers.predictor_case import LABELS, save_predictor

from multistill import Predictor
from multistill.errors import UsageError
from multistill.export.formats import Export, export
from multistill.export.graph import LogMelStates
from multistill.export.to_onnx import INT8, MODEL, OPSET
from multistill.metrics.classification import EPS
from multistill.models.files import load_model, read_model_config


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Export]:
    folder = tmp_path_factory.mktemp("light")
    model = save_predictor(folder / "model", "light-student-s", temperature=1.7)
    return model, export(model, folder / "onnx", "onnx", int8=True)


def test_a_light_student_answers_as_the_predictor_at_every_length(
    light: tuple[Path, Export],
) -> None:
    model, done = light
    predictor, run = Predictor.load(model, "cpu"), session(done.out / MODEL).run
    clips = waves(60)
    wanted = [predictor.predict_samples(each) for each in clips]
    shares = np.array([list(each.distribution.values()) for each in wanted])
    assert shares.std(axis=0).max() > 1e-3, "the clips differ, or the comparison shows nothing"
    for clip, share, prediction in zip(clips, shares, wanted, strict=True):
        alone = {"samples": clip[None], "lengths": np.array([len(clip)])}
        found, logits = run(["distribution", "logits"], alone)
        np.testing.assert_allclose(found[0], share, atol=1e-4)
        assert LABELS[int(found[0].argmax())] == prediction.label
        exact = np.log(share) * 1.7
        np.testing.assert_allclose(logits[0] - logits[0].mean(), exact - exact.mean(), atol=1e-4)
    lengths = np.array([len(each) for each in clips])
    padded = np.full((len(clips), lengths.max()), np.float32(3.0))
    for row, each in enumerate(clips):
        padded[row, : len(each)] = each
    [together] = run(["distribution"], {"samples": padded, "lengths": lengths})
    np.testing.assert_allclose(together, shares, atol=1e-4)


def test_files_say_what_they_are(light: tuple[Path, Export]) -> None:
    model, done = light
    config = read_model_config(model)
    for name in (MODEL, INT8):
        proto = onnx.load(str(done.out / name))
        onnx.checker.check_model(proto, full_check=True)
        assert {each.domain: each.version for each in proto.opset_import}[""] == OPSET
        facts = session(done.out / name).get_modelmeta().custom_metadata_map
        assert json.loads(facts["classes"]) == list(LABELS) == config["labels"]
        assert facts["sha256"] == config["sha256"] and facts["reads"] == "samples"
        assert float(facts["temperature"]) == 1.7 and int(facts["sample_rate"]) == 16_000
        assert facts["model"] == f"case {config['sha256'][:8]}"
        assert str(ROOT).encode() not in (done.out / name).read_bytes()
    assert done.files[INT8] < done.files[MODEL]
    assert done.files == {name: (done.out / name).stat().st_size for name in (INT8, MODEL)}


def test_eight_bits_change_little(light: tuple[Path, Export]) -> None:
    _, done = light
    exact, rounded = (session(done.out / name).run for name in (MODEL, INT8))
    changes, labels = [], []
    for clip in waves(30):
        inputs = {"samples": clip[None], "lengths": np.array([len(clip)])}
        [first], [second] = exact(["distribution"], inputs), rounded(["distribution"], inputs)
        changes.append(np.abs(first - second).max())
        labels.append(first.argmax() == second.argmax())
    assert 0 < max(changes) < 0.1 and np.mean(labels) > 0.9


def test_the_example_of_the_docs_needs_neither_torch_nor_multistill(
    light: tuple[Path, Export], tmp_path: Path
) -> None:
    model, done = light
    page = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    [example] = [
        block
        for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL)
        if "onnxruntime" in block
    ]
    assert len([line for line in example.splitlines() if line]) <= 25
    (tmp_path / "export").symlink_to(done.out)
    write_clip(tmp_path / "clip.wav")
    printed = run_without(["torch", "multistill", "transformers"], example, tmp_path)
    prediction = Predictor.load(model, "cpu").predict(tmp_path / "clip.wav")
    label, shares = re.match(r"(\w+) (\{.*\})", printed).groups()
    found = {name: float(share) for name, share in re.findall(r"'(\w+)': [^\d]*([\d.e-]+)", shares)}
    assert label == prediction.label and list(found) == list(LABELS)
    np.testing.assert_allclose(
        list(found.values()), list(prediction.distribution.values()), atol=1e-4
    )


HEADS: Mapping[str, dict[str, Any]] = {
    "multimodal": {"preset": "small-student", "temperature": 0.8, "max_frames": 60},
    "dimensions": {"preset": "small-text-student", "spec": {"dimensions": ("valence", "arousal")}},
    "context": {"preset": "small-audio-student", "spec": {"context_turns": 2}},
    "strided": {"preset": "pooled-strided", "spec": {"width": 16}},
}


def test_a_multimodal_student_reads_samples_and_states_of_text(tmp_path: Path) -> None:
    model = save_predictor(tmp_path / "model", "light-multimodal-student", temperature=0.8)
    done = export(model, tmp_path / "onnx", "onnx")
    assert done.reads == "samples" and "text_mask is False without any" in done.notes[0]
    predictor, run = Predictor.load(model, "cpu"), session(done.out / MODEL).run
    head, config = load_model(model), read_model_config(model)
    front = LogMelStates(predictor.features.speech, config["dtype"])
    for row, (clip, tokens) in enumerate(zip(waves(20), [0, *range(1, 20)], strict=True)):
        inputs = {"samples": clip[None], "lengths": np.array([len(clip)])}
        states, mask = random_states([tokens], head.text_dim, seed=row)
        text = states.nan_to_num(0.0)
        inputs |= {"text": text.numpy(), "text_mask": mask.numpy()}
        [found] = run(["logits"], inputs)
        with torch.inference_mode():
            audio = front(torch.from_numpy(clip)[None], torch.tensor([len(clip)]))
            wanted = head(*audio, text, mask).logits
        np.testing.assert_allclose(found, wanted.numpy(), atol=1e-4)
        if not tokens:
            [shares] = run(["distribution"], inputs)
            exact = predictor.predict_samples(clip).distribution
            np.testing.assert_allclose(shares[0], list(exact.values()), atol=1e-4)


@pytest.mark.parametrize("case", HEADS)
def test_heads_answer_as_torch_at_every_length(case: str, tmp_path: Path) -> None:
    model = save_predictor(tmp_path / "model", **HEADS[case])
    done = export(model, tmp_path / "onnx", "onnx", head_only=case in ("context", "multimodal"))
    assert done.reads == "states" and "states of encoders, not recordings" in done.notes[0]
    head, config = load_model(model), read_model_config(model)
    run = session(done.out / MODEL).run
    lengths = np.random.default_rng(0).integers(0, 120, (50, 2))
    for row, (frames, tokens) in enumerate([(1, 1), (0, 3), (3, 0), *lengths.tolist()]):
        batch = ([frames, frames // 2], [tokens, tokens // 3])
        inputs, arguments = {}, {}
        for name, each, dim in zip(
            ("audio", "text"), batch, (head.audio_dim, head.text_dim), strict=True
        ):
            if getattr(head.spec, f"reads_{name}"):
                states, mask = random_states(each, dim, seed=row)
                states = states.nan_to_num(0.0)
                inputs |= {name: states.numpy(), f"{name}_mask": mask.numpy()}
                if name == "audio" and config["max_frames"]:
                    mask = mask & (torch.arange(mask.shape[1]) < config["max_frames"])
                arguments |= {name: states, f"{name}_mask": mask}
        with torch.inference_mode():
            wanted = head(**arguments)
        distribution, logits, *dimensions = run(None, inputs)
        np.testing.assert_allclose(logits, wanted.logits.numpy(), atol=1e-4)
        assert (logits.argmax(axis=1) == wanted.logits.numpy().argmax(axis=1)).all()
        shares = wanted.logits.softmax(dim=-1).clamp_min(EPS)
        shares = (shares.log() / (config["temperature"] or 1.0)).softmax(dim=-1)
        np.testing.assert_allclose(distribution, shares.numpy(), atol=1e-5)
        if dimensions:
            np.testing.assert_allclose(dimensions[0], wanted.dimensions.numpy(), atol=1e-4)


def test_nothing_is_left_behind_by_what_fails(tmp_path: Path) -> None:
    (tmp_path / "foreign").mkdir()
    with pytest.raises(Exception, match="is not a model folder"):
        export(tmp_path / "foreign", tmp_path / "out", "onnx")
    assert {path.name for path in tmp_path.iterdir()} == {"foreign"}
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="is in use"):
        export(tmp_path / "foreign", tmp_path / "out", "onnx")
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"
