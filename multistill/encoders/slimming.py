"""Structured pruning of transformer layers: whole attention heads and feed-forward units.

What is kept has the largest norms, as of filters in Li et al., 2017 (arXiv:1608.08710), section
3.1. Kept weights stay as they are, in their order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from multistill.config import SpeechEncoderConfig
from multistill.encoders.kinds import SLIMMABLE, WHISPER
from multistill.encoders.slim import EncoderSizes, slim_problems
from multistill.encoders.smart_turn import empty_encoder
from multistill.encoders.speech import Wav2Vec2Network, untrained_wav2vec2
from multistill.encoders.whisper import WhisperNetwork
from multistill.errors import UsageError

# Of a layer: its attention, and the linear modules into and out of its feed-forward units.
_WHISPER = ("self_attn", "fc1", "fc2")
_WAV2VEC2 = ("attention", "feed_forward.intermediate_dense", "feed_forward.output_dense")


def slim_layers(
    model: Any, layers: Iterable[nn.Module], config: SpeechEncoderConfig, slim: EncoderSizes
) -> None:
    """Prune the layers in place to the heads and feed-forward units of `slim`.

    Args:
        model: of transformers, whose layers they are.
        config: of the encoder.

    Raises:
        UsageError: the layers have fewer heads or units, or are of a kind that cannot be slimmed.
    """
    kind = model.config.model_type
    for problem in slim_problems(config, slim, model_type=kind):
        raise UsageError(f"model: {problem}")
    names = _WHISPER if kind == WHISPER else _WAV2VEC2
    for layer in layers:
        attention, into, out_of = (_module(layer, name) for name in names)
        base = EncoderSizes(None, attention.num_heads, into.out_features)
        for problem in slim_problems(config, slim, base):
            raise UsageError(f"model: {problem}")
        if slim.heads is not None:
            _keep_heads(attention, slim.heads)
        if slim.feedforward is not None:
            norms = _squares(into.weight, 0) + _squares(out_of.weight, 1)
            kept = _largest(norms, slim.feedforward)
            _keep(into, kept, 0)
            _keep(out_of, kept, 1)


def _module(layer: nn.Module, name: str) -> Any:
    return layer.get_submodule(name)


def _keep_heads(attention: Any, count: int) -> None:
    heads: int = attention.num_heads
    # What a head writes: with queries and keys among the norms, fewer states of smart-turn stay as
    # they are (docs/models.md).
    written = _squares(attention.v_proj.weight, 0) + _squares(attention.out_proj.weight, 1)
    norms = written.unflatten(0, (heads, -1)).sum(dim=1)
    first = _largest(norms, count)[:, None] * attention.head_dim
    kept = (first + torch.arange(attention.head_dim, device=first.device)).flatten()
    for each in (attention.q_proj, attention.k_proj, attention.v_proj):
        _keep(each, kept, 0)
    _keep(attention.out_proj, kept, 1)
    attention.num_heads = count


def _squares(weight: Tensor, dim: int) -> Tensor:
    """Sum of the squares of each row (0) or column (1) of a matrix."""
    return weight.detach().double().square().sum(dim=1 - dim)


def _largest(norms: Tensor, count: int) -> Tensor:
    """Indices of the largest norms, in their order; of equal norms, the first."""
    if norms.is_meta:  # shapes alone
        return torch.arange(count, device=norms.device)
    return norms.argsort(descending=True, stable=True)[:count].sort().values


def _keep(linear: nn.Linear, kept: Tensor, dim: int) -> None:
    """Keep these outputs (0) or inputs (1) of a linear module."""
    linear.weight = nn.Parameter(linear.weight.detach().index_select(dim, kept))
    if dim == 0:
        linear.out_features = len(kept)
        if linear.bias is not None:
            linear.bias = nn.Parameter(linear.bias.detach().index_select(0, kept))
    else:
        linear.in_features = len(kept)


def empty_network(
    config: SpeechEncoderConfig, architecture: Mapping[str, Any]
) -> WhisperNetwork | Wav2Vec2Network:
    """The network of a speech encoder before it is slimmed, its parameters on the meta device.

    Args:
        config: with the layers that are read.
        architecture: of `TrainableEncoder.architecture`.

    Raises:
        ValueError: no encoder is built like this.
    """
    with torch.device("meta"):
        model = _empty_model(config, architecture["settings"])
    if model.config.model_type == WHISPER:
        level = float(architecture["level"])
        return WhisperNetwork(model, config.layers, config.combine, level)
    return Wav2Vec2Network(model, config.layers, config.combine)


def _empty_model(config: SpeechEncoderConfig, settings: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig, AutoModel
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    if config.model == "smart-turn":
        return empty_encoder()
    if config.model == "untrained-wav2vec2":
        return untrained_wav2vec2()
    kind = settings["model_type"]
    if kind not in SLIMMABLE:
        raise ValueError(f"`{kind}` is no type of encoder that can be slimmed")
    [read] = config.layers
    try:
        shape = AutoConfig.for_model(**settings)
        if read >= 0:
            # One more than is read: the norm after the last layer is not that of one below it.
            shape.num_hidden_layers = min(shape.num_hidden_layers, read + 1)
        return WhisperEncoder(shape) if kind == WHISPER else AutoModel.from_config(shape)
    except Exception as error:
        # Settings that are none can raise any exception in the code of transformers.
        raise ValueError(f"no {kind} model can be made of its settings") from error
