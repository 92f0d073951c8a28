"""FE2E and MESM: counts, chunks, missing modalities, and an independent re-computation."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from multistill.models.build import build, count_parameters
from multistill.models.end_to_end import EndToEnd, in_chunks
from multistill.models.presets import PRESETS, resolve

BANDS, TEXT = 12, 10
NAMES = ("fe2e", "mesm")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def small(name: str, **changed: object) -> EndToEnd:
    values = {"num_classes": 3, "chunk_frames": 8, "front_channels": 4, "chunk_hidden": 16}
    model = build(resolve(name, {**values, **changed}), BANDS, TEXT)
    assert isinstance(model, EndToEnd)
    return model


def clips(frames: tuple[int, ...] = (20, 5, 16), tokens: int = 4) -> tuple[Tensor, ...]:
    audio = torch.randn(len(frames), max(frames), BANDS)
    mask = torch.arange(max(frames)) < torch.tensor(frames)[:, None]
    text = torch.randn(len(frames), tokens, TEXT)
    return audio, mask, text, torch.ones(len(frames), tokens, dtype=torch.bool)


@pytest.mark.parametrize(
    ("preset", "published"), [("paper-fe2e", 26_068_750), ("paper-mesm", 26_497_937)]
)
def test_parameters_are_the_published_ones_with_albert_base(preset: str, published: int) -> None:
    from transformers import AlbertConfig, AlbertModel

    albert = AlbertConfig(
        embedding_size=128,
        hidden_size=768,
        num_attention_heads=12,
        intermediate_size=3072,
    )
    with torch.device("meta"):
        text = AlbertModel(albert)
        model = build(resolve(preset, {"num_classes": 6}), audio_dim=128, text_dim=768)
    assert count_parameters(text) == 11_683_584
    assert count_parameters(text) + count_parameters(model) == published


def test_published_parts_have_the_published_counts() -> None:
    with torch.device("meta"):
        dense = build(resolve("paper-fe2e", {"num_classes": 6}), 128, 768)
        sparse = build(resolve("paper-mesm", {"num_classes": 6}), 128, 768)
    assert isinstance(dense, EndToEnd) and isinstance(sparse, EndToEnd)
    of = count_parameters
    network = dense.chunk_network
    assert of(network.input) + of(network.stem) == 150_016
    assert of(network.input) + of(network.stem) + of(network.stages) == 4_800_256
    assert of(network.hidden) + of(network.projection) == 8_455_232
    assert of(dense.chunk_transformer) == 1_124_672
    stages = [
        (of(stage.selection), of(stage.first) + of(stage.second))  # type: ignore[arg-type, union-attr]
        for stage in sparse.chunk_network.stages
    ]
    assert stages == [(53_377, 221_696), (114_945, 885_760), (262_657, 3_540_992)]


def published_forward(model: EndToEnd, audio: Tensor, text: Tensor) -> Tensor:
    """FE2E in evaluation, of one clip whose length is a multiple of the chunk's, layer by layer.

    Written from the description of the published network, without any class of it.
    """
    weights = model.state_dict()
    spec = model.spec

    def normalized(x: Tensor, name: str, eps: float) -> Tensor:
        mean, variance = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
        scaled = (x - mean[:, None, None]) / torch.sqrt(variance + eps)[:, None, None]
        return (
            scaled * weights[f"{name}.weight"][:, None, None]
            + weights[f"{name}.bias"][:, None, None]
        )

    def conv(x: Tensor, name: str) -> Tensor:
        kernel, size = weights[f"{name}.conv.weight"], x.shape[-2:]
        width = kernel.shape[-1]
        columns = nn.functional.unfold(x, width, padding=width // 2)
        y = (kernel.flatten(1) @ columns).unflatten(-1, size)
        y = y + weights[f"{name}.conv.bias"][:, None, None]
        return normalized(y, f"{name}.norm", 1e-5).clamp(min=0)

    def pooled(x: Tensor) -> Tensor:
        padded = nn.functional.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2))
        quarters = [padded[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]
        return torch.stack(quarters).amax(dim=0)

    def linear(x: Tensor, name: str) -> Tensor:
        bias = weights.get(f"{name}.bias")
        return x @ weights[f"{name}.weight"].T + (0.0 if bias is None else bias)

    states = []
    for start in range(0, len(audio), spec.chunk_frames):
        x = audio[start : start + spec.chunk_frames].T[None, None]
        x = pooled(conv(x, "chunk_network.input"))
        for number in range(4):
            x = conv(x, f"chunk_network.stem.{number}")
        for number in range(3):
            x = conv(x, f"chunk_network.stages.{number}.first")
            x = pooled(conv(x, f"chunk_network.stages.{number}.second"))
        x = linear(x.reshape(-1), "chunk_network.hidden").clamp(min=0)
        states.append(linear(x, "chunk_network.projection"))
    x = torch.stack([weights["chunk_transformer.first"], *states])
    for number in range(spec.layers):
        layer = f"chunk_transformer.layers.layers.{number}"
        joint, bias = (weights[f"{layer}.self_attn.in_proj_{name}"] for name in ("weight", "bias"))
        query, key, value = (x @ joint.T + bias).chunk(3, dim=1)
        heads = []
        for q, k, v in zip(
            *(part.chunk(spec.heads, dim=1) for part in (query, key, value)), strict=True
        ):
            heads.append((q @ k.T / math.sqrt(q.shape[1])).softmax(dim=1) @ v)
        x = x + linear(torch.cat(heads, dim=1), f"{layer}.self_attn.out_proj")
        x = layer_norm(x, weights, f"{layer}.norm1")
        x = x + linear(linear(x, f"{layer}.linear1").clamp(min=0), f"{layer}.linear2")
        x = layer_norm(x, weights, f"{layer}.norm2")
    outputs = torch.stack([linear(x[0], "audio_head"), linear(text[0], "text_head")])
    return weights["fusion.weights.weight"][0] @ outputs


def layer_norm(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    scaled = centred / torch.sqrt((centred**2).mean(dim=-1, keepdim=True) + 1e-5)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


@torch.no_grad()
def test_forward_is_the_published_one() -> None:
    model = small("paper-fe2e", width=8, feedforward=16, layers=2)
    for _ in range(3):
        model(*clips())  # running statistics
    model.eval()
    audio, _, text, _ = clips((24,))
    expected = published_forward(model, audio[0], text[0])
    torch.testing.assert_close(
        model(audio, None, text, None).logits[0], expected, atol=1e-5, rtol=1e-4
    )


def twin(sparse: EndToEnd) -> EndToEnd:
    """FE2E with the weights of a MESM: its stages without biases, and their epsilon."""
    spec = replace(sparse.spec, network="fe2e", top_p=1.0)
    dense = EndToEnd(spec, BANDS, TEXT)
    missing, unexpected = dense.load_state_dict(sparse.state_dict(), strict=False)
    assert all(".stages." in name and name.endswith(".conv.bias") for name in missing)
    assert all(".selection." in name for name in unexpected)
    for stage, other in zip(dense.chunk_network.stages, sparse.chunk_network.stages, strict=True):
        for mine, theirs in ((stage.first, other.first), (stage.second, other.second)):
            nn.init.zeros_(mine.conv.bias)  # type: ignore[arg-type, union-attr]
            mine.norm.eps = theirs.norm.eps  # type: ignore[union-attr]
    return dense


@pytest.mark.parametrize("preset", ["paper-mesm", "mesm"])
def test_mesm_with_all_points_is_fe2e_exactly(preset: str) -> None:
    sparse = small(preset, top_p=1.0, width=16, feedforward=16)
    dense = twin(sparse)
    inputs = clips()
    for mode in (False, True):
        outputs = []
        for model in (sparse.train(mode), dense.train(mode)):
            torch.manual_seed(1)
            outputs.append(model(*inputs).logits)
        assert torch.equal(*outputs)
    less = small(preset, top_p=0.5, width=16, feedforward=16)
    less.load_state_dict(sparse.state_dict())
    assert not torch.equal(less.eval()(*inputs).logits, dense.eval()(*inputs).logits)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_clip_has_its_output_whatever_else_is_in_the_batch(name: str) -> None:
    model = small(name).eval()
    audio, mask, text, text_mask = clips()
    together = model(audio, mask, text, text_mask).logits
    for row, frames in enumerate(mask.sum(dim=1).tolist()):
        alone = model(audio[row : row + 1, :frames], None, text[row : row + 1], None).logits[0]
        torch.testing.assert_close(alone, together[row], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_the_order_of_chunks_matters_with_positions_only(name: str) -> None:
    audio, _, text, _ = clips((24,))
    chunks = audio.unflatten(1, (3, 8))
    turned = chunks[:, [2, 1, 0]].flatten(1, 2)
    for preset, same in ((f"paper-{name}", True), (name, False)):
        model = small(preset).eval()
        first, second = (model(each, None, text, None).logits for each in (audio, turned))
        assert torch.allclose(first, second, atol=1e-5) is same


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_modality_has_an_output_that_it_does_not_change(name: str) -> None:
    model = small(name).eval()
    audio, mask, text, text_mask = clips()
    absent = torch.zeros_like(text_mask)
    without = model(audio, mask, None, None).logits
    assert without.isfinite().all()
    torch.testing.assert_close(model(audio, mask, text, absent).logits, without)
    silent = model(None, None, text, text_mask).logits
    torch.testing.assert_close(model(audio, torch.zeros_like(mask), text, text_mask).logits, silent)
    neither = model(audio, torch.zeros_like(mask), text, absent).logits
    assert neither.isfinite().all() and torch.allclose(neither, neither[:1].expand_as(neither))


def test_what_a_text_would_say_is_learnt_from_clips_without() -> None:
    model = small("mesm")
    audio, mask, text, text_mask = clips()
    text_mask[0] = False
    assert model.null_text is not None
    model(audio, mask, text, text_mask).logits.square().sum().backward()
    assert model.null_text.grad is not None and model.null_text.grad.abs().sum() > 0


@pytest.mark.parametrize("preset", ["paper-mesm", "mesm", "small-mesm"])
def test_every_attention_of_a_preset_learns_and_so_does_the_text(preset: str) -> None:
    model = small(preset, top_p=0.7)
    audio, mask, text, text_mask = clips()
    text.requires_grad_()
    query = model._query(text, text_mask)
    chunks, chunk_mask = in_chunks(audio, mask, model.spec.chunk_frames)
    states = model.chunk_network(
        chunks.flatten(0, 1).transpose(1, 2),
        chunk_mask.flatten(0, 1),
        query.repeat_interleave(chunks.shape[1], dim=0),
    )
    (states * torch.randn_like(states)).sum().backward()
    assert text.grad is not None and text.grad.abs().sum() > 0
    for stage in model.chunk_network.stages:
        assert isinstance(stage.selection, nn.Module)
        for name, parameter in stage.selection.named_parameters():
            if name != "score.bias":
                assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("name", NAMES)
def test_pooled_states_are_mixed(name: str) -> None:
    model = small(name).eval()
    audio, mask, text, text_mask = clips((16, 16, 20, 5))
    output = model(audio, mask, text, text_mask, mixing=torch.tensor([1.0, 0.0]))
    plain = model(audio, mask, text, text_mask)
    torch.testing.assert_close(output.logits, plain.logits[[0, 3]])
    assert output.pooled.shape == (2, model.pooled_dim)


def test_presets_share_an_architecture_and_differ_in_what_was_left_out() -> None:
    for name in NAMES:
        paper, corrected = PRESETS[f"paper-{name}"], PRESETS[name]
        assert (paper.width, paper.front_channels) == (corrected.width, corrected.front_channels)
        assert not paper.null_text and corrected.null_text
