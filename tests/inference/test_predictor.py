"""`Predictor`: equal to the states and predictions of a job, for whatever form a clip has."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from helpers.features_case import save_electra, save_wav2vec2
from helpers.predictor_case import LABELS, save_predictor, speech_like

from multistill import Input, Predictor
from multistill.audio.errors import UnusableClipError
from multistill.config import FeaturesConfig
from multistill.errors import MultistillError, UsageError
from multistill.features.decode import decode
from multistill.features.identity import resolved_weights
from multistill.features.store import FeatureStore
from multistill.features.store_writer import finish_store, read_marker
from multistill.features.waves import DecodedShard
from multistill.features.worker import ShardEncoder
from multistill.inference.predict import predict
from multistill.metrics.classification import softmax
from multistill.models.files import load_model, read_model_config

TEXTS = ["좋은 하루", "", "나는 좋다", "good day"]


def write_clips(folder: Path, seconds: tuple[float, ...] = (1.3, 0.4, 2.2, 0.9)) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = []
    for number, length in enumerate(seconds):
        paths.append(folder / f"{number}.wav")
        soundfile.write(paths[-1], speech_like(length, seed=number), 16_000)
    return paths


def stored(folder: Path, paths: list[Path], config: FeaturesConfig) -> FeatureStore:
    """The clips in a feature store, encoded in shared batches."""
    speech = config.speech
    waves = {
        row: decode(str(path), max_seconds=speech.max_seconds, long_clips=speech.long_clips)
        for row, path in enumerate(paths)
    }
    ids = [path.name for path in paths]
    encoder = ShardEncoder(config, resolved_weights(config), "cpu")
    encoder.write(DecodedShard(ids, list(map(str, paths)), TEXTS, waves), 0, folder)
    marker = read_marker(folder, 0)
    assert marker is not None
    infos = {"speech": encoder.speech.info, "text": encoder.text.info}
    dims = {"audio_dim": infos["speech"].dim, "text_dim": infos["text"].dim}
    described = {name: info.to_dict() for name, info in infos.items()}
    finish_store(folder, [marker], {"dtype": config.dtype, **dims, **described})
    return FeatureStore(folder)


@pytest.mark.parametrize(
    ("features", "options", "exact"),
    [
        ({}, {"preset": "small-audio-student"}, True),
        ({}, {"preset": "small-audio-student", "max_frames": 40}, True),
        ({"dtype": "int8"}, {}, False),
        ({"dtype": "bfloat16"}, {"spec": {"context_turns": 2}}, False),
        ({"speech": "wav2vec2", "text": "electra"}, {}, False),
        (
            {"speech": {"model": "wav2vec2", "max_seconds": 1.0, "long_clips": "window",
                        "window_seconds": 0.8, "overlap_seconds": 0.2}},
            {},
            False,
        ),
        ({"speech": {"model": "wav2vec2", "train": "full"}}, {}, False),
        ({"text": {"model": "electra", "train": "last-1"}}, {}, False),
        ({"speech": {"model": "wav2vec2", "train": "lora"}}, {}, False),
    ],
    ids=["audio", "frames", "int8", "context", "files", "windows", "full", "last", "lora"],
)  # fmt: skip
def test_predictions_are_those_of_the_feature_store(
    tmp_path: Path, features: dict[str, Any], options: dict[str, Any], exact: bool
) -> None:
    """Digit for digit where each clip is encoded alone; else padding changes the last digits."""
    saved = {"wav2vec2": save_wav2vec2, "electra": save_electra}
    text = str(features)
    for name, save in saved.items():
        if name in text:
            save(tmp_path / name)
            features = json.loads(
                json.dumps(features).replace(f'"{name}"', json.dumps(str(tmp_path / name)))
            )
    model = save_predictor(tmp_path / "model", features=features, **options)
    paths = write_clips(tmp_path / "clips")
    store = stored(tmp_path / "store", paths, FeaturesConfig.model_validate(features))
    head, config = load_model(model), read_model_config(model)
    turns = no_turns(store) if head.spec.context_turns else None
    outputs = predict(
        head, store, [p.name for p in paths], "cpu", config["max_frames"], context=turns
    )
    wanted = softmax(outputs.logits)
    predictor = Predictor.load(model, "cpu")
    inputs = [Input(path, text) for path, text in zip(paths, TEXTS, strict=True)]
    found = predictor.predict_batch(inputs)
    shares = np.array([list(each.distribution.values()) for each in found])
    assert wanted.std(axis=0).max() > 1e-3, "the clips differ, or the comparison shows nothing"
    if exact:
        np.testing.assert_array_equal(shares, wanted)
    np.testing.assert_allclose(shares, wanted, atol=1e-4)
    assert [each.label for each in found] == [LABELS[row] for row in wanted.argmax(axis=1)]
    for clip, each in zip(inputs, found, strict=True):
        alone = predictor.predict(clip.audio, clip.text)
        np.testing.assert_allclose(
            list(alone.distribution.values()), list(each.distribution.values()), atol=1e-5
        )


def no_turns(store: FeatureStore) -> Any:
    from multistill.models.context import DialogueContext

    columns = {"utterance_id": store.ids, "dialogue": store.ids, "turn": [0] * len(store)}
    return DialogueContext(store, columns, 2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_predictor(tmp_path_factory.mktemp("model") / "m", temperature=2.0)


@pytest.fixture(scope="module")
def predictor(model: Path) -> Predictor:
    return Predictor.load(model, "cpu")


def test_a_path_its_content_and_its_samples_are_one_clip(
    predictor: Predictor, tmp_path: Path
) -> None:
    samples = speech_like(1.5)
    path = tmp_path / "a.wav"
    soundfile.write(path, samples, 16_000, subtype="FLOAT")
    found = [
        predictor.predict(audio, "hello")
        for audio in (path, str(path), path.read_bytes(), (samples, 16_000))
    ]
    found.append(predictor.predict_samples(samples, "hello"))
    assert len({tuple(each.distribution.values()) for each in found}) == 1
    assert set(found[0].milliseconds) == {"decode", "speech", "text", "head", "total"}


def test_a_missing_modality_is_said_and_changes_the_answer(
    predictor: Predictor, tmp_path: Path
) -> None:
    [path] = write_clips(tmp_path, (1.0,))
    both, audio, text = (
        predictor.predict(path, "hello"),
        predictor.predict(path, "  "),
        predictor.predict(None, "hello"),
    )
    assert (both.missing, audio.missing, text.missing) == ((), ("text",), ("audio",))
    assert len({tuple(each.distribution.values()) for each in (both, audio, text)}) == 3
    assert "speech" not in text.milliseconds and "text" not in audio.milliseconds
    with pytest.raises(UnusableClipError, match="the model reads audio and text"):
        predictor.predict(None, "")


def test_the_temperature_of_the_folder_counts_unless_another_is_given(
    model: Path, predictor: Predictor, tmp_path: Path
) -> None:
    [path] = write_clips(tmp_path, (1.0,))
    exact = np.array(
        list(Predictor.load(model, temperature=1.0).predict(path).distribution.values())
    )
    wanted = softmax(np.log(exact) / 2.0)
    np.testing.assert_allclose(
        list(predictor.predict(path).distribution.values()), wanted, atol=1e-9
    )


def test_classes_that_are_not_possible_have_no_probability(
    predictor: Predictor, tmp_path: Path
) -> None:
    [path] = write_clips(tmp_path, (1.0,))
    everything = predictor.predict(path).distribution
    some = predictor.predict(path, only=["sad", "fear"]).distribution
    assert list(some) == ["sad", "fear"] and sum(some.values()) == pytest.approx(1.0)
    assert some["sad"] / some["fear"] == pytest.approx(everything["sad"] / everything["fear"])
    best = max(everything.values())
    assert predictor.predict(path, unsure_below=best).label is not None
    assert predictor.predict(path, unsure_below=best + 1e-6).label is None
    for arguments in ({"only": ["nobody"]}, {"only": []}, {"unsure_below": 1.5}):
        with pytest.raises(UsageError):
            predictor.predict(path, **arguments)


def test_a_model_of_dimensions_alone_has_no_label(tmp_path: Path) -> None:
    spec = {"num_classes": 0, "dimensions": ("valence", "arousal")}
    found = Predictor.load(save_predictor(tmp_path / "m", spec=spec)).predict(
        (speech_like(1), 16_000)
    )
    assert found.label is None and found.distribution == {}
    assert all(1 <= found.dimensions[name] <= 5 for name in ("valence", "arousal"))


def test_one_of_several_speech_encoders_is_enough(tmp_path: Path) -> None:
    """A student of log-mel beside an encoder of another hop that is gone by now."""
    wide = save_wav2vec2(tmp_path / "wide")
    features = {"speech": {"model": str(wide), "additional": ["log-mel"]}}
    parts = [{"title": "wide", "width": 32}, {"title": "log-mel", "width": 80}]
    spec = {"speech_parts": tuple(_part(part) for part in parts), "speech_encoder": "log-mel"}
    model = save_predictor(tmp_path / "m", "small-audio-student", features, spec=spec)
    paths = write_clips(tmp_path / "clips")
    store = stored(tmp_path / "store", paths, FeaturesConfig.model_validate(features))
    ids = [path.name for path in paths]
    wanted = softmax(predict(load_model(model), store, ids, "cpu").logits)
    (wide / "config.json").unlink()
    found = Predictor.load(model, "cpu").predict_batch([Input(path) for path in paths])
    np.testing.assert_array_equal([list(each.distribution.values()) for each in found], wanted)


def _part(part: dict[str, Any]) -> Any:
    from multistill.models.spec import StatePart

    return StatePart(**part)


def test_an_encoder_that_is_gone_or_changed_is_named(tmp_path: Path) -> None:
    encoder = save_wav2vec2(tmp_path / "encoder")
    model = save_predictor(tmp_path / "m", features={"speech": str(encoder)})
    torch.manual_seed(1)
    weights = encoder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-4] + b"\0\0\0\0")
    with pytest.raises(MultistillError, match="was trained on states of"):
        Predictor.load(model)
    encoder.rename(tmp_path / "elsewhere")
    with pytest.raises(MultistillError, match=r"needs the speech encoder .*there is no folder"):
        Predictor.load(model)


def test_loading_starts_and_imports_no_ray_no_mlflow_and_no_pickled_file(model: Path) -> None:
    code = (
        "import sys, multistill\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)\n"
        f"multistill.Predictor.load({str(model)!r}).predict(None, 'hello')\n"
        "assert not {'ray', 'mlflow', 'optuna'} & set(sys.modules), sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
