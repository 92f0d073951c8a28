"""The forward pass against an independent reference; padding, missing modalities, context."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from helpers.encoder_states import random_states
from torch import Tensor

from multistill.models.base import drop_modality
from multistill.models.build import EmotionModel, build
from multistill.models.convolutional import STRIDE
from multistill.models.spec import ModelSpec
from multistill.models.standardize import Standardize

AUDIO, TEXT = 10, 6
TINY = ModelSpec(
    "multimodal", width=8, heads=2, layers=2, feedforward=12, classifier=5, classifier_dropout=0.0
)
VARIANTS = [
    replace(
        TINY,
        fusion=fusion,
        pooling=pooling,
        modality=modality,
        context_turns=turns,
        audio_stride=stride,
    )
    for fusion, pooling, modality, (turns, stride) in product(
        ("crossmodal", "concat", "cross-attention", "mixer"),
        ("published", "mean", "attention", "statistics", "attentive-statistics"),
        ("multimodal", "text", "audio"),
        ((0, 1), (2, 3)),
    )
]
VARIANTS += [
    replace(TINY, modality=modality, context_turns=turns, standardize="dimension", paths=paths)
    for modality in ("multimodal", "text", "audio")
    for turns, paths in ((0, "deep"), (2, "deep"), (0, "both"), (2, "both"), (0, "wide"))
]
VARIANTS += [
    replace(TINY, front="convolutional", front_channels=2, modality=modality, **changed)
    for modality in ("multimodal", "audio")
    for changed in (
        {"fusion": "concat", "pooling": "attentive-statistics", "paths": "both"},
        {"context_turns": 2, "audio_stride": 3},
    )
]

EXPORTED = [
    replace(TINY, front="convolutional", front_channels=2, pooling="attentive-statistics"),
    replace(TINY, pooling="attention", context_turns=2, audio_stride=4),
    replace(TINY, modality="audio"),
    replace(TINY, fusion="mixer", layers=1),
    replace(TINY, pooling="attentive-statistics", standardize="dimension", paths="both"),
]


def spec_id(spec: ModelSpec) -> str:
    name = f"{spec.modality}-{spec.fusion}-{spec.pooling}-{spec.context_turns}"
    return f"{name}-{spec.standardize}-{spec.paths}-{spec.front}"


def make_model(spec: ModelSpec, seed: int = 0, text_dim: int = TEXT) -> EmotionModel:
    """A model whose parameters, including norms and biases, differ from their initial values."""
    torch.manual_seed(seed)
    model = build(spec, AUDIO, text_dim).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        for module in model.modules():
            if isinstance(module, Standardize):
                module.centre.add_(torch.randn_like(module.centre))
                module.scale.mul_(1 + torch.rand_like(module.scale))
    return model


# --- independent reference: one utterance, one attention head, one number at a time ---


def _linear(x: list[float], weight: Tensor, bias: Tensor | None) -> list[float]:
    rows = weight.tolist()
    offset = bias.tolist() if bias is not None else [0.0] * len(rows)
    return [
        sum(w * v for w, v in zip(row, x, strict=True)) + b
        for row, b in zip(rows, offset, strict=True)
    ]


def _norm(x: list[float], weight: Tensor, bias: Tensor) -> list[float]:
    mean = sum(x) / len(x)
    variance = sum((v - mean) ** 2 for v in x) / len(x)
    scaled = [(v - mean) / math.sqrt(variance + 1e-5) for v in x]
    return [s * w + b for s, w, b in zip(scaled, weight.tolist(), bias.tolist(), strict=True)]


def _embed(sequence: list[list[float]]) -> list[list[float]]:
    width = len(sequence[0])
    half = width // 2
    result = []
    for position, vector in enumerate(sequence, start=1):
        waves = [math.sin(position / 10000 ** (i / (half - 1))) for i in range(half)]
        waves += [math.cos(position / 10000 ** (i / (half - 1))) for i in range(half)]
        result.append([math.sqrt(width) * v + p for v, p in zip(vector, waves, strict=True)])
    return result


def _attend(
    p: dict[str, Tensor], queries: list[list[float]], keys: list[list[float]], heads: int
) -> list[list[float]]:
    width = len(queries[0])
    size = width // heads
    q = [_linear(x, p["query.weight"], p["query.bias"]) for x in queries]
    kv = [_linear(x, p["key_value.weight"], p["key_value.bias"]) for x in keys]
    result = []
    for query in q:
        merged: list[float] = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            scores = [
                sum(a * b for a, b in zip(query[part], row[:width][part], strict=True))
                / math.sqrt(size)
                for row in kv
            ]
            total = sum(math.exp(s) for s in scores)
            merged += [
                sum(
                    math.exp(s) / total * row[width:][part][i]
                    for s, row in zip(scores, kv, strict=True)
                )
                for i in range(size)
            ]
        result.append(_linear(merged, p["out.weight"], p["out.bias"]))
    return result


def _subtree(p: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in p.items() if k.startswith(prefix)}


def _stack(
    p: dict[str, Tensor], x: list[list[float]], source: list[list[float]] | None, spec: ModelSpec
) -> list[list[float]]:
    x = _embed(x)
    source = _embed(source) if source is not None else None
    for number in range(spec.layers):
        layer = _subtree(p, f"layers.{number}.")

        def norm(v: list[float], which: str, layer: dict[str, Tensor] = layer) -> list[float]:
            return _norm(v, layer[f"{which}_norm.weight"], layer[f"{which}_norm.bias"])

        queries = [norm(v, "attention") for v in x]
        keys = queries if source is None else [norm(v, "attention") for v in source]
        attended = _attend(_subtree(layer, "attention."), queries, keys, spec.heads)
        x = [[a + b for a, b in zip(v, w, strict=True)] for v, w in zip(x, attended, strict=True)]
        after = []
        for vector in x:
            hidden = _linear(
                norm(vector, "feedforward"), layer["expand.weight"], layer["expand.bias"]
            )
            hidden = [max(0.0, v) for v in hidden]
            out = _linear(hidden, layer["contract.weight"], layer["contract.bias"])
            after.append([a + b for a, b in zip(vector, out, strict=True)])
        x = after
    return [_norm(v, p["norm.weight"], p["norm.bias"]) for v in x]


def _average(x: list[list[float]]) -> list[float]:
    return [sum(column) / len(x) for column in zip(*x, strict=True)]


def reference(model: EmotionModel, audio: Tensor, text: Tensor) -> list[float]:
    """Logits of one unpadded utterance, implemented from the published description."""
    spec = model.spec
    p = {k: v.double() for k, v in model.state_dict().items()}

    def project(x: Tensor, name: str) -> list[list[float]]:
        weight = p.get(f"{name}_projection.weight")
        return x.tolist() if weight is None else [_linear(v, weight, None) for v in x.tolist()]

    frames, tokens = project(audio, "audio"), project(text, "text")
    first = _subtree(p, "fusion.stacks.0.")
    if spec.modality == "text":
        pooled = _average(_stack(first, tokens, None, spec))
    elif spec.modality == "audio":
        pooled = _stack(first, frames, None, spec)[0]
    else:
        audio_states = _stack(first, frames, tokens, spec)
        text_states = _stack(_subtree(p, "fusion.stacks.1."), tokens, frames, spec)
        pooled = _average(audio_states) + text_states[0]
    hidden = _linear(pooled, p["classifier.1.weight"], p["classifier.1.bias"])
    hidden = [v / 2 * (1 + math.erf(v / math.sqrt(2))) for v in hidden]
    return _linear(hidden, p["classifier.4.weight"], p["classifier.4.bias"])


@pytest.mark.parametrize("text_dim", [TEXT, TINY.width])
@pytest.mark.parametrize("modality", ["multimodal", "text", "audio"])
def test_forward_equals_an_independent_reference(modality: str, text_dim: int) -> None:
    model = make_model(
        ModelSpec.from_dict({**TINY.to_dict(), "modality": modality}), text_dim=text_dim
    )
    assert (model.text_projection is None) == (modality == "audio" or text_dim == TINY.width)
    audio, audio_mask = random_states([7, 3], AUDIO)
    text, text_mask = random_states([2, 5], text_dim, seed=2)
    logits = model(audio, audio_mask, text, text_mask).logits
    for row in range(2):
        expected = reference(
            model, audio[row][audio_mask[row]].double(), text[row][text_mask[row]].double()
        )
        torch.testing.assert_close(logits[row], torch.tensor(expected), atol=2e-5, rtol=1e-5)


# --- padding, other utterances of the batch, missing modalities ---


def random_turns(rows: int, seed: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(2) < torch.randint(0, 3, (rows, 1), generator=generator)
    values = torch.randn(rows, 2, TEXT + AUDIO, generator=generator)
    return values.masked_fill(~mask[:, :, None], math.nan), mask


@pytest.mark.parametrize("spec", VARIANTS, ids=spec_id)
def test_the_output_of_an_utterance_does_not_depend_on_its_batch(spec: ModelSpec) -> None:
    model = make_model(spec)
    audio, audio_mask = random_states([40, 3, 1, 17], AUDIO)
    text, text_mask = random_states([2, 9, 4, 1], TEXT, seed=2)
    context, context_mask = random_turns(4)
    together = model(audio, audio_mask, text, text_mask, context, context_mask)
    for row in range(4):
        one = slice(row, row + 1)
        single = model(
            audio[one, audio_mask[row]],
            None,
            text[one, text_mask[row]],
            None,
            context[one],
            context_mask[one],
        )
        assert (single.logits - together.logits[one]).abs().max() < 1e-5
        assert (single.pooled - together.pooled[one]).abs().max() < 1e-5


@pytest.mark.parametrize("spec", VARIANTS, ids=spec_id)
def test_missing_modalities_give_finite_outputs_and_gradients(spec: ModelSpec) -> None:
    model = make_model(spec)
    audio, audio_mask = random_states([5, 0, 4, 0], AUDIO)
    text, text_mask = random_states([3, 2, 0, 0], TEXT, seed=2)
    context, context_mask = random_turns(4)
    output = model(audio, audio_mask, text, text_mask, context, context_mask)
    assert output.logits.shape == (4, 7)
    assert output.pooled.shape == (4, model.pooled_dim)
    output.logits.square().sum().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
    assert output.logits.isfinite().all()
    empty = model(audio[:0], audio_mask[:0], text[:0], text_mask[:0])
    assert empty.logits.shape == (0, 7)


@pytest.mark.parametrize("fusion", ["crossmodal", "concat", "cross-attention", "mixer"])
def test_none_equals_a_row_that_is_all_padding(fusion: str) -> None:
    model = make_model(ModelSpec.from_dict({**TINY.to_dict(), "fusion": fusion}))
    audio, audio_mask = random_states([5, 2], AUDIO)
    text, text_mask = random_states([3, 4], TEXT, seed=2)
    nothing = torch.zeros_like(audio_mask)
    torch.testing.assert_close(
        model(None, None, text, text_mask).logits, model(audio, nothing, text, text_mask).logits
    )
    torch.testing.assert_close(
        model(audio, audio_mask).logits,
        model(audio, audio_mask, text, torch.zeros_like(text_mask)).logits,
    )
    present = model(audio, audio_mask, text, text_mask).logits
    assert (present - model(None, None, text, text_mask).logits).abs().max() > 1e-3


def test_a_forward_pass_without_the_required_states_is_refused() -> None:
    audio, mask = random_states([2], AUDIO)
    with pytest.raises(ValueError, match="text model needs its states"):
        make_model(replace(TINY, modality="text"))(audio, mask, None, None)


def test_positions_depend_on_the_index_but_not_on_the_states() -> None:
    spec = replace(TINY, modality="audio", pooling="mean")
    audio, mask = random_states([6], AUDIO)
    zero_first = audio.clone()
    zero_first[0, 2, 0] = 0.0  # the published code treats this frame as padding
    model = make_model(spec)
    moved = (model(zero_first, mask).logits - model(audio, mask).logits).abs().max()
    nearly = audio.clone()
    nearly[0, 2, 0] = 1e-6
    assert (model(nearly, mask).logits - model(zero_first, mask).logits).abs().max() < 1e-4
    assert moved > 0
    assert (model(audio.flip(1), mask).logits - model(audio, mask).logits).abs().max() > 1e-3


def test_modality_dropout_drops_at_most_one_modality_and_only_in_training() -> None:
    torch.manual_seed(0)
    audio_mask = torch.ones(4000, 3, dtype=torch.bool)
    text_mask = torch.ones(4000, 2, dtype=torch.bool)
    text_mask[3000:] = False
    empty = torch.zeros(4000, 3, 1)
    (_, kept_audio), (_, kept_text) = drop_modality([(empty, audio_mask), (empty, text_mask)], 0.4)
    dropped_audio, dropped_text = ~kept_audio.any(dim=1), ~kept_text.any(dim=1)
    assert not (dropped_audio & dropped_text).any()
    assert abs(dropped_audio[:3000].float().mean() - 0.2) < 0.03
    assert abs(dropped_text[:3000].float().mean() - 0.2) < 0.03

    model = make_model(replace(TINY, modality_dropout=0.5))
    audio, mask = random_states([5] * 64, AUDIO)
    text, text_mask = random_states([3] * 64, TEXT, seed=2)
    evaluated = model(audio, mask, text, text_mask).logits
    torch.testing.assert_close(model(audio, mask, text, text_mask).logits, evaluated)
    trained = model.train()(audio, mask, text, text_mask).logits
    changed = (trained - evaluated).abs().amax(dim=1) > 1e-4
    assert 16 < int(changed.sum()) < 48


def test_a_unimodal_head_never_reads_the_other_modality() -> None:
    audio, audio_mask = random_states([5, 2], AUDIO)
    text, text_mask = random_states([3, 4], TEXT, seed=2)
    for modality in ("text", "audio"):
        spec = replace(TINY, modality=modality, context_turns=2)  # type: ignore[arg-type]
        model = make_model(spec)
        context, context_mask = torch.randn(2, 2, TEXT + AUDIO), torch.ones(2, 2).bool()
        both = model(audio, audio_mask, text, text_mask, context, context_mask).logits
        other = slice(TEXT, None) if modality == "text" else slice(0, TEXT)
        context[:, :, other] = 9.0
        inputs = (None, None, text, text_mask) if modality == "text" else (audio, audio_mask)
        single = model(
            *inputs,
            **{"context": context, "context_mask": context_mask},  # type: ignore[arg-type]
        ).logits
        torch.testing.assert_close(single, both)


def test_context_is_order_dependent_and_none_equals_an_empty_context() -> None:
    model = make_model(replace(TINY, context_turns=2))
    audio, audio_mask = random_states([5, 2], AUDIO)
    text, text_mask = random_states([3, 4], TEXT, seed=2)
    inputs = (audio, audio_mask, text, text_mask)
    context = torch.randn(2, 2, TEXT + AUDIO)
    with_turns = model(*inputs, context, torch.ones(2, 2).bool()).logits
    swapped = model(*inputs, context.flip(1), torch.ones(2, 2).bool()).logits
    assert (with_turns - swapped).abs().max() > 1e-4
    farther = torch.cat((context, torch.randn(2, 3, TEXT + AUDIO)), dim=1)
    torch.testing.assert_close(model(*inputs, farther, torch.ones(2, 5).bool()).logits, with_turns)
    none = model(*inputs, context, torch.zeros(2, 2).bool()).logits
    torch.testing.assert_close(model(*inputs).logits, none)
    assert (with_turns - none).abs().max() > 1e-3


@pytest.mark.parametrize("spec", EXPORTED, ids=spec_id)
def test_heads_export_with_dynamic_batch_size_and_lengths(spec: ModelSpec) -> None:
    model = make_model(spec)
    audio, audio_mask = random_states([5, 4, 2], AUDIO)
    text, text_mask = random_states([3, 4, 1], TEXT, seed=2)
    audio, text = audio.nan_to_num(0.0), text.nan_to_num(0.0)
    context, context_mask = torch.randn(3, 2, TEXT + AUDIO), torch.ones(3, 2).bool()
    # More than one joined frame: shorter clips are padded, which does not change the output.
    joined = spec.audio_stride * (STRIDE if spec.front == "convolutional" else 1)
    frames = torch.export.Dim("frames", min=joined + 1)
    batch, tokens = torch.export.Dim("batch"), torch.export.Dim("tokens")
    rows = {0: batch}
    shapes = (
        {0: batch, 1: frames}, {0: batch, 1: frames}, {0: batch, 1: tokens}, {0: batch, 1: tokens},
        rows, rows,
    )  # fmt: skip
    inputs = (audio, audio_mask, text, text_mask, context, context_mask)
    exported = torch.export.export(model, inputs, dynamic_shapes=shapes).module()
    audio, audio_mask = random_states([11, 0], AUDIO)
    text, text_mask = random_states([0, 7], TEXT, seed=2)
    other = (audio.nan_to_num(0.0), audio_mask, text.nan_to_num(0.0), text_mask)
    other = (*other, context[:2], context_mask[:2])
    torch.testing.assert_close(exported(*other).logits, model(*other).logits)
