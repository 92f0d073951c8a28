"""The heads against an independent forward pass, and what padding and gaps must not do."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from multistill.errors import UsageError
from multistill.models.build import EmotionModel, build, count_parameters, drop_modality
from multistill.models.catalogue import catalogue
from multistill.models.fusion import segment_means
from multistill.models.layers import join_frames
from multistill.models.presets import PRESETS, resolve
from multistill.models.spec import ModelSpec

PUBLISHED = {
    "paper-teacher": 44_107_271,
    "paper-text-teacher": 22_448_903,
    "paper-audio-teacher": 22_448_903,
    "paper-student": 15_755_783,
    "paper-text-student": 8_273_159,
    "paper-audio-student": 8_273_159,
    "text-teacher": 21_662_471,
    "text-student": 7_486_727,
}
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
        ("published", "mean", "attention"),
        ("multimodal", "text", "audio"),
        ((0, 1), (2, 3)),
    )
]

EXPORTED = [
    replace(TINY, pooling="attention", context_turns=2, audio_stride=4),
    replace(TINY, modality="audio"),
    replace(TINY, fusion="mixer", layers=1),
]


def name(spec: ModelSpec) -> str:
    return f"{spec.modality}-{spec.fusion}-{spec.pooling}-{spec.context_turns}"


def make(spec: ModelSpec, seed: int = 0, text_dim: int = TEXT) -> EmotionModel:
    """A model whose every parameter, norms and biases too, is away from its neutral start."""
    torch.manual_seed(seed)
    model = build(spec, AUDIO, text_dim).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def states(lengths: list[int], dim: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Random states, NaN in the padding: whatever reads it shows."""
    generator = torch.Generator().manual_seed(seed)
    width = max([1, *lengths])
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    values = torch.randn(len(lengths), width, dim, generator=generator)
    return values.masked_fill(~mask[:, :, None], math.nan), mask


@pytest.mark.parametrize(("preset", "count"), PUBLISHED.items())
def test_presets_have_the_published_number_of_parameters(preset: str, count: int) -> None:
    with torch.device("meta"):
        assert count_parameters(build(PRESETS[preset], 1024, 768)) == count


def test_the_catalogue_lists_every_preset_with_its_parameters() -> None:
    rows = {row["preset"]: row for row in catalogue()}
    assert list(rows) == list(PRESETS)
    assert {name: rows[name]["params_trainable"] for name in PUBLISHED} == PUBLISHED
    noted = {name for name, row in rows.items() if row["note"]}
    assert noted == {"paper-text-teacher", "paper-text-student"}


# --- an independent reference: one utterance, one head, one number at a time ---


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
    for place, vector in enumerate(sequence, start=1):
        waves = [math.sin(place / 10000 ** (i / (half - 1))) for i in range(half)]
        waves += [math.cos(place / 10000 ** (i / (half - 1))) for i in range(half)]
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


def _below(p: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in p.items() if k.startswith(prefix)}


def _stack(
    p: dict[str, Tensor], x: list[list[float]], source: list[list[float]] | None, spec: ModelSpec
) -> list[list[float]]:
    x = _embed(x)
    source = _embed(source) if source is not None else None
    for number in range(spec.layers):
        layer = _below(p, f"layers.{number}.")

        def norm(v: list[float], which: str, layer: dict[str, Tensor] = layer) -> list[float]:
            return _norm(v, layer[f"{which}_norm.weight"], layer[f"{which}_norm.bias"])

        queries = [norm(v, "attention") for v in x]
        keys = queries if source is None else [norm(v, "attention") for v in source]
        attended = _attend(_below(layer, "attention."), queries, keys, spec.heads)
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
    """Logits of one unpadded utterance, written from the published description."""
    spec = model.spec
    p = {k: v.double() for k, v in model.state_dict().items()}

    def project(x: Tensor, name: str) -> list[list[float]]:
        weight = p.get(f"{name}_projection.weight")
        return x.tolist() if weight is None else [_linear(v, weight, None) for v in x.tolist()]

    sounds, words = project(audio, "audio"), project(text, "text")
    first = _below(p, "fusion.stacks.0.")
    if spec.modality == "text":
        pooled = _average(_stack(first, words, None, spec))
    elif spec.modality == "audio":
        pooled = _stack(first, sounds, None, spec)[0]
    else:
        heard = _stack(first, sounds, words, spec)
        read = _stack(_below(p, "fusion.stacks.1."), words, sounds, spec)
        pooled = _average(heard) + read[0]
    hidden = _linear(pooled, p["classifier.1.weight"], p["classifier.1.bias"])
    hidden = [v / 2 * (1 + math.erf(v / math.sqrt(2))) for v in hidden]
    return _linear(hidden, p["classifier.4.weight"], p["classifier.4.bias"])


@pytest.mark.parametrize("text_dim", [TEXT, TINY.width])
@pytest.mark.parametrize("modality", ["multimodal", "text", "audio"])
def test_forward_equals_an_independent_reference(modality: str, text_dim: int) -> None:
    model = make(ModelSpec.from_dict({**TINY.to_dict(), "modality": modality}), text_dim=text_dim)
    assert (model.text_projection is None) == (modality == "audio" or text_dim == TINY.width)
    audio, audio_mask = states([7, 3], AUDIO)
    text, text_mask = states([2, 5], text_dim, seed=2)
    logits = model(audio, audio_mask, text, text_mask).logits
    for row in range(2):
        expected = reference(
            model, audio[row][audio_mask[row]].double(), text[row][text_mask[row]].double()
        )
        torch.testing.assert_close(logits[row], torch.tensor(expected), atol=2e-5, rtol=1e-5)


# --- what padding, company and gaps must not do ---


def turns(rows: int, seed: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(2) < torch.randint(0, 3, (rows, 1), generator=generator)
    values = torch.randn(rows, 2, TEXT + AUDIO, generator=generator)
    return values.masked_fill(~mask[:, :, None], math.nan), mask


@pytest.mark.parametrize("spec", VARIANTS, ids=name)
def test_an_utterance_gets_the_same_answer_in_any_batch(spec: ModelSpec) -> None:
    model = make(spec)
    audio, audio_mask = states([40, 3, 1, 17], AUDIO)
    text, text_mask = states([2, 9, 4, 1], TEXT, seed=2)
    context, context_mask = turns(4)
    together = model(audio, audio_mask, text, text_mask, context, context_mask)
    for row in range(4):
        one = slice(row, row + 1)
        alone = model(
            audio[one, audio_mask[row]],
            None,
            text[one, text_mask[row]],
            None,
            context[one],
            context_mask[one],
        )
        assert (alone.logits - together.logits[one]).abs().max() < 1e-5
        assert (alone.pooled - together.pooled[one]).abs().max() < 1e-5


@pytest.mark.parametrize("spec", VARIANTS, ids=name)
def test_missing_parts_give_finite_answers_and_gradients(spec: ModelSpec) -> None:
    model = make(spec)
    audio, audio_mask = states([5, 0, 4, 0], AUDIO)
    text, text_mask = states([3, 2, 0, 0], TEXT, seed=2)
    context, context_mask = turns(4)
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
def test_none_means_the_same_as_a_row_without_real_positions(fusion: str) -> None:
    model = make(ModelSpec.from_dict({**TINY.to_dict(), "fusion": fusion}))
    audio, audio_mask = states([5, 2], AUDIO)
    text, text_mask = states([3, 4], TEXT, seed=2)
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


def test_a_model_without_its_states_says_so() -> None:
    audio, mask = states([2], AUDIO)
    with pytest.raises(ValueError, match="text model needs its states"):
        make(replace(TINY, modality="text"))(audio, mask, None, None)


def test_positions_depend_on_order_but_not_on_values() -> None:
    spec = replace(TINY, modality="audio", pooling="mean")
    audio, mask = states([6], AUDIO)
    zero_first = audio.clone()
    zero_first[0, 2, 0] = 0.0  # the published code takes this frame for padding
    model = make(spec)
    moved = (model(zero_first, mask).logits - model(audio, mask).logits).abs().max()
    nearly = audio.clone()
    nearly[0, 2, 0] = 1e-6
    assert (model(nearly, mask).logits - model(zero_first, mask).logits).abs().max() < 1e-4
    assert moved > 0
    assert (model(audio.flip(1), mask).logits - model(audio, mask).logits).abs().max() > 1e-3


def test_modality_dropout_takes_one_modality_at_most_and_only_in_training() -> None:
    torch.manual_seed(0)
    audio_mask = torch.ones(4000, 3, dtype=torch.bool)
    text_mask = torch.ones(4000, 2, dtype=torch.bool)
    text_mask[3000:] = False
    empty = torch.zeros(4000, 3, 1)
    (_, kept_audio), (_, kept_text) = drop_modality([(empty, audio_mask), (empty, text_mask)], 0.4)
    lost_audio, lost_text = ~kept_audio.any(dim=1), ~kept_text.any(dim=1)
    assert not (lost_audio & lost_text).any()
    assert abs(lost_audio[:3000].float().mean() - 0.2) < 0.03
    assert abs(lost_text[:3000].float().mean() - 0.2) < 0.03

    model = make(replace(TINY, modality_dropout=0.5))
    audio, mask = states([5] * 64, AUDIO)
    text, words = states([3] * 64, TEXT, seed=2)
    whole = model(audio, mask, text, words).logits
    torch.testing.assert_close(model(audio, mask, text, words).logits, whole)
    trained = model.train()(audio, mask, text, words).logits
    changed = (trained - whole).abs().amax(dim=1) > 1e-4
    assert 16 < int(changed.sum()) < 48


def test_a_unimodal_head_never_reads_the_other_modality() -> None:
    audio, audio_mask = states([5, 2], AUDIO)
    text, text_mask = states([3, 4], TEXT, seed=2)
    for modality in ("text", "audio"):
        spec = replace(TINY, modality=modality, context_turns=2)  # type: ignore[arg-type]
        model = make(spec)
        context, context_mask = torch.randn(2, 2, TEXT + AUDIO), torch.ones(2, 2).bool()
        both = model(audio, audio_mask, text, text_mask, context, context_mask).logits
        other = slice(TEXT, None) if modality == "text" else slice(0, TEXT)
        context[:, :, other] = 9.0
        given = (None, None, text, text_mask) if modality == "text" else (audio, audio_mask)
        alone = model(
            *given,
            **{"context": context, "context_mask": context_mask},  # type: ignore[arg-type]
        ).logits
        torch.testing.assert_close(alone, both)


def test_context_is_read_in_order_and_its_absence_is_no_special_case() -> None:
    model = make(replace(TINY, context_turns=2))
    audio, audio_mask = states([5, 2], AUDIO)
    text, text_mask = states([3, 4], TEXT, seed=2)
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


def test_joined_frames_are_means_of_real_neighbours() -> None:
    values, mask = states([7, 3, 0], 2)
    joined, kept = join_frames(values.nan_to_num(0.0), mask, 3)
    assert kept.tolist() == [[True] * 3, [True, False, False], [False] * 3]
    torch.testing.assert_close(joined[0, 2], values[0, 6])
    torch.testing.assert_close(joined[0, 1], values[0, 3:6].mean(dim=0))
    torch.testing.assert_close(joined[1, 0], values[1, :3].mean(dim=0))
    assert not joined[~kept].any()


def test_segments_equal_adaptive_pooling_without_the_padding() -> None:
    lengths = [40, 16, 5, 1]
    values, mask = states(lengths, 3)
    pooled = segment_means(values.nan_to_num(0.0), mask, 6)
    for row, length in enumerate(lengths):
        expected = torch.nn.functional.adaptive_avg_pool1d(values[row, :length].T, 6).T
        torch.testing.assert_close(pooled[row], expected)


@pytest.mark.parametrize("spec", EXPORTED, ids=name)
def test_heads_export_with_free_batch_and_lengths(spec: ModelSpec) -> None:
    model = make(spec)
    audio, audio_mask = states([5, 4, 2], AUDIO)
    text, text_mask = states([3, 4, 1], TEXT, seed=2)
    audio, text = audio.nan_to_num(0.0), text.nan_to_num(0.0)
    context, context_mask = torch.randn(3, 2, TEXT + AUDIO), torch.ones(3, 2).bool()
    # More than one joined frame: shorter clips are padded, which changes nothing.
    frames = torch.export.Dim("frames", min=spec.audio_stride + 1)
    batch, tokens = torch.export.Dim("batch"), torch.export.Dim("tokens")
    rows = {0: batch}
    shapes = (
        {0: batch, 1: frames}, {0: batch, 1: frames}, {0: batch, 1: tokens}, {0: batch, 1: tokens},
        rows, rows,
    )  # fmt: skip
    inputs = (audio, audio_mask, text, text_mask, context, context_mask)
    exported = torch.export.export(model, inputs, dynamic_shapes=shapes).module()
    audio, audio_mask = states([11, 0], AUDIO)
    text, text_mask = states([0, 7], TEXT, seed=2)
    other = (audio.nan_to_num(0.0), audio_mask, text.nan_to_num(0.0), text_mask)
    other = (*other, context[:2], context_mask[:2])
    torch.testing.assert_close(exported(*other).logits, model(*other).logits)


# --- specs and presets ---


def test_specs_survive_a_round_trip_and_refuse_what_does_not_fit() -> None:
    for spec in PRESETS.values():
        assert ModelSpec.from_dict(spec.to_dict()) == spec
    with pytest.raises(UsageError, match="width 66 is not divisible by heads 4"):
        resolve("small-teacher", {"width": 66})
    with pytest.raises(UsageError, match="did you mean `small-student`"):
        resolve("smal-student", {})
    with pytest.raises(UsageError, match="unknown field `wide`"):
        resolve("small-student", {"wide": 3})
    with pytest.raises(UsageError, match="pooling `max` is not one of published, mean"):
        resolve("small-student", {"pooling": "max"})
    with pytest.raises(UsageError, match="field `modality` is missing"):
        ModelSpec.from_dict({"width": 8})
    assert resolve("small-student", {"layers": 3}).layers == 3
