"""The pooled network: its counts with encoders, and a second computation of its output."""

from __future__ import annotations

import pytest
import torch

from multistill.encoders.adapters import add_adapters, free_layer_norms
from multistill.models.build import build, count_parameters
from multistill.models.presets import resolve


def test_published_parameter_counts() -> None:
    """The whole with both encoders, and what every corpus gets beside frozen ones."""
    from transformers import BertConfig, BertModel, Wav2Vec2Config, Wav2Vec2Model

    with torch.device("meta"):
        bert = BertModel(BertConfig(vocab_size=32_000))
        wav2vec2 = Wav2Vec2Model(Wav2Vec2Config())
        network = build(resolve("pooled", {}), 768, 768)
        strided = build(resolve("pooled-strided", {}), 768, 768)
        assert sum(map(count_parameters, (bert, wav2vec2, network))) == 205_193_095
        bert.requires_grad_(False)
        add_adapters(bert.encoder.layer, 768, 64, "the encoder `bert`")
        free_layer_norms(bert.encoder.layer)
        assert count_parameters(bert) == 2_416_128
        assert count_parameters(bert) + count_parameters(strided) == 13_241_607


@pytest.mark.parametrize("strides", [0, 1, 3])
def test_output_is_that_of_a_second_computation(strides: int) -> None:
    torch.manual_seed(0)
    overrides = {"width": 8, "pooled_strides": strides, "classifier_dropout": 0.0}
    model = build(resolve("pooled", overrides), 6, 5).double().eval()
    weights = model.state_dict()
    audio, text = torch.randn(11, 6).double(), torch.randn(4, 5).double()
    states = audio
    for layer in range(strides):
        kernel, bias = (
            weights[f"strided.{layer}.convolution.{name}"] for name in ("weight", "bias")
        )
        rows = []
        for centre in range(0, len(states), 2):
            around = [
                states[i] if 0 <= i < len(states) else torch.zeros(6).double()
                for i in range(centre - 1, centre + 2)
            ]
            value = bias + sum(kernel[:, :, k] @ each for k, each in enumerate(around))
            rows.append(value[:6] * torch.sigmoid(value[6:]))
        states = torch.stack(rows)
    projected = states @ weights["projection.weight"].T + weights["projection.bias"]
    pooled = torch.cat([projected.mean(dim=0), text[0]])
    expected = weights["classifier.weight"] @ pooled + weights["classifier.bias"]
    # In a batch, beside a longer clip.
    padded = torch.full((2, 15, 6), 9.0).double()
    padded[0, :11] = audio
    tokens = torch.full((2, 7, 5), 9.0).double()
    tokens[0, :4] = text
    masks = [
        torch.arange(size)[None] < torch.tensor([[own], [size]]) for size, own in ((15, 11), (7, 4))
    ]
    output = model(padded, masks[0], tokens, masks[1])
    torch.testing.assert_close(output.logits[0], expected)
    torch.testing.assert_close(output.pooled[0], pooled)


def test_a_missing_modality_leaves_the_other() -> None:
    model = build(resolve("pooled-strided", {"width": 8}), 6, 5).eval()
    text = torch.randn(2, 3, 5)
    alone = model(None, None, text)
    empty = model(torch.randn(2, 9, 6), torch.zeros(2, 9, dtype=torch.bool), text)
    torch.testing.assert_close(alone.logits, empty.logits)
    assert torch.isfinite(alone.logits).all()
