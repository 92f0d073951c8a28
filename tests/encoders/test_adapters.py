"""Adapters and low-rank updates against a second computation of the layer that they stand in."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from multistill.encoders.adapters import add_adapters, add_lora

WIDTH, BOTTLENECK, RANK, ALPHA = 8, 3, 2, 6.0


def make_layer() -> nn.Module:
    from transformers import BertConfig
    from transformers.models.bert.modeling_bert import BertLayer

    config = BertConfig(
        hidden_size=WIDTH, num_attention_heads=2, intermediate_size=12, num_hidden_layers=1
    )
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    return BertLayer(config).double().eval()


def moved(module: nn.Module) -> nn.Module:
    """With weights away from their start, at which nothing is added."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator).double()
    return module.eval()


def adapted(state: dict[str, Tensor], name: str, states: Tensor) -> Tensor:
    down = states @ state[f"{name}.adapter.down.weight"].T + state[f"{name}.adapter.down.bias"]
    gelu = 0.5 * down * (1 + torch.erf(down / 2**0.5))
    return states + gelu @ state[f"{name}.adapter.up.weight"].T + state[f"{name}.adapter.up.bias"]


def normalised(state: dict[str, Tensor], name: str, states: Tensor) -> Tensor:
    mean, variance = states.mean(-1, keepdim=True), states.var(-1, keepdim=True, unbiased=False)
    return (states - mean) / (variance + 1e-12).sqrt() * state[f"{name}.weight"] + state[
        f"{name}.bias"
    ]


def test_adapters_stand_after_attention_and_feed_forward_before_the_residual_sums() -> None:
    layer = make_layer()
    states = torch.randn(1, 5, WIDTH).double()
    before = layer(states)[0]
    add_adapters([layer], WIDTH, BOTTLENECK, "the encoder `bert`")
    torch.testing.assert_close(layer.double()(states)[0], before)
    state = moved(layer).state_dict()

    def linear(name: str, value: Tensor) -> Tensor:
        return value @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    query, key, value = (
        linear(f"attention.self.{name}", states[0]).unflatten(-1, (2, 4)).transpose(0, 1)
        for name in ("query", "key", "value")
    )
    weights = (query @ key.transpose(1, 2) / 2).softmax(-1)
    heard = (weights @ value).transpose(0, 1).flatten(1)
    name = "attention.output.dense"
    summed = adapted(state, name, linear(f"{name}.module", heard)) + states[0]
    attended = normalised(state, "attention.output.LayerNorm", summed)
    inner = linear("intermediate.dense", attended)
    inner = 0.5 * inner * (1 + torch.erf(inner / 2**0.5))
    fed = adapted(state, "output.dense", linear("output.dense.module", inner))
    expected = normalised(state, "output.LayerNorm", fed + attended)
    torch.testing.assert_close(layer(states)[0].squeeze(0), expected)


def test_a_low_rank_update_is_added_to_every_linear_module() -> None:
    network = nn.Sequential(nn.Linear(WIDTH, 6), nn.Tanh(), nn.Linear(6, 4)).double()
    states = torch.randn(5, WIDTH).double()
    before = network(states)
    add_lora(network, [network], RANK, ALPHA, "the encoder `x`")
    torch.testing.assert_close(network.double()(states), before)
    state = moved(network).state_dict()
    expected = states
    for index in (0, 2):
        first, second = (
            next(v for k, v in state.items() if k.startswith(f"{index}.lora_{part}"))
            for part in "AB"
        )
        own = state[f"{index}.base_layer.weight"] + ALPHA / RANK * second @ first
        expected = expected @ own.T + state[f"{index}.base_layer.bias"]
        expected = expected.tanh() if index == 0 else expected
    torch.testing.assert_close(network(states), expected)
    assert {n for n, p in network.named_parameters() if p.requires_grad} == {
        n for n in state if ".lora_" in n
    }
