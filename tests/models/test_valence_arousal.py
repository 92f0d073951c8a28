"""Networks of valence, arousal and their fusion, against a re-computation in NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.encoder_states import random_states
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor
from torchaudio.functional import compute_deltas

from multistill.errors import UsageError
from multistill.models.base import ModelOutput, keeping_sequences
from multistill.models.branches import branch_spec
from multistill.models.build import build
from multistill.models.presets import resolve
from multistill.models.valence_arousal import FusionNetwork, deltas

BANDS, TOKENS_DIM = 16, 20
TINY = {"width": 24, "heads": 3, "layers": 2, "feedforward": 32, "va_recurrent": 10}
FUSION = {
    **TINY,
    "va_audio_layers": 2,
    "va_text_layers": 1,
    "va_branch_heads": 2,
    "va_branch_feedforward": 16,
    "va_branch_recurrent": 6,
    "dimensions": ("valence", "arousal"),
}
NETWORKS = {
    name: {**(FUSION if name.endswith("fusion") else TINY)}
    for kind in ("audio", "text", "fusion")
    for name in (f"va-{kind}", f"paper-va-{kind}")
}
AUDIO_NETWORKS = {"front_channels": 2}
Array = np.ndarray[Any, np.dtype[np.float64]]
Weights = Mapping[str, Array]


def network(preset: str, **overrides: Any) -> Any:
    more = {} if preset.endswith("text") else AUDIO_NETWORKS
    torch.manual_seed(3)
    spec = resolve(preset, {**NETWORKS[preset], **more, **overrides})
    return build(spec, BANDS, TOKENS_DIM).eval()


def inputs(lengths: tuple[int, ...] = (23, 9, 1), tokens: tuple[int, ...] = (4, 7, 2)) -> Any:
    audio, audio_mask = random_states(list(lengths), BANDS)
    text, text_mask = random_states(list(tokens), TOKENS_DIM)
    return audio, audio_mask, text, text_mask


# --- the forward pass, once more ---


def attend(x: Array, weights: Weights, heads: int) -> Array:
    width = x.shape[1]
    query = x @ weights["query.weight"].T
    key, value = np.split(x @ weights["key_value.weight"].T, 2, axis=1)
    parts = []
    for part in np.split(np.arange(width), heads):
        scores = query[:, part] @ key[:, part].T / np.sqrt(width // heads)
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        parts.append(shares / shares.sum(axis=1, keepdims=True) @ value[:, part])
    return np.concatenate(parts, axis=1) @ weights["out.weight"].T


def normalize(x: Array, weights: Weights) -> Array:
    centred = x - x.mean(axis=1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5)
    return centred / deviation * weights["weight"] + weights["bias"]


def below(weights: Weights, name: str) -> Weights:
    start = f"{name}."
    return {k.removeprefix(start): v for k, v in weights.items() if k.startswith(start)}


def transform(x: Array, weights: Weights, heads: int, layers: int, double: bool) -> Array:
    for number in range(layers):
        own = below(weights, f"layers.{number}")
        x = normalize(x + attend(x, below(own, "attention"), heads), below(own, "attention_norm"))
        hidden = np.maximum(0, x @ own["expand.weight"].T + own["expand.bias"])
        hidden = hidden @ own["contract.weight"].T + own["contract.bias"]
        x = normalize((2 if double else 1) * x + hidden, below(own, "feedforward_norm"))
    return x


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def recur(x: Array, weights: Weights, layers: int, kind: str) -> Array:
    """States [T, H] of the last layer, by the equations of GRU and LSTM."""
    for number in range(layers):
        own = below(weights, f"layers.{number}")
        given = x @ own["weight_ih_l0"].T
        state = cell = np.zeros(own["weight_hh_l0"].shape[1])
        states = []
        for step in given:
            if kind == "gru":
                reset, update, new = np.split(step, 3)
                of_reset, of_update, of_new = np.split(own["weight_hh_l0"] @ state, 3)
                update = sigmoid(update + of_update)
                new = np.tanh(new + sigmoid(reset + of_reset) * of_new)
                state = (1 - update) * new + update * state
            else:
                opened, kept, new, shown = np.split(step + own["weight_hh_l0"] @ state, 4)
                cell = sigmoid(kept) * cell + sigmoid(opened) * np.tanh(new)
                state = sigmoid(shown) * np.tanh(cell)
            states.append(state)
        x = np.stack(states)
    return x


def pool(x: Array, weights: Weights, pooling: str) -> Array:
    if pooling == "published":
        return x[-1]
    scores = (x @ weights["pool.score.weight"].T)[:, 0]
    shares = np.exp(scores - scores.max())
    return shares / shares.sum() @ x


def sines(length: int, width: int) -> Array:
    half = width // 2
    rates = 10000.0 ** -(np.arange(half) / (half - 1))
    angles = np.arange(1, length + 1)[:, None] * rates
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def convolve(states: Array, weights: Weights) -> Array:
    """[T, bands] -> [T, channels * bands / 4]."""
    delta = compute_deltas(torch.from_numpy(states.T), win_length=9).numpy().T
    x = np.stack([states, delta])
    for number, (stride, padding) in enumerate(((2, 1), (1, 3), (2, 1), (1, 3))):
        kernel = weights[f"convolutions.{number}.weight"][:, :, 0]
        padded = np.pad(x, ((0, 0), (0, 0), (padding, padding)))
        windows = sliding_window_view(padded, kernel.shape[2], axis=2)[:, :, ::stride]
        x = np.einsum("ctfk,ock->otf", windows, kernel)
        x = np.maximum(0, x) if number < 3 else x
    return x.transpose(1, 0, 2).reshape(len(states), -1)


def branch(states: Array, weights: Weights, spec: Any) -> Array:
    if "standardize.audio.centre" in weights or "standardize.text.centre" in weights:
        name = "audio" if spec.reads_audio else "text"
        centre = weights[f"standardize.{name}.centre"]
        states = (states - centre) / weights[f"standardize.{name}.scale"]
    if spec.reads_audio:
        x = convolve(states, below(weights, "front"))
    else:
        x = states @ weights["front.linear.weight"].T
    if spec.va_positions:
        x = x + sines(len(x), spec.width)
    return transform(x, weights, spec.heads, spec.layers, spec.va_double_residual)


def read_out(x: Array, weights: Weights, spec: Any, kind: str) -> Array:
    own = below(weights, "read_out")
    pooled = pool(recur(x, own, spec.va_recurrent_layers, kind), own, spec.pooling)
    return pooled @ weights["classifier.weight"].T + weights["classifier.bias"]


def weights_of(model: torch.nn.Module) -> Weights:
    return {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}


def disturbed(model: torch.nn.Module) -> Any:
    """With all weights and buffers away from zero and one."""
    torch.manual_seed(4)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(0.1 * torch.rand_like(tensor))
    return model


@pytest.mark.parametrize("preset", ["va-audio", "paper-va-audio", "va-text", "paper-va-text"])
def test_a_branch_computes_what_its_equations_say(preset: str) -> None:
    model = disturbed(network(preset))
    audio, audio_mask, text, text_mask = inputs()
    predicted = model(audio, audio_mask, text, text_mask).dimensions
    states, mask = (audio, audio_mask) if model.spec.reads_audio else (text, text_mask)
    weights = weights_of(model)
    for row in range(len(states)):
        x = branch(states[row, mask[row]].double().numpy(), weights, model.spec)
        value = read_out(x, weights, model.spec, "gru")
        expected = weights["dimension_scale.centre"] + weights["dimension_scale.scale"] * value
        np.testing.assert_allclose(predicted[row].detach().numpy(), expected, rtol=2e-4)


@pytest.mark.parametrize("preset", ["va-fusion", "paper-va-fusion"])
def test_the_fusion_computes_what_its_equations_say(preset: str) -> None:
    model = disturbed(network(preset))
    spec, weights = model.spec, weights_of(model)
    audio, audio_mask, text, text_mask = inputs()
    output = model(audio, audio_mask, text, text_mask)
    of_branch = {name: below(weights, name) for name in ("audio", "text")}
    for row in range(len(audio)):
        sequences, values = [], {}
        for number, (name, states, mask) in enumerate(
            (("audio", audio, audio_mask), ("text", text, text_mask))
        ):
            own = branch_spec(spec, name)
            x = branch(states[row, mask[row]].double().numpy(), of_branch[name], own)
            values[own.dimensions[0]] = read_out(x, of_branch[name], own, "gru")[0]
            if spec.va_positions:
                x = x + sines(len(x), spec.width) + weights["modality.weight"][number]
            sequences.append(x)
        x = transform(
            np.concatenate(sequences), weights, spec.heads, spec.layers, spec.va_double_residual
        )
        logits = read_out(x, weights, spec, "lstm")
        np.testing.assert_allclose(
            output.logits[row].detach().numpy(), logits, rtol=1e-3, atol=1e-5
        )
        raw = np.array([values["valence"], values["arousal"]])
        expected = weights["dimension_scale.centre"] + weights["dimension_scale.scale"] * raw
        np.testing.assert_allclose(output.dimensions[row].detach().numpy(), expected, rtol=2e-4)


def test_deltas_are_those_of_torchaudio_of_every_clip_without_its_padding() -> None:
    states, mask = random_states([12, 5, 1, 0], 3)
    found = deltas(states.masked_fill(~mask[:, :, None], 0.0), mask)
    for row, length in enumerate([12, 5, 1]):
        expected = compute_deltas(states[row, :length].T, win_length=9).T
        torch.testing.assert_close(found[row, :length], expected)
    assert not found[~mask].any()


# --- what every network promises ---


def compare(first: ModelOutput, second: ModelOutput) -> None:
    torch.testing.assert_close(first.logits, second.logits)
    torch.testing.assert_close(first.dimensions, second.dimensions)


@pytest.mark.parametrize("preset", NETWORKS)
def test_padding_and_the_other_clips_of_a_batch_change_nothing(preset: str) -> None:
    model = disturbed(network(preset))
    audio, audio_mask, text, text_mask = inputs()
    together = model(audio, audio_mask, text, text_mask)
    for row in range(len(audio)):
        alone = model(
            audio[row, audio_mask[row]][None], None, text[row, text_mask[row]][None], None
        )
        compare(alone, ModelOutput(*(each[[row]] for each in together[:3])))


@pytest.mark.parametrize("preset", ["va-fusion", "paper-va-fusion"])
def test_a_missing_modality_is_as_an_empty_one(preset: str) -> None:
    model = disturbed(network(preset))
    audio, audio_mask, text, text_mask = inputs()
    for missing in ("audio", "text", "both"):
        masks = [
            mask if missing not in (name, "both") else torch.zeros_like(mask)
            for name, mask in (("audio", audio_mask), ("text", text_mask))
        ]
        empty = model(audio, masks[0], text, masks[1])
        assert all(each.isfinite().all() for each in empty[:3])
        if missing == "both":
            torch.testing.assert_close(empty.logits, empty.logits[:1].expand(len(audio), -1))
        elif missing == "audio":
            compare(empty, model(None, None, text, text_mask))
        else:
            compare(empty, model(audio, audio_mask, None, None))


@pytest.mark.parametrize("preset", NETWORKS)
def test_pooled_states_are_mixed_for_all_outputs(preset: str) -> None:
    model = disturbed(network(preset))
    audio, audio_mask, text, text_mask = inputs((9, 4, 7, 6), (3, 2, 4, 1))
    shares = torch.tensor([0.7, 1.0])
    mixed = model(audio, audio_mask, text, text_mask, mixing=shares)
    apart = model(audio, audio_mask, text, text_mask)
    expected = apart.dimensions[2:].lerp(apart.dimensions[:2], shares[:, None])
    torch.testing.assert_close(mixed.dimensions, expected)
    torch.testing.assert_close(
        mixed.logits, apart.logits[2:].lerp(apart.logits[:2], shares[:, None])
    )


@pytest.mark.parametrize("preset", NETWORKS)
def test_sequences_are_those_of_the_modalities_without_padding(preset: str) -> None:
    model = network(preset)
    given = inputs()
    masks = {"audio": given[1], "text": given[3]}
    with keeping_sequences(model, True):
        sequences = model(*given).sequences
    assert set(sequences) == set(model.spec.sequences)
    for name, (states, mask) in sequences.items():
        assert states.shape[2] == model.spec.width
        assert torch.equal(mask, masks[name])
        assert not states[~mask].any()
    assert model(*given).sequences is None


@pytest.mark.parametrize(("preset", "ordered"), [("va-text", True), ("paper-va-text", False)])
def test_self_attention_sees_the_order_of_the_corrected_network_alone(
    preset: str, ordered: bool
) -> None:
    model = disturbed(network(preset))
    text = inputs()[2][:1, :4]
    mask = torch.ones(1, 4, dtype=torch.bool)
    (states, _), (reversed_states, _) = (
        model.sequence((each, mask)) for each in (text, text.flip(1))
    )
    assert torch.allclose(states, reversed_states.flip(1), atol=1e-6) != ordered


@pytest.mark.parametrize("preset", NETWORKS)
def test_every_network_can_classify(preset: str) -> None:
    model = disturbed(network(preset, num_classes=3, dimensions=()))
    output = model(*inputs())
    assert output.logits.shape == (3, 3) and output.dimensions is None
    assert output.pooled.shape == (3, model.pooled_dim)


def test_frozen_branches_neither_learn_nor_drop_anything() -> None:
    model = network("paper-va-fusion", dropout=0.5)
    assert isinstance(model, FusionNetwork)
    model.train()
    given = inputs()
    stream = model.streams(*given)[0]
    first, second = (model.audio.sequence(stream)[0] for _ in range(2))
    torch.testing.assert_close(first, second)
    assert not torch.equal(model(*given).logits, model(*given).logits)
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert names and not any(name.startswith(("audio.", "text.")) for name in names)


def test_all_trained_weights_of_the_fusion_get_a_gradient() -> None:
    model = network("va-fusion", modality_dropout=0.0).train()
    output = model(*inputs())
    (output.logits.square().sum() + output.dimensions.square().sum()).backward()
    without = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.any())
    ]
    assert not without


def test_the_read_out_of_a_branch_whose_dimension_is_no_task_is_not_trained() -> None:
    model = network("va-fusion", dimensions=("arousal", "dominance"))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert any(name.startswith("audio.read_out.") for name in trained)
    assert not any(name.startswith(("text.read_out.", "text.classifier.")) for name in trained)
    assert model(*inputs()).dimensions.shape == (3, 2)


def test_both_branches_standardize_by_their_own_moments() -> None:
    class Moments:
        def scaled(self, modality: str, scaling: str) -> tuple[Any, Any]:
            dim = BANDS if modality == "audio" else TOKENS_DIM
            return np.full(dim, 2.0, np.float32), np.full(dim, 4.0, np.float32)

    plain, fitted = network("va-fusion"), network("va-fusion")
    assert fitted.standardizes and not network("paper-va-fusion").standardizes
    fitted.fit_standardization(Moments())
    audio, audio_mask, text, text_mask = inputs()
    compare(
        fitted(4 * audio + 2, audio_mask, 4 * text + 2, text_mask),
        plain(audio, audio_mask, text, text_mask),
    )


@pytest.mark.parametrize(
    ("preset", "overrides", "sentence"),
    [
        ("va-audio", {"fusion": "mixer"}, "the network va-audio does not use `fusion`"),
        ("va-text", {"va_frozen": True}, "the network va-text does not use `va_frozen`"),
        ("small-student", {"va_recurrent": 8}, "the network head does not use `va_recurrent`"),
        ("va-audio", {"modality": "text"}, "va-audio reads audio states, and modality is text"),
        ("va-fusion", {"va_recurrent": 0}, "va_recurrent must be an integer of at least 1"),
        ("va-fusion", {"va_branch_heads": 5}, "width 768 is not divisible by va_branch_heads 5"),
        ("va-fusion", {"va_text_dimension": "arousal"}, "both branches predict arousal"),
        ("va-fusion", {"va_text_dimension": "joy"}, "va_text_dimension `joy` is not one of"),
    ],
)
def test_what_a_network_does_not_read_is_refused(
    preset: str, overrides: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        resolve(preset, overrides)


def test_too_few_bands_are_refused() -> None:
    spec = replace(resolve("va-audio", {**TINY, **AUDIO_NETWORKS}))
    with pytest.raises(UsageError, match="3 bands; use at least 4"):
        build(spec, 3, TOKENS_DIM)


def test_neighbouring_frames_are_joined_before_their_deltas() -> None:
    model = network("va-audio", audio_stride=2)
    audio = inputs()[0][:1, :8]
    joined: Tensor = audio.unflatten(1, (-1, 2)).mean(dim=2)
    plain = network("va-audio")
    torch.testing.assert_close(model(audio).dimensions, plain(joined).dimensions)
