"""emotion2vec: data2vec 2.0 on speech, its context encoder and its upper blocks as one encoder.

Published by Ma et al. (Findings of ACL 2024, arXiv:2312.15185); the network is that of data2vec 2.0
(Baevski et al. 2023, arXiv:2212.07525). It is no `data2vec-audio` of transformers: attention has a
linear bias by distance (ALiBi, Press et al. 2022) with a learnt scale, and ten learnt tokens are
attended to beside the frames.

Checkpoints are published as pickles (`model.pt` of FunASR), which are never loaded. A converted one
is a folder with `model.safetensors`, the tensors under their published names, and `config.json`
(docs/features.md).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from multistill.workspace import read_json

FILES = ("config.json", "model.safetensors")
STRIDES = (5, 2, 2, 2, 2, 2, 2)
_PREFIX = r"^(?:d2v_model\.)?modality_encoders\.AUDIO\."
# Names in the published checkpoints, and here; other tensors are of pre-training only.
_NAMES = (
    (_PREFIX + r"local_encoder\.conv_layers\.(\d+)\.0\.weight$", r"convolutions.\1.weight"),
    (_PREFIX + r"local_encoder\.conv_layers\.(\d+)\.2\.1\.", r"norms.\1."),
    (_PREFIX + r"project_features\.1\.", "projection.0."),
    (_PREFIX + r"project_features\.2\.", "projection.1."),
    (_PREFIX + r"relative_positional_encoder\.(\d+)\.0\.", r"positional.\1."),
    (_PREFIX + r"context_encoder\.norm\.", "norm."),
    (_PREFIX + r"context_encoder\.blocks\.", "encoder.layers."),
    (_PREFIX + r"(extra_tokens|alibi_scale)$", r"\1"),
    (r"^(?:d2v_model\.)?blocks\.", "upper."),
)


class Emotion2vec(nn.Module):
    """The network, with the attributes by which `speech.Wav2Vec2Family` reads a model.

    Its sizes are those of its tensors.

    Args:
        tensors: of a published checkpoint, by their published names.
        heads: attention heads.

    Raises:
        KeyError: a tensor is missing.
        ValueError: the tensors are of another network.
    """

    def __init__(self, tensors: Mapping[str, Tensor], heads: int) -> None:
        super().__init__()
        state = _renamed(tensors)
        width = len(state["norm.weight"])
        if width % heads:
            raise ValueError(f"{heads} attention heads do not divide {width} values")
        layers = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("encoder."))
        convolutions = [state[f"convolutions.{n}.weight"] for n in range(len(STRIDES))]
        self.convolutions = nn.ModuleList(
            nn.Conv1d(weight.shape[1], weight.shape[0], weight.shape[2], stride, bias=False)
            for weight, stride in zip(convolutions, STRIDES, strict=True)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(weight.shape[0]) for weight in convolutions)
        features = convolutions[-1].shape[0]
        self.projection = nn.Sequential(nn.LayerNorm(features), nn.Linear(features, width))
        positions = sum(name.startswith("positions.") for name in state) // 2
        self.positions = nn.ModuleList(
            nn.Conv1d(
                width,
                width,
                weight.shape[2],
                padding=weight.shape[2] // 2,
                groups=width // weight.shape[1],
            )
            for weight in (state[f"positions.{n}.weight"] for n in range(positions))
        )
        self.norm = nn.LayerNorm(width)
        hidden = len(state["encoder.layers.0.mlp.fc1.bias"])
        blocks = nn.ModuleList(_Block(width, heads, hidden) for _ in range(layers))
        self.encoder = nn.Module()
        self.encoder.layers = blocks
        self._heads = heads
        self.extra_tokens = nn.Parameter(torch.empty_like(state["extra_tokens"]))
        self.alibi_scale = nn.Parameter(torch.empty_like(state["alibi_scale"]))
        if self.alibi_scale.shape[0] not in {1, layers}:
            raise ValueError(f"alibi_scale has {self.alibi_scale.shape[0]} layers, not {layers}")
        self.load_state_dict(state)
        self.config = SimpleNamespace(
            model_type="emotion2vec",
            hidden_size=width,
            conv_kernel=[weight.shape[2] for weight in convolutions],
            conv_stride=list(STRIDES),
            feat_extract_norm="layer",
        )

    def forward(self, waves: Tensor, attention_mask: None = None) -> SimpleNamespace:
        """Waves [B, samples] of unit variance and equal length -> `last_hidden_state`.

        The states [B, T + extra tokens, width] begin with the frames: without a bias between them,
        attention does not depend on where the learnt tokens stand.
        """
        states = waves[:, None]
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            states = convolution(states).transpose(1, 2)
            states = F.gelu(norm(states)).transpose(1, 2)
        states = self.projection(states.transpose(1, 2))
        positions = states.transpose(1, 2)
        for convolution in self.positions:
            found = convolution(positions)[..., : positions.shape[-1]].transpose(1, 2)
            positions = F.gelu(F.layer_norm(found, found.shape[-1:])).transpose(1, 2)
        states = states + positions.transpose(1, 2)
        frames, tokens = states.shape[1], self.extra_tokens.shape[1]
        states = torch.cat((states, self.extra_tokens.expand(len(states), -1, -1)), dim=1)
        states = self.norm(states)
        bias = distance_bias(frames, self._heads, states.device)
        layers = self.encoder.layers
        assert isinstance(layers, nn.ModuleList)
        for number, layer in enumerate(layers):
            scale = self.alibi_scale[number if len(self.alibi_scale) > 1 else 0].clamp_min(0)
            states = layer(states, F.pad(bias * scale, (0, tokens, 0, tokens)))
        return SimpleNamespace(last_hidden_state=states)


class _Block(nn.Module):
    """Attention and feed-forward layer, each normalised after its residual connection."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.attn = nn.ModuleDict(
            {"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)}
        )
        self.norm1 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)})
        self.norm2 = nn.LayerNorm(width)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x [B, T, width], bias [1, heads, T, T] -> [B, T, width]."""
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.attn["qkv"](x).chunk(3, dim=-1)
        )
        attended = F.scaled_dot_product_attention(query, key, value, bias.to(query.dtype))
        x = self.norm1(x + self.attn["proj"](attended.transpose(1, 2).flatten(2)))
        return self.norm2(x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](x))))


def distance_bias(length: int, heads: int, device: torch.device) -> Tensor:
    """ALiBi in both directions [heads, length, length]: minus the distance times a head's slope."""
    index = torch.arange(length, device=device, dtype=torch.float32)
    slopes = torch.tensor(_slopes(heads), device=device)
    return -slopes[:, None, None] * (index[None] - index[:, None]).abs()


def _slopes(heads: int) -> list[float]:
    """2^(-8/n), its square and so on for n heads, a power of two.

    For other n, those of the power below and then every second of the power above, as in the code
    that Press et al. published.
    """
    power = 2 ** math.floor(math.log2(heads))
    found = [2 ** (-8 * (number + 1) / power) for number in range(power)]
    return found if power == heads else found + _slopes(2 * power)[::2][: heads - power]


def _renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by their names here; upper blocks follow those of the context encoder."""
    state: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for pattern, replacement in _NAMES:
            new, fits = re.subn(pattern, replacement, name)
            if fits:
                state[new] = tensor.float()
    context = {int(name.split(".")[2]) for name in state if name.startswith("encoder.layers.")}
    for name in [name for name in state if name.startswith(("upper.", "positional."))]:
        kind, number, rest = name.split(".", 2)
        # The published positional encoder starts with a module without weights.
        new = f"positions.{int(number) - 1}"
        if kind == "upper":
            new = f"encoder.layers.{len(context) + int(number)}"
        state[f"{new}.{rest}"] = state.pop(name)
    return state


def load(config_file: str, weights_file: str) -> Emotion2vec:
    """The network of a folder, in eval mode.

    Args:
        config_file: JSON with `num_attention_heads`.
        weights_file: safetensors.

    Raises:
        KeyError: a tensor or a field is missing.
        ValueError: the tensors are of another network, or the file is damaged.
    """
    heads = int(read_json(Path(config_file))["num_attention_heads"])
    try:
        return Emotion2vec(load_file(weights_file), heads).eval()
    except (SafetensorError, RuntimeError) as error:  # load_state_dict raises RuntimeErrors
        raise ValueError(" ".join(str(error).split())[:200]) from error
