"""Augmentation of the states that a model is trained on.

In the order in which it happens; random numbers are those of the clip's place in the epoch:

    mixup           x = s a + (1 - s) b of a clip a and another training clip b, with s from
                    Beta(alpha, alpha) and at least 0.5 (Zhang et al. 2018, eq. 1); the losses
                    against both are mixed alike. The states of b are read at as many positions,
                    evenly spread, as a has, so that every mean over a clip is mixed by s. With
                    `mixup_of: pooled` the model mixes what its classifier reads in place of
                    states (Verma et al. 2019), and both are read at full length.
    noise           x + noise * deviation * n, n Gaussian, per dimension
    time_masks      stretches of 0 to time_width * T frames set to the mean of the training part
    feature_masks   bands of 0 to feature_width * D dimensions, likewise (Park et al. 2019)
    word_swap       so many pairs of token states change places, and
    word_dropout    so many are left out (Wei and Zou 2019). The first stays, which is the one that
                    stands for the whole in encoders such as BERT.

With `only`, states of clips of other classes, and of ties, stay as they are, but for mixup.

Means and deviations are those of the unchanged states of the training part. What a model does not
read stays as it is: in its place the store may keep the input of an encoder that others train.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from multistill.config import AugmentationConfig
from multistill.features.collate import Batch
from multistill.features.statistics import Moments, StateStatistics
from multistill.models.spec import ModelSpec
from multistill.training.epochs import Epoch
from multistill.training.prefetch import MicroBatch
from multistill.typing import IntArray


class StateAugmentation:
    """Changes micro-batches as `train.augmentation` says.

    Args:
        statistics: of the training part's states; None where only clips are mixed.
        spec: of the model, which reads one modality or both.
        classes: of the labels, in their order.
    """

    def __init__(
        self,
        config: AugmentationConfig,
        statistics: StateStatistics | None,
        spec: ModelSpec,
        classes: Sequence[str],
    ) -> None:
        self.config, self.spec = config, spec
        self.only = {classes.index(name) for name in config.only}
        if config.changes_states:
            assert statistics is not None
            self.audio, self.text = _tensors(statistics.audio), _tensors(statistics.text)

    def places(self, epoch: Epoch, group: IntArray) -> IntArray:
        """The group's places and, with mixup, those of the clips that are mixed in [b or 2 b]."""
        return np.concatenate([group, epoch.partners[group]]) if self.config.mixup else group

    def __call__(self, micro_batch: MicroBatch, epoch: Epoch, group: IntArray) -> MicroBatch:
        """The changed micro-batch of the group; it owns the tensors of the given one.

        With `mixup_of: pooled`, its states have 2 b rows for b targets.
        """
        own = len(group)
        mixed = micro_batch
        if self.config.mixup:
            shares = torch.from_numpy(epoch.mixing[group])
            mixed = _mix_targets(micro_batch, own, shares)
            mixed = mixed if self.config.mixes_pooled else _mix_states(mixed, own, self.spec)
        if self.config.changes_states:
            randoms = [epoch.random(place) for place in group.tolist()]
            if self.config.mixes_pooled:
                randoms += [epoch.random(place, as_partner=True) for place in group.tolist()]
            for row, random in enumerate(randoms):
                if not self.only or int(micro_batch.labels[row]) in self.only:
                    self._change(mixed.states, row, random)
        return mixed

    def _change(self, states: Batch, row: int, random: np.random.Generator) -> None:
        """Change the states of a row in place."""
        if self.spec.reads_audio:
            self._change_audio(states.audio[row, : int(states.audio_mask[row].sum())], random)
        if self.spec.reads_text:
            self._change_text(states, row, random)

    def _add_noise(
        self, values: Tensor, moments: tuple[Tensor, Tensor], random: np.random.Generator
    ) -> None:
        if self.config.noise:
            drawn = random.standard_normal(values.shape, dtype=np.float32)
            values += self.config.noise * moments[1] * torch.from_numpy(drawn)

    def _change_audio(self, audio: Tensor, random: np.random.Generator) -> None:
        """Change the frames [T, D] of a clip in place."""
        config = self.config
        self._add_noise(audio, self.audio, random)
        mean = self.audio[0]
        for _ in range(config.time_masks):
            start, stop = _stretch(len(audio), config.time_width, random)
            audio[start:stop] = mean
        for _ in range(config.feature_masks):
            start, stop = _stretch(len(mean), config.feature_width, random)
            audio[:, start:stop] = mean[start:stop]

    def _change_text(self, states: Batch, row: int, random: np.random.Generator) -> None:
        """Change the tokens of a row in place; what is left stays in front of the padding."""
        config = self.config
        tokens = int(states.text_mask[row].sum())
        text = states.text[row, :tokens]
        self._add_noise(text, self.text, random)
        if tokens < 2:
            return
        # The whole part and a random number below 1: the expected share is exact for few tokens.
        for _ in range(int(config.word_swap * (tokens - 1) + random.random())):
            first, second = (1 + random.integers(tokens - 1, size=2)).tolist()
            text[[first, second]] = text[[second, first]]
        kept = random.random(tokens) >= config.word_dropout
        kept[0] = True
        if not kept.all():
            left = text[torch.from_numpy(kept)]
            text[: len(left)], text[len(left) :] = left, 0.0
            states.text_mask[row, len(left) : tokens] = False


def _tensors(moments: Moments) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(moments.mean).float(), torch.from_numpy(moments.deviation).float()


def _stretch(length: int, share: float, random: np.random.Generator) -> tuple[int, int]:
    """Bounds of a random stretch of 0 to `share` of a length (Park et al. 2019, section 2)."""
    width = int(random.integers(int(share * length) + 1))
    start = int(random.integers(length - width + 1))
    return start, start + width


def _mix_targets(micro_batch: MicroBatch, own: int, shares: Tensor) -> MicroBatch:
    """Targets of the first rows and, as `partner`, of the others; states and context of all.

    A second clip with states that are not finite is replaced by the first: each clip is then at
    fault for its own loss only, and `NonFiniteCheck` names the right one.
    """
    states, first, second = micro_batch.states, slice(0, own), slice(own, None)
    finite = [
        torch.isfinite(values[second]).flatten(1).all(dim=1)
        for values in (states.audio, states.text)
    ]
    for row in (~(finite[0] & finite[1])).nonzero().flatten().tolist():
        for values in (states.audio, states.audio_mask, states.text, states.text_mask):
            values[own + row] = values[row]
        shares[row] = 1.0
    targets, partner = micro_batch.take(first), micro_batch.take(second)
    partner = replace(partner, states=states.take(slice(0, 0)), context=None, context_mask=None)
    targets, partner = _mix_dimensions(targets, partner, shares)
    return replace(
        targets,
        states=states,
        context=micro_batch.context,
        context_mask=micro_batch.context_mask,
        mixing=shares,
        partner=partner,
    )


def _mix_dimensions(
    targets: MicroBatch, partner: MicroBatch, shares: Tensor
) -> tuple[MicroBatch, MicroBatch]:
    """Both with the mixed values of the dimensions: a loss such as that of CCC is of one series.

    Where one of the two has no value, that of the other counts by its share.
    """

    def mix(values: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        mixture = others.lerp(values, shares[:, None])
        known = mixture.isfinite()
        return torch.where(known, mixture, values), torch.where(known, mixture, others)

    own, other = mix(targets.dimensions, partner.dimensions)
    targets, partner = replace(targets, dimensions=own), replace(partner, dimensions=other)
    if targets.teacher_dimensions is not None and partner.teacher_dimensions is not None:
        own, other = mix(targets.teacher_dimensions, partner.teacher_dimensions)
        targets = replace(targets, teacher_dimensions=own)
        partner = replace(partner, teacher_dimensions=other)
    return targets, partner


def _mix_states(micro_batch: MicroBatch, own: int, spec: ModelSpec) -> MicroBatch:
    """The states and context of the first rows, mixed with those of the second."""
    states, shares = micro_batch.states, micro_batch.mixing
    assert shares is not None
    for row, share in enumerate(shares.tolist()):
        for values, known, read in (
            (states.audio, states.audio_mask, spec.reads_audio),
            (states.text, states.text_mask, spec.reads_text),
        ):
            length, other = int(known[row].sum()), int(known[own + row].sum())
            # What one of the two lacks is not mixed: a clip without transcript stays without.
            if read and length and other:
                positions = (2 * torch.arange(length) + 1) * other // (2 * length)
                values[row, :length].lerp_(values[own + row, positions], 1.0 - share)
    context, mask = micro_batch.context, micro_batch.context_mask
    if context is not None and mask is not None:
        both = (mask[:own] & mask[own:])[:, :, None]
        mixture = context[:own].lerp(context[own:], (1.0 - shares)[:, None, None])
        context, mask = torch.where(both, mixture, context[:own]), mask[:own]
    return replace(
        micro_batch, states=states.take(slice(0, own)), context=context, context_mask=mask
    )
