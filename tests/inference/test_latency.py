"""Latency of decoding and encoding: of the way that the features stage takes, or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers.evaluation_case import make_manifest
from helpers.features_case import save_wav2vec2, write_corpus, write_manifest_rows

from multistill.config import FeaturesConfig
from multistill.corpora.manifest import MANIFEST
from multistill.encoders.registry import load_speech
from multistill.encoders.speech import Wav2Vec2Family
from multistill.evaluation.candidates import describe_encoders, params_end_to_end
from multistill.features.decode import decode
from multistill.features.waves import DecodedShard
from multistill.features.worker import ShardEncoder
from multistill.inference.latency import EncoderLatency
from multistill.models.spec import ModelSpec
from multistill.typing import FloatArray

CPU = torch.device("cpu")
SECONDS = 7.0


def one_clip(folder: Path) -> Path:
    """A manifest of one clip of `SECONDS`, called `a`."""
    [row] = write_corpus(folder, [SECONDS], ["one two three"])
    write_manifest_rows(folder / MANIFEST, [{**row, "utterance_id": "a"}])
    return folder


def test_encoders_that_cannot_be_loaded_are_reported_and_not_timed(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path)
    info = {"settings": {"speech": {"model": "nobody/there"}}}
    latency = EncoderLatency(manifest, info, ["case-12-00"], 1, CPU)
    assert latency.end_to_end_ms("audio", [1.0]) is None
    assert latency.reason is not None and "nobody/there" in latency.reason
    assert latency.describe()["median_seconds"] is None


@pytest.mark.parametrize(
    ("keys", "read"),
    [
        ({"max_seconds": 30.0}, SECONDS),
        ({"max_seconds": 3.0, "long_clips": "cut"}, 3.0),
        ({"max_seconds": 3.0, "long_clips": "window", "window_seconds": 2.0}, SECONDS),
    ],
    ids=["short", "cut", "window"],
)
def test_what_is_timed_is_what_the_features_stage_encodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any], read: float
) -> None:
    model = str(save_wav2vec2(tmp_path / "model"))
    settings = FeaturesConfig.model_validate({"speech": {"model": model, **keys}})
    batches: list[list[int]] = []
    encode = Wav2Vec2Family.encode

    def record(self: Wav2Vec2Family, waves: Sequence[FloatArray]) -> list[FloatArray]:
        batches.append([len(wave) for wave in waves])
        return encode(self, waves)

    monkeypatch.setattr(Wav2Vec2Family, "encode", record)
    info = {"settings": settings.model_dump()}
    manifest = one_clip(tmp_path)
    latency = EncoderLatency(manifest, info, ["a"], 1, CPU)
    assert latency.reason is None
    timed = batches.copy()
    batches.clear()
    assert latency.audio_seconds == [read]
    assert latency.real_time_factor([read * 1000.0]) == pytest.approx(1.0)

    stage = ShardEncoder(settings, {"speech": load_revision(settings), "text": None}, "cpu")
    [path] = pq.read_table(manifest / MANIFEST)["audio_path"].to_pylist()
    clip = decode(
        path, max_seconds=settings.speech.max_seconds, long_clips=settings.speech.long_clips
    )
    stage.write(DecodedShard(["a"], [path], ["one"], {0: clip}), 0, tmp_path / "store")
    assert timed == 2 * batches, "one clip: once to warm up and once timed"


def load_revision(settings: FeaturesConfig) -> str | None:
    from multistill.features.identity import resolved_weights

    return resolved_weights(settings)["speech"]


def test_a_head_of_a_lower_layer_is_charged_with_the_layers_below_it(tmp_path: Path) -> None:
    model = str(save_wav2vec2(tmp_path / "model", layers=3))
    speech = {"model": model, "layers": [1, -1], "combine": "concat"}
    settings = FeaturesConfig.model_validate({"speech": speech})
    encoder = load_speech(settings.speech, load_revision(settings), CPU)
    lower = settings.speech.model_copy(update={"layers": [1]})
    info = {"speech": encoder.info.to_dict(), "text": {"name": "none", "params": 0}}
    encoders = describe_encoders(info)
    stored = (1, -1)
    for layer, wanted in (
        (None, encoder.info.params),
        (-1, encoder.info.params),
        (1, load_speech(lower, load_revision(settings), CPU).info.params),
    ):
        spec = ModelSpec("audio", speech_layers=stored, speech_layer=layer)
        assert params_end_to_end(10, "audio", encoders, spec) == 10 + wanted
    assert load_speech(lower, load_revision(settings), CPU).info.params < encoder.info.params


def test_a_head_of_a_lower_layer_is_timed_with_the_encoder_cut_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = str(save_wav2vec2(tmp_path / "model", layers=3))
    speech = {"model": model, "layers": [1, -1], "combine": "concat"}
    info = {"settings": FeaturesConfig.model_validate({"speech": speech}).model_dump()}
    latency = EncoderLatency(one_clip(tmp_path), info, ["a"], 1, CPU)
    assert latency.component_ms is not None
    loaded: list[Any] = []

    def load(config: Any, *_: Any) -> Any:
        encoder = load_speech(config, *_)
        loaded.append(encoder.info.layers)
        return encoder

    monkeypatch.setattr("multistill.encoders.side_by_side.load_speech", load)
    for _ in range(2):
        [milliseconds] = latency.end_to_end_ms("audio", [0.0], {"speech": 1}) or []
        assert milliseconds > 0
    assert loaded == [(1,)], "measured once"
    assert latency.end_to_end_ms("audio", [0.0]) == [
        np.sum([latency.component_ms[name][0] for name in ("decode", "speech")])
    ]


def test_a_head_of_one_of_several_speech_encoders_is_timed_with_that_one_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = str(save_wav2vec2(tmp_path / "model", layers=3))
    several = {"model": model, "layers": [1, 3], "combine": "concat", "additional": ["log-mel"]}
    info = {"settings": FeaturesConfig.model_validate({"speech": several}).model_dump()}
    latency = EncoderLatency(one_clip(tmp_path), info, ["a"], 1, CPU)
    assert latency.reason is None
    loaded: list[Any] = []

    def load(config: Any, *_: Any) -> Any:
        encoder = load_speech(config, *_)
        loaded.append((encoder.info.name, encoder.info.layers))
        return encoder

    monkeypatch.setattr("multistill.encoders.side_by_side.load_speech", load)
    for _ in range(2):
        assert latency.end_to_end_ms("audio", [0.0], speech_encoder="log-mel")
        assert latency.end_to_end_ms("audio", [0.0], {"speech": 1}, "model")
    assert loaded == [("log-mel", ()), (model, (1,))]
