"""The trained part of an encoder: from what the feature store keeps to hidden states.

It is the module that also fills the store, without what lies below the trained layers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from multistill.config import SpeechEncoderConfig, TextEncoderConfig
from multistill.config.encoder_training import EncoderTrainingConfig
from multistill.encoders.adapters import add_adapters, add_lora, free_layer_norms
from multistill.encoders.masking import SpecAugment
from multistill.encoders.registry import check_trainable, load_speech, load_text
from multistill.encoders.slim import AS_IT_IS, EncoderSizes
from multistill.encoders.slimming import empty_network, slim_layers
from multistill.encoders.stored_inputs import WAVE_COLUMNS, decode_waves
from multistill.encoders.trained_layers import SectionName, first_state, stored_kind
from multistill.errors import MultistillError


class TrainableEncoder(nn.Module):
    """An encoder from stored rows to states, of which the configured part is trained.

    In training, dropout is that of the checkpoint; layers are never left out at random, since
    data-parallel training needs the gradient of every parameter.

    Args:
        network: of a loaded encoder; it is changed in place.
        config: with `train`.
        revision: identity of the base's weights.
        slim: sizes to which the layers are pruned.

    Attributes:
        stored_dim: width of a stored row.
        dim: width of the states.

    Raises:
        UsageError: the encoder lacks what is to be trained.
    """

    def __init__(
        self,
        network: Any,
        config: SpeechEncoderConfig | TextEncoderConfig,
        revision: str | None,
        slim: EncoderSizes = AS_IT_IS,
    ) -> None:
        super().__init__()
        train = config.train
        first = first_state(config, network.selector.count)
        if first is not None:
            network.start_at(first)
        self.network = network
        self._base = {"name": config.model, "revision": revision}
        self._reads = stored_kind(config)
        self.stored_dim = {"waves": WAVE_COLUMNS, "tokens": 1, "states": network.hidden}[
            self._reads
        ]
        self.dim: int = network.dim
        self._layers: list[nn.Module] = list(network.selector.layers)
        self._slimmed = slim.given
        if self._slimmed:
            assert isinstance(config, SpeechEncoderConfig)
            slim_layers(network.model, self._layers, config, slim)
        self._prepare(train)
        self._trained = self._requiring_gradients()
        if train.top is not None:
            self._freeze_below(train.top)
            self._trained = self._requiring_gradients()

    def _prepare(self, train: EncoderTrainingConfig) -> None:
        network = self.network
        model = network.model
        # Neither has an influence on hidden states.
        if getattr(model, "pooler", None) is not None:
            model.pooler = None
        if hasattr(model.config, "layerdrop"):
            model.config.layerdrop = 0.0
        if getattr(model, "feature_extractor", None) is not None:
            # Never trained in fine-tuning: Baevski et al., 2020 (arXiv:2006.11477), section 4.3.
            # Without this method, it would compute the gradient of the waves.
            model.feature_extractor._freeze_parameters()
        if train.time_mask or train.feature_mask:
            masked = getattr(model, "masked_spec_embed", None) if train.time_mask else None
            network.masking = SpecAugment(train.time_mask, train.feature_mask, masked)
        if train.kind == "full":
            self._freeze_unused()
        else:
            network.requires_grad_(False)
            self._add_trained(train)
        if train.gradient_checkpointing:
            for layer in self._layers:
                layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)

    def _freeze_unused(self) -> None:
        """Of an encoder that is trained in full, freeze what has no influence on the states."""
        network = self.network
        if network.final_norm is not None and not network.selector.reads_output:
            network.final_norm.requires_grad_(False)
        masked = getattr(network.model, "masked_spec_embed", None)
        if masked is not None and (network.masking is None or network.masking.masked is None):
            masked.requires_grad_(False)

    def _freeze_below(self, top: int) -> None:
        """Freeze all that would be trained below the highest `top` layers."""
        parameters = dict(self.named_parameters())
        for names in self.layer_groups()[top:]:
            for name in names:
                parameters[name].requires_grad_(False)

    def _requiring_gradients(self) -> set[str]:
        return {name for name, parameter in self.named_parameters() if parameter.requires_grad}

    def _add_trained(self, train: EncoderTrainingConfig) -> None:
        """To a frozen encoder, add what is trained, or free its top layers."""
        network = self.network
        where = f"the encoder `{self._base['name']}`"
        if train.kind == "lora":
            assert train.rank is not None
            assert train.alpha is not None
            add_lora(network, self._layers, train.rank, train.alpha, where)
        elif train.kind == "adapter":
            assert train.bottleneck is not None
            add_adapters(self._layers, network.hidden, train.bottleneck, where)
            if train.layer_norms:
                free_layer_norms(self._layers)
        else:
            for layer in self._layers:
                layer.requires_grad_(True)
            if network.final_norm is not None and network.selector.reads_output:
                network.final_norm.requires_grad_(True)
            borrowed: nn.Module | None = getattr(network, "borrowed", None)
            if borrowed is not None:
                borrowed.requires_grad_(False)

    def train(self, mode: bool = True) -> TrainableEncoder:
        """Training mode; batch norm keeps the statistics of the checkpoint."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.eval()
        return self

    def forward(self, stored: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """States of stored rows.

        Args:
            stored: [B, T, stored_dim], of `features.collate`.
            mask: [B, T] bool, False at padding.

        Returns:
            states [B, T', dim] float32, zero at padding, and their mask [B, T'].
        """
        if not len(stored):
            return stored.new_zeros((0, 1, self.dim), dtype=torch.float32), mask[:, :1]
        if self._reads == "waves":
            states, mask = self._of_waves(stored, mask)
        else:
            # A row without any token would have no number in its attention.
            safe = mask.clone()
            safe[:, 0] |= ~mask.any(dim=1)
            if self._reads == "tokens":
                states = self.network(stored[..., 0].long(), safe)
            else:
                states = self.network.from_states(stored, None if bool(safe.all()) else safe)
        return states.masked_fill(~mask[..., None], 0.0), mask

    def _of_waves(self, stored: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        network = self.network
        waves, samples = decode_waves(stored, mask, network.minimum_samples)
        lengths = samples.clamp_min(network.minimum_samples).tolist()
        states = network(waves[:, : max(lengths)], lengths)
        frames = torch.tensor([network.frames(length) for length in lengths], device=mask.device)
        # A clip whose rows are all masked has no frames.
        frames = frames * (samples > 0)
        return states, torch.arange(states.shape[1], device=mask.device) < frames[:, None]

    def layer_groups(self) -> list[list[str]]:
        """Names of the trained parameters by layer, from the top down.

        The first group has the norm after the layers, too, and the last what lies below them.
        """
        of_layer = {
            id(parameter): depth
            for depth, layer in enumerate(reversed(self._layers))
            for parameter in layer.parameters()
        }
        final = self.network.final_norm
        if final is not None:
            of_layer.update((id(parameter), 0) for parameter in final.parameters())
        groups: list[list[str]] = [[] for _ in range(len(self._layers) + 1)]
        for name, parameter in self.named_parameters():
            if name in self._trained:
                groups[of_layer.get(id(parameter), len(self._layers))].append(name)
        return [group for group in groups if group]

    def trained_state(self) -> dict[str, Tensor]:
        """Only what training changes, by name: the frozen base is not in it.

        All weights of a slimmed encoder, which is no part of its base.
        """
        return {
            name: parameter.detach()
            for name, parameter in self.named_parameters()
            if self._slimmed or name in self._trained
        }

    def load_trained_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Load what `trained_state` gave.

        Raises:
            MultistillError: it is of another encoder, or of other settings of `train`.
        """
        own = self.trained_state()
        shapes = {name: tensor.shape for name, tensor in own.items()}
        if shapes != {name: tensor.shape for name, tensor in tensors.items()}:
            raise MultistillError(
                f"the trained part does not fit the encoder `{self._base['name']}`: it is of "
                "another encoder, or was trained with other settings; train it again"
            )
        if any(tensor.is_meta for tensor in own.values()):
            self.load_state_dict(dict(tensors), strict=False, assign=True)
            return
        for name, tensor in tensors.items():
            own[name].copy_(tensor)

    def architecture(self) -> dict[str, Any] | None:
        """What `load_trainable` makes a slimmed encoder of without its base, as JSON values."""
        if not self._slimmed:
            return None
        settings = json.loads(self.network.model.config.to_json_string(use_diff=False))
        # The first may be a path of this machine.
        kept = {k: v for k, v in settings.items() if k not in ("_name_or_path", "architectures")}
        return {"settings": kept, "level": getattr(self.network, "level", 1.0)}

    def base_identity(self) -> dict[str, Any]:
        """Name and revision of the encoder whose weights are the start of training."""
        return dict(self._base)


def load_trainable(
    section: SectionName,
    config: SpeechEncoderConfig | TextEncoderConfig,
    resolved: str | None,
    seed: int = 0,
    slim: EncoderSizes = AS_IT_IS,
    architecture: Mapping[str, Any] | None = None,
) -> TrainableEncoder:
    """Load the trained part of an encoder, on the CPU and in training mode.

    New parameters are drawn from torch's global generator.

    Args:
        resolved: from `registry.resolve_speech` or `registry.resolve_text`.
        seed: of weights that are drawn at random (`train.untrained`).
        slim: sizes to which a speech encoder is pruned.
        architecture: of a slimmed encoder, whose base is not read: its parameters are on the meta
            device until `load_trained_state`.

    Raises:
        UsageError: the encoder lacks what is to be trained.
        MultistillError: the model cannot be loaded.
    """
    if architecture is None:
        check_trainable(config, resolved)
    whole = config.model_copy(update={"train": EncoderTrainingConfig()})
    if slim.layers is not None:
        whole = whole.model_copy(update={"layers": [slim.layers]})
    device = torch.device("cpu")
    network: Any
    if architecture is not None and isinstance(whole, SpeechEncoderConfig):
        network = empty_network(whole, architecture)
    else:
        encoder: Any = (
            load_speech(whole, resolved, device)
            if isinstance(whole, SpeechEncoderConfig)
            else load_text(whole, resolved, device)
        )
        network = encoder.network
    if config.train.untrained:
        _draw_again(network.model, seed)
    reads = config.model_copy(update={"layers": whole.layers})
    return TrainableEncoder(network, reads, resolved, slim).train()


def _draw_again(model: Any, seed: int) -> None:
    """Draw the weights of a transformers model by a seed, as it is made from its config."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        drawn = type(model)(model.config)
    own = model.state_dict()
    model.load_state_dict({n: t for n, t in drawn.state_dict().items() if n in own}, strict=False)
