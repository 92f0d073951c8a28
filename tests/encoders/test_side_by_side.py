"""Several speech encoders at once: alignment in time, padding per part, what heads are charged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.features_case import save_wav2vec2, tone
from helpers.speech_checkpoints import save_emotion2vec, save_w2v_bert, save_whisper
from pydantic import ValidationError

from multistill.config import CorpusConfig, FeaturesConfig, SpeechEncoderConfig
from multistill.encoders import side_by_side
from multistill.encoders.base import EncoderInfo
from multistill.encoders.side_by_side import SideBySide
from multistill.encoders.training_data import overlaps
from multistill.evaluation.candidates import describe_encoders, params_end_to_end
from multistill.features.decode import Wave, normalize
from multistill.features.identity import features_identity, resolved_weights
from multistill.features.sizing import size_pools
from multistill.features.waves import DecodedShard
from multistill.features.windows import clip_spans, join_windows
from multistill.features.worker import ShardEncoder
from multistill.models.spec import ModelSpec, StatePart
from multistill.pipeline.jobfile import absolute, parse
from multistill.search.cost import _encoders_of, _readers
from multistill.typing import FloatArray

CPU = torch.device("cpu")


def waves(*lengths: int) -> list[FloatArray]:
    generator = np.random.default_rng(0)
    return [generator.standard_normal(length).astype(np.float32) for length in lengths]


def load(**keys: Any) -> Any:
    config = SpeechEncoderConfig.model_validate(keys)
    return side_by_side.load(config, side_by_side.resolve(config), CPU)


def test_the_states_of_a_part_are_those_of_the_encoder_alone(tmp_path: Path) -> None:
    """Whatever shares a batch: one part takes a mask, one equal lengths only, one neither."""
    masked = {"model": str(save_wav2vec2(tmp_path / "masked", "layer")), "layers": [1]}
    equal = {"model": str(save_wav2vec2(tmp_path / "equal", "group")), "layers": [2]}
    both = load(**masked, additional=[equal, "log-mel"])
    clips = waves(16_000, 9_000, 16_000, 400)
    together = both.encode(clips)
    assert [len(states) for states in together] == [both.frames(len(clip)) for clip in clips]
    start = 0
    for part, keys in zip(both.info.parts, (masked, equal, {"model": "log-mel"}), strict=True):
        alone = load(**keys)
        assert (part.start, part.info.dim) == (start, alone.info.dim)
        for clip, states in zip(clips, together, strict=True):
            [wanted] = alone.encode([clip])
            np.testing.assert_allclose(states[:, start : start + alone.info.dim], wanted, atol=1e-5)
        start += alone.info.dim
    assert start == both.info.dim == together[0].shape[1]


class Clock:
    """An encoder whose states are the times of their centres, in samples."""

    windowed = False

    def __init__(self, hop: int, minimum: int) -> None:
        self.hop, self.minimum_samples = hop, minimum
        self.info = EncoderInfo(f"clock {hop}", "none", 1, 0, (), "none")

    def frames(self, samples: int) -> int:
        return max(0, (samples - self.minimum_samples) // self.hop + 1)

    def encode(self, waves: Any) -> list[FloatArray]:
        return [
            (self.minimum_samples / 2 + self.hop * np.arange(self.frames(len(wave)))).astype(
                np.float32
            )[:, None]
            for wave in waves
        ]

    def verify(self, waves: Any) -> None:
        pass


@pytest.mark.parametrize(("hop", "minimum"), [(640, 800), (640, 400), (160, 400), (320, 720)])
def test_every_frame_has_the_nearest_state_of_another_rate(hop: int, minimum: int) -> None:
    config = SpeechEncoderConfig.model_validate({"model": "a", "additional": ["b"]})
    encoder = SideBySide([Clock(320, 400), Clock(hop, minimum)], config)
    for samples in (max(400, minimum), 5_000, 16_000):
        [states] = encoder.encode(waves(samples))
        centres, of_other = states.T
        inside = centres < of_other.max() + hop / 2
        distance = np.abs(centres - of_other)[inside & (centres > minimum / 2 - hop / 2)]
        assert len(states) == encoder.frames(samples) > 0
        assert (distance <= hop / 2).all() or hop == 320, distance
        if hop == 320:
            assert (np.diff(of_other) == 320).all(), "equal hops: row by row"
    assert encoder.frames(max(400, minimum) - 1) == 0


def test_weights_of_every_part_decide_the_store(tmp_path: Path) -> None:
    folder = save_wav2vec2(tmp_path / "model")
    config = FeaturesConfig.model_validate({"speech": {"additional": [{"model": str(folder)}]}})
    weights = features_identity(config)["weights"]
    assert weights["speech"] is None and weights["speech_additional_1"].startswith("folder-")
    save_wav2vec2(tmp_path / "model", layers=2)
    assert features_identity(config)["weights"] != weights


def test_a_head_of_one_part_is_charged_with_that_part_alone(tmp_path: Path) -> None:
    model = {"model": str(save_wav2vec2(tmp_path / "model")), "layers": [1, -1]}
    both = load(**model, combine="concat", additional=["log-mel"])
    encoders = describe_encoders({"speech": both.info.to_dict(), "text": {"params": 0}})
    parts = tuple(StatePart(p.title, p.info.dim, p.side_by_side) for p in both.info.parts)

    def charged(**keys: Any) -> int | None:
        spec = ModelSpec("audio", speech_parts=parts, **keys)
        return params_end_to_end(10, "audio", encoders, spec)

    lower = load(**{**model, "layers": [1]}).info.params
    assert charged() == charged(speech_encoder="model") == 10 + both.info.params
    assert charged(speech_encoder="log-mel") == 10
    assert charged(speech_encoder="model", speech_layer=1) == 10 + lower < 10 + both.info.params


def test_two_encoders_of_one_name_are_refused() -> None:
    with pytest.raises(ValidationError, match="two speech encoders are called `wavlm`"):
        SpeechEncoderConfig.model_validate({"model": "a/wavlm", "additional": ["b/wavlm"]})
    named = {"model": "b/wavlm", "name": "other"}
    config = SpeechEncoderConfig.model_validate({"model": "a/wavlm", "additional": [named]})
    assert [part.title for part in config.parts] == ["wavlm", "other"]


def test_windows_of_a_long_clip_join_to_the_states_of_the_first_encoder(tmp_path: Path) -> None:
    speech = {
        "model": str(save_wav2vec2(tmp_path / "model")),
        "additional": ["log-mel"],
        "max_seconds": 3.0,
        "long_clips": "window",
        "window_seconds": 2.0,
    }
    config = SpeechEncoderConfig.model_validate(speech)
    encoder = load(**speech)
    [clip] = waves(7 * 16_000)
    spans = clip_spans(len(clip), encoder, config)
    assert len(spans) > 1
    joined = join_windows(
        encoder.encode([clip[start:stop] for start, stop in spans]), spans, encoder.hop
    )
    alone = load(**{**speech, "additional": []})
    wanted = join_windows(
        alone.encode([clip[start:stop] for start, stop in spans]), spans, alone.hop
    )
    np.testing.assert_allclose(joined[:, :32], wanted, atol=1e-5)
    assert joined.shape == (encoder.frames(len(clip)), encoder.info.dim)


def test_what_looks_at_encoders_looks_at_all_of_them(tmp_path: Path) -> None:
    """Training data, GPUs, absolute paths, and the title that outlives them."""
    speech = {"model": "log-mel", "additional": [{"model": "a/ExHuBERT"}]}
    features = FeaturesConfig.model_validate({"speech": speech})
    [sentence] = overlaps(features, [CorpusConfig(kind="emodb", path="x")])
    assert "`a/ExHuBERT`" in sentence
    for extra, gpus in (([], 0.0), (["untrained-wav2vec2"], 1.0)):
        chosen = FeaturesConfig.model_validate({"speech": {"additional": extra}})
        pools = size_pools(chosen, {"CPU": 4.0, "GPU": 1.0}, 1, 100.0)
        assert pools.gpus_per_encoder == gpus


def test_a_folder_keeps_its_title_when_its_path_becomes_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_wav2vec2(tmp_path / "models" / "own")
    monkeypatch.chdir(tmp_path)
    job = parse(
        "name: t\ncorpora: [{kind: demo}]\nfeatures: {speech: {additional: [models/own]}}\n"
        "students: [{name: a, model: {preset: small-audio-student, speech_encoder: own}}]",
        "t.yaml",
    )
    [part] = absolute(job).features.speech.additional
    assert Path(part.model).is_absolute() and part.title == "own"


def test_a_search_by_latency_times_every_choice_of_encoder_and_layer() -> None:
    parts = (StatePart("large", 12, (3, 6)), StatePart("log-mel", 5))
    names = {_encoders_of(spec) for spec in _readers(ModelSpec("audio", speech_parts=parts))}
    audio = {
        "",
        ", speech large",
        ", speech large, speech layer 3",
        ", speech large, speech layer 6",
    }
    audio |= {", speech log-mel"}
    assert names == {"text", *(f"{m}{each}" for m in ("audio", "multimodal") for each in audio)}


def test_a_shard_of_every_kind_of_encoder_has_all_frames_of_all_clips(tmp_path: Path) -> None:
    """Clips below one encoder's shortest wave, of all lengths, and long enough for windows."""
    for name, save in (
        ("whisper", save_whisper),
        ("w2v", save_w2v_bert),
        ("e2v", save_emotion2vec),
    ):
        save(tmp_path / name)
    e2v = {"model": str(tmp_path / "e2v"), "layers": [2, 5], "combine": "concat"}
    additional = [str(tmp_path / "whisper"), str(tmp_path / "w2v"), e2v, "log-mel"]
    speech = {
        "model": str(save_wav2vec2(tmp_path / "wav2vec2")),
        "additional": additional,
        "max_seconds": 4.0,
        "long_clips": "window",
        "window_seconds": 2.0,
    }
    config = FeaturesConfig.model_validate({"speech": speech})
    encoder = ShardEncoder(config, resolved_weights(config), "cpu")
    seconds = [0.03, 0.036, 1.0, 1.5, 3.9, 9.3]
    names = [f"u{number}" for number in range(len(seconds))]
    clips = {number: Wave(normalize(tone(each, number))) for number, each in enumerate(seconds)}
    (tmp_path / "out" / "shards").mkdir(parents=True)
    shard = DecodedShard(names, names, ["a"] * len(names), clips)
    summary = encoder.write(shard, 0, tmp_path / "out")
    assert [reason for *_, reason in summary["quarantined"]] == [
        "too short: 480 samples at 16 kHz, the minimum is 560 (u0)"
    ]
    assert summary["encoded"] == 5, "a wrong number of states would be quarantined"
    parts = summary["speech"]["parts"]
    assert [part["title"] for part in parts] == ["wav2vec2", "whisper", "w2v", "e2v", "log-mel"]
    assert [part["start"] for part in parts] == [0, 32, 64, 96, 192]
