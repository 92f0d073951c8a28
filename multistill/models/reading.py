"""What a head reads of the stored states: some of their values, or a learnt sum of layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multistill.models.spec import Encoder, ModelSpec


class LayerMix(nn.Module):
    """Sum of encoder layers weighted by a softmax of learnt scores, equal at first.

    As in ELMo (Peters et al. 2018, section 3.2) and SUPERB (Yang et al. 2021, section 3).

    Args:
        layers: number of layers that stand side by side.
        normalize: scale each layer to zero mean and unit variance over its values first, so that
            one with large values does not count for more (layer norm without weights).
    """

    def __init__(self, layers: int, normalize: bool) -> None:
        super().__init__()
        self.normalize = normalize
        self.scores = nn.Parameter(torch.zeros(layers))

    def weights(self) -> Tensor:
        """Weights [layers], positive, of sum 1."""
        return self.scores.softmax(dim=0)

    def forward(self, states: Tensor) -> Tensor:
        """[..., layers x width] -> [..., width]; zeros (padding) stay zeros."""
        split = states.unflatten(-1, (len(self.scores), -1))
        if self.normalize:
            split = F.layer_norm(split, split.shape[-1:])
        return (split * self.weights()[:, None]).sum(dim=-2)


class StateReader(nn.Module):
    """The values of an encoder's states that a head reads; layers side by side are summed if mixed.

    Of several speech encoders, each that holds layers side by side has weights of its own.

    Attributes:
        read: the slice of a state that is read, before layers are summed.
        width: number of values after it.

    Raises:
        UsageError: the states do not hold what the model is to read.
    """

    def __init__(self, spec: ModelSpec, encoder: Encoder, dim: int) -> None:
        super().__init__()
        self.read = spec.state_slice(encoder, dim)
        self.width = self.read.stop - self.read.start
        self.mixes = nn.ModuleDict()
        self._parts = spec.parts_read(encoder, dim) if encoder in spec.mixed else []
        for number, part in enumerate(self._parts):
            if len(part.layers) > 1:
                self.mixes[str(number)] = LayerMix(
                    len(part.layers), normalize=spec.layer_mix == "normalized"
                )
                self.width -= part.width - part.width // len(part.layers)

    def forward(self, states: Tensor) -> Tensor:
        """[..., dim] -> [..., width]."""
        if not self._parts:
            return states[..., self.read]
        read = []
        for number, part in enumerate(self._parts):
            values = states[..., part.values]
            read.append(self.mixes[str(number)](values) if len(part.layers) > 1 else values)
        return torch.cat(read, dim=-1)

    def layer_weights(self) -> list[dict[str, Any]]:
        """Weights of each encoder whose layers are summed: `title`, `layers`, `weights`."""
        found = []
        for number, mix in self.mixes.items():
            assert isinstance(mix, LayerMix)
            part = self._parts[int(number)]
            weights = [round(weight, 4) for weight in mix.weights().tolist()]
            found.append({"title": part.title, "layers": list(part.layers), "weights": weights})
        return found
