"""smart-turn against ONNX Runtime on the published file: input, layers, positions, lengths."""

from __future__ import annotations

import zipfile
from functools import cache
from importlib import resources
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from encoders.test_onnx_tensors import piece
from encoders.test_packaged import needs_weights

from multistill.config import SpeechEncoderConfig
from multistill.encoders.packaged import SMART_TURN
from multistill.encoders.registry import load_speech, resolve_speech
from multistill.encoders.speech import LogMel
from multistill.encoders.whisper import OVERLAP, WhisperStates, window_starts
from multistill.errors import UsageError
from multistill.features.decode import decode, normalize

pytestmark = needs_weights

CPU = torch.device("cpu")
EIGHT_SECONDS = 128_000
LAYERS = {0: "add_20", 1: "add_146", 2: "add_268"}
"""Values in the published graph after which the second one-layer sum is complete."""
MINIMUM_COSINE = {0: 0.999, 1: 0.995, 2: 0.995}
"""On speech. The published network rounds its activations to int8, and this one does not."""


def encoder(**keys: Any) -> WhisperStates:
    loaded = load_speech(SpeechEncoderConfig(model="smart-turn", **keys), SMART_TURN.identity, CPU)
    assert isinstance(loaded, WhisperStates)
    return loaded


@cache
def session(number: int) -> np.ndarray:
    """Half a minute of the packaged speech."""
    name = f"demo-session{number:02d}.ogg"
    with resources.as_file(resources.files("multistill") / "corpora" / "data" / name) as path:
        return decode(str(path), max_seconds=30.0, long_clips="cut", digest=None).samples


def wave(samples: int, seed: int = 0) -> np.ndarray:
    return normalize(session(seed + 1)[48_000 : 48_000 + samples])


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b)))


@pytest.fixture(scope="module")
def published() -> Any:
    """ONNX Runtime on the published file, whose hidden states are made outputs."""
    runtime = pytest.importorskip("onnxruntime")
    # Protobuf merges what is appended: ModelProto.graph (7), GraphProto.output (12), its name (1).
    outputs = b"".join(piece(12, piece(1, name.encode())) for name in LAYERS.values())
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    # Optimised, it multiplies in int8, and how sums saturate depends on the processor.
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    [member] = SMART_TURN.members
    with zipfile.ZipFile(SMART_TURN.wheel) as wheel:
        network = wheel.read(member)
    return runtime.InferenceSession(
        network + piece(7, outputs),
        options,
        providers=["CPUExecutionProvider"],
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_layer_is_that_of_the_published_network(published: Any, seed: int) -> None:
    clip = wave(EIGHT_SECONDS, seed)
    ours = encoder(layers=[0, 1, 2], combine="concat")
    mel = ours.network.log_mel(torch.from_numpy(clip)[None]).numpy()
    expected = published.run(list(LAYERS.values()), {"input_features": mel})
    [states] = ours.encode([clip])
    assert states.shape == (399, 3 * 384)
    for layer, exact in zip(LAYERS, expected, strict=True):
        part = states[:, layer * 384 : (layer + 1) * 384]
        assert cosine(part, exact[0, :399]) >= MINIMUM_COSINE[layer], layer


def test_the_bound_on_the_cosine_notices_a_wrong_weight(published: Any) -> None:
    clip = wave(EIGHT_SECONDS)
    ours = encoder()
    mel = ours.network.log_mel(torch.from_numpy(clip)[None]).numpy()
    [exact] = published.run([LAYERS[2]], {"input_features": mel})
    attention = ours.network.model.layers[1].self_attn
    with torch.no_grad():
        attention.v_proj.weight.copy_(attention.v_proj.weight.T.clone())
    [states] = ours.encode([clip])
    assert cosine(states, exact[0, :399]) < MINIMUM_COSINE[2]


@pytest.mark.parametrize("samples", [400, 719, 720, 16_000, 31_999, 127_999, 128_000])
def test_log_mel_is_that_of_transformers(samples: int) -> None:
    from transformers import WhisperFeatureExtractor

    clip = wave(samples)
    extractor = WhisperFeatureExtractor(feature_size=80)
    expected = extractor(
        clip, sampling_rate=16_000, padding=False, return_tensors="np"
    ).input_features[0]
    ours = encoder().network.log_mel(torch.from_numpy(clip)[None])[0].numpy()
    assert ours.shape == expected.shape == (80, samples // 160)
    assert np.abs(ours - expected).max() < 2e-3


@pytest.mark.parametrize(
    "samples", [400, 719, 720, 5_000, 16_001, 127_999, 128_000, 128_319, 128_320, 128_400, 300_000]
)
def test_a_clip_has_as_many_states_as_with_wav2vec2(samples: int) -> None:
    ours = encoder()
    [states] = ours.encode([wave(samples)])
    assert states.shape == (ours.frames(samples), 384)
    assert states.dtype == np.float32
    assert ours.frames(samples) == LogMel().frames(samples)
    assert np.isfinite(states).all()


def test_nothing_is_padded_and_positions_count_from_the_start() -> None:
    """The states of a clip are those of the layers run on its own frames, by hand."""
    clip = wave(40_000)
    ours = encoder(layers=[0])
    network = ours.network.model
    with torch.inference_mode():
        mel = ours.network.log_mel(torch.from_numpy(clip)[None])
        hidden = torch.nn.functional.gelu(network.conv1(mel))
        hidden = torch.nn.functional.gelu(network.conv2(hidden)).transpose(1, 2)
        expected = (hidden + network.embed_positions(torch.arange(hidden.shape[1])))[0].numpy()
    [states] = ours.encode([clip])
    assert hidden.shape[1] == 125
    assert np.abs(states - expected[: len(states)]).max() < 1e-5


@pytest.mark.parametrize("states", [*range(395, 410), 750, 751, 1_000, 1_499, 5_000, 90_001])
def test_windows_cover_the_clip_and_share_a_second(states: int) -> None:
    starts = window_starts(states, 400)
    assert starts[0] == 0
    if states <= 400:
        assert starts == [0]
        return
    assert starts[-1] + 400 == states
    for earlier, later in pairwise(starts):
        assert earlier < later <= earlier + 400 - OVERLAP


def test_the_log_mel_of_a_long_clip_is_floored_at_the_maximum_of_all_of_it() -> None:
    """A quiet second window, encoded alone, would be floored lower."""
    loud, quiet = wave(EIGHT_SECONDS), wave(EIGHT_SECONDS, seed=3) * 1e-5
    ours = encoder(layers=[0])
    [together] = ours.encode([np.concatenate([loud, quiet])])
    [alone] = ours.encode([quiet])
    mel = ours.network.log_mel(torch.from_numpy(np.concatenate([loud, quiet]))[None])
    assert mel[..., 850:].unique().numel() == 1
    assert np.abs(together[-300:-1] - alone[-300:].mean()).max() > 0.1


def test_far_from_the_cut_states_of_the_first_window_are_those_of_a_shorter_clip() -> None:
    ours = encoder(layers=[0])
    long = wave(EIGHT_SECONDS * 2)
    [states] = ours.encode([long])
    mel = ours.network.log_mel(torch.from_numpy(long)[None])
    first = ours.network.from_states(ours.network.embed(mel[..., :800]), None)[0].detach().numpy()
    assert np.abs(states[:300] - first[:300]).max() < 1e-5


def test_clips_of_one_length_share_a_batch_and_others_do_not() -> None:
    ours = encoder()
    assert ours.info.padding == "equal-length"
    clips = [wave(20_000, seed) for seed in range(3)]
    for clip, states in zip(clips, ours.encode(clips), strict=True):
        [alone] = ours.encode([clip])
        assert np.abs(alone - states).max() < 1e-4
    with pytest.raises(ValueError, match="equal length"):
        ours.encode([wave(20_000), wave(20_001)])


def test_the_description_says_where_the_weights_come_from() -> None:
    info = encoder().info
    assert info.weights == "pretrained"
    assert info.trained is True
    assert info.layers == (2,)
    assert info.scaling == "dimension"
    assert info.revision == resolve_speech(SpeechEncoderConfig(model="smart-turn"))
    [digest] = SMART_TURN.members.values()
    assert digest[:16] in str(info.revision)
    assert 4.1e6 < info.params < 4.3e6


def test_one_layer_costs_fewer_parameters_and_a_third_does_not_exist() -> None:
    assert encoder(layers=[1]).info.params < encoder().info.params
    with pytest.raises(UsageError, match="3 is not a layer of this encoder; it has 2 layers"):
        encoder(layers=[3])


def test_bfloat16_is_compared_with_float32() -> None:
    ours = encoder(precision="bfloat16")
    ours.verify([wave(16_000)])
    assert ours.info.bfloat16_cosine is not None
    assert ours.info.bfloat16_cosine > 0.99
