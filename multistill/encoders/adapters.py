"""Small trained parts beside frozen layers: LoRA through peft, and bottleneck adapters.

Both change nothing at the start: the first matrix is random and the second is zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from multistill.errors import UsageError

# Of a layer: the output of its attention and of its feed-forward part, before the residual sum.
_PLACES = (
    ("attention.output.dense", "output.dense"),  # BERT and models like it
    ("attention", "feed_forward"),  # wav2vec2 and models like it
    ("self_attn", "fc2"),  # Whisper
    ("self_attn", "ffn2"),  # wav2vec2-conformer
)


class Bottleneck(nn.Module):
    """x + up(gelu(down(x))): the adapter of Houlsby et al., 2019 (arXiv:1902.00751), section 2."""

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, states: Tensor) -> Tensor:
        added: Tensor = self.up(nn.functional.gelu(self.down(states)))
        return states + added


class Adapted(nn.Module):
    """A module of a layer and the adapter that its output passes."""

    def __init__(self, module: nn.Module, adapter: Bottleneck) -> None:
        super().__init__()
        self.module = module
        self.adapter = adapter

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.module(*args, **kwargs)
        if isinstance(output, tuple):
            return (self.adapter(output[0]), *output[1:])
        return self.adapter(output)


def add_adapters(layers: Iterable[nn.Module], width: int, bottleneck: int, where: str) -> None:
    """Put an adapter after the attention and after the feed-forward part of each layer.

    Args:
        width: of the layers' states.
        where: job-file key and model, for the message.

    Raises:
        UsageError: the layers are built in another way.
    """
    for layer in layers:
        places = next((each for each in _PLACES if all(_has(layer, name) for name in each)), None)
        if places is None:
            raise UsageError(
                f"{where} has layers of type {type(layer).__name__}, in which there is no known "
                "place for adapters; use `lora`"
            )
        for name in places:
            holder, _, attribute = name.rpartition(".")
            parent = layer.get_submodule(holder)
            module = getattr(parent, attribute)
            # The feed-forward parts of MobileBERT are narrower than its states.
            own = module.out_features if isinstance(module, nn.Linear) else width
            setattr(parent, attribute, Adapted(module, Bottleneck(own, bottleneck)))


def free_layer_norms(layers: Iterable[nn.Module]) -> None:
    """Train the layer norms of layers too, as Houlsby et al. do (section 2.1)."""
    for layer in layers:
        for module in layer.modules():
            if isinstance(module, nn.LayerNorm):
                module.requires_grad_(True)


def _has(layer: nn.Module, name: str) -> bool:
    try:
        return isinstance(layer.get_submodule(name), nn.Module)
    except AttributeError:
        return False


def add_lora(
    network: nn.Module, layers: Iterable[nn.Module], rank: int, alpha: float, where: str
) -> None:
    """Add low-rank updates (Hu et al., 2021, arXiv:2106.09685) to all linear modules of layers.

    Args:
        network: holds the layers; the base weights in it are frozen.
        alpha: the update is scaled by alpha / rank.
        where: job-file key and model, for the message.

    Raises:
        UsageError: there is no linear module.
    """
    from peft import LoraConfig, inject_adapter_in_model

    inside = {id(module) for layer in layers for module in _linear_modules(layer)}
    names = [name for name, module in network.named_modules() if id(module) in inside]
    if not names:
        raise UsageError(f"{where} has no linear modules in its layers; use `adapter` or `full`")
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=names)
    inject_adapter_in_model(config, network)


def _linear_modules(layer: nn.Module) -> Iterator[nn.Module]:
    """Linear modules whose forward is called."""
    for name, module in layer.named_modules():
        holder = layer.get_submodule(name.rpartition(".")[0])
        # WavLM gives the bare matrices of its attention to a function, past what is added to them.
        bare = hasattr(holder, "torch_multi_head_self_attention")
        if isinstance(module, nn.Linear) and not bare:
            yield module
