"""The encoder half of Whisper: log-mel of the whole clip, two convolutions, transformer layers.

Published by Radford et al., 2022 (arXiv:2212.04356). The model was trained on clips padded to a
fixed length. Here nothing is padded: positions count from the start of the clip, and a clip with
more states than there are positions is encoded in windows.

Log-mel of Whisper holds the level of the recording. Checkpoints that were trained on waves of unit
variance (`do_normalize`) get such waves; others get all waves at `SPEECH_LEVEL`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from multistill.audio import SAMPLE_RATE
from multistill.config import OneSpeechEncoderConfig
from multistill.encoders.base import SPEECH_SECTION, EncoderInfo, Weights
from multistill.encoders.layers import LayerSelector
from multistill.encoders.masking import SpecAugment
from multistill.encoders.speech import (
    ComparedWithFloat32,
    Wav2Vec2Frames,
    rows_by_length,
    uses_bfloat16,
)
from multistill.encoders.trained_layers import stored_layers, training_of
from multistill.typing import FloatArray

FFT = 400
MEL_HOP = 160
SPEECH_LEVEL = 10 ** (-26 / 20)
"""Root mean square of speech at its nominal level, 26 dB below overload (ITU-T P.56, P.191)."""
OVERLAP = 50
"""States that neighbouring windows share: one second."""


def window_starts(states: int, positions: int) -> list[int]:
    """First states of windows of `positions` states that cover a clip, evenly spaced.

    Neighbours share at least `OVERLAP` states, or half a window if that is less; a clip that fits
    has one window.

    Examples:
        >>> window_starts(400, 400), window_starts(401, 400), window_starts(1000, 400)
        ([0], [0, 1], [0, 300, 600])
    """
    if states <= positions:
        return [0]
    overlap = min(OVERLAP, positions // 2)
    count = -(-(states - overlap) // (positions - overlap))
    return [number * (states - positions) // (count - 1) for number in range(count)]


class WhisperNetwork(Wav2Vec2Frames, nn.Module):
    """A `WhisperEncoder` of transformers, from waves or from a hidden state to hidden states.

    There is no attention mask in Whisper, and its convolutions see the end of a clip: up to hidden
    state 0 each clip is computed alone. The layers are given a mask.

    Args:
        encoder: its final norm applies to the last layer.
        layers: hidden states that are selected.
        combine: how several become one.
        level: root mean square of the waves that the model was trained on.
        whole: also give the state of what is left of a clip after its last whole frame, which the
            layers above attend to.

    Raises:
        UsageError: the model lacks one of the layers.
    """

    def __init__(
        self,
        encoder: Any,
        layers: Sequence[int],
        combine: Literal["mean", "concat"],
        level: float = 1.0,
        whole: bool = False,
    ) -> None:
        from torchaudio.transforms import MelSpectrogram

        super().__init__()
        settings = encoder.config
        holder = nn.Module()
        holder.encoder = encoder
        self.selector = LayerSelector(holder, "layers", layers, combine, f"{SPEECH_SECTION}.layers")
        self.model = encoder
        self.level, self.whole = level, whole
        self.masking: SpecAugment | None = None
        self.hidden = int(settings.d_model)
        self.dim = self.selector.width(self.hidden)
        self.positions = int(settings.max_source_positions)
        self.mel = MelSpectrogram(
            sample_rate=SAMPLE_RATE,
            n_fft=FFT,
            hop_length=MEL_HOP,
            n_mels=settings.num_mel_bins,
            norm="slaney",
            mel_scale="slaney",
        )

    @property
    def final_norm(self) -> nn.Module:
        return self.model.layer_norm

    def start_at(self, first: int) -> None:
        """Remove what lies below hidden state `first`, which `from_states` then reads."""
        self.selector.start_at(first)
        model = self.model
        model.conv1 = model.conv2 = model.embed_positions = self.mel = None

    def frames(self, samples: int) -> int:
        """Number of states of a wave."""
        return _states_of(samples // MEL_HOP) if self.whole else super().frames(samples)

    def log_mel(self, waves: Tensor) -> Tensor:
        """Whisper's input [B, bands, samples // 160] of waves [B, samples] of unit variance."""
        energies = torch.log10(self.mel(waves * self.level)[..., :-1].clamp_min(1e-10))
        floor = energies.amax(dim=(1, 2), keepdim=True) - 8.0
        return (torch.maximum(energies, floor) + 4.0) / 4.0

    def embed(self, mel: Tensor) -> Tensor:
        """Hidden state 0 [B, T, hidden] of `log_mel` [B, bands, frames], at most `positions`."""
        # Not the encoder's own `forward`, which refuses everything but the padded length.
        states = nn.functional.gelu(self.model.conv1(mel))
        states = nn.functional.gelu(self.model.conv2(states)).transpose(1, 2)
        return states + self.model.embed_positions.weight[: states.shape[1]]

    def forward(self, waves: Tensor, lengths: Sequence[int]) -> Tensor:
        """States [B, T, dim] float32 of waves [B, samples], 50 a second.

        Args:
            lengths: samples of each wave; zeros follow.
        """
        windows: dict[int, list[Tensor]] = {}
        for rows in rows_by_length(lengths).values():
            mel = self.log_mel(waves[rows, : lengths[rows[0]]])
            if self.masking is not None:
                mel = self.masking(mel.transpose(1, 2)).transpose(1, 2)
            for start in window_starts(_states_of(mel.shape[-1]), self.positions):
                embedded = self.embed(mel[..., 2 * start : 2 * (start + self.positions)])
                for row, states in zip(rows, embedded, strict=True):
                    windows.setdefault(row, []).append(states)
        in_order = [states for row in range(len(lengths)) for states in windows[row]]
        sizes = [len(states) for states in in_order]
        padded = nn.utils.rnn.pad_sequence(in_order, batch_first=True)
        mask = None
        if min(sizes) < max(sizes):
            inside = torch.arange(padded.shape[1]) < torch.tensor(sizes)[:, None]
            mask = inside.to(waves.device)
        # As many windows at once as there are clips: a long clip has any number of them.
        pieces = list(padded.split(len(lengths)))
        masks = [None] * len(pieces) if mask is None else list(mask.split(len(lengths)))
        parts = torch.cat([self.from_states(*pair) for pair in zip(pieces, masks, strict=True)])
        clips, begin = [], 0
        for row, samples in enumerate(lengths):
            end = begin + len(windows[row])
            own = [
                part[:size] for part, size in zip(parts[begin:end], sizes[begin:end], strict=True)
            ]
            joined = self._joined(own, _states_of(samples // MEL_HOP))
            clips.append(joined[: self.frames(samples)])
            begin = end
        return nn.utils.rnn.pad_sequence(clips, batch_first=True)

    def _joined(self, parts: Sequence[Tensor], states: int) -> Tensor:
        """States [states, dim] of a clip from those of its windows [T, dim]."""
        starts = window_starts(states, self.positions)
        joined = []
        for number, (start, part) in enumerate(zip(starts, parts, strict=True)):
            # Of what two windows share, each gives the half in which it has more context.
            first, end = start, start + len(part)
            if number:
                first = (start + starts[number - 1] + self.positions + 1) // 2
            if number + 1 < len(starts):
                end = (starts[number + 1] + end + 1) // 2
            joined.append(part[first - start : end - start])
        return torch.cat(joined)

    def from_states(self, states: Tensor, mask: Tensor | None) -> Tensor:
        """States [B, T, dim] float32 of the hidden state below the layers [B, T, hidden].

        Args:
            mask: [B, T] bool, False at padding; None: nothing is padded.
        """
        added = None
        if mask is not None:
            device = states.device.type
            autocast = torch.is_autocast_enabled(device)
            dtype = torch.get_autocast_dtype(device) if autocast else states.dtype
            added = torch.zeros(mask.shape, dtype=dtype, device=states.device)
            added = added.masked_fill(~mask, torch.finfo(dtype).min)[:, None, None, :]
        if self.masking is not None and self.mel is None:
            states = self.masking(states)
        for layer in self.model.layers:
            output = layer(states, added)
            states = output[0] if isinstance(output, tuple) else output
        return self.selector.gather(self.model.layer_norm(states))


def _states_of(mel_frames: int) -> int:
    """The second convolution makes one state of two mel frames."""
    return -(-mel_frames // 2)


class WhisperStates(Wav2Vec2Frames, ComparedWithFloat32):
    """States of a `WhisperEncoder` of transformers, 50 a second, as many as those of wav2vec2.

    The log-mel energies are floored relative to the loudest moment of the clip, so they are
    computed before the clip is cut into windows. Clips share a batch only if they are of equal
    length.

    Args:
        encoder: a `transformers` WhisperEncoder.
        revision: identity of the weights.
        level: root mean square of the waves that the model was trained on.

    Raises:
        UsageError: the model lacks one of the configured layers.
    """

    # The encoder cuts the windows itself: its cost grows as the length of the clip does.
    windowed = False

    def __init__(
        self,
        encoder: Any,
        config: OneSpeechEncoderConfig,
        weights: Weights,
        *,
        revision: str | None,
        device: torch.device,
        level: float = 1.0,
    ) -> None:
        layers = stored_layers(config, len(encoder.layers))
        whole = training_of(config).layers is not None
        network = WhisperNetwork(encoder, layers, config.combine, level, whole)
        self.network = network.eval().to(device)
        self._device = device
        self._bfloat16 = uses_bfloat16(config, device)
        self.info = EncoderInfo(
            name=config.model,
            weights=weights,
            dim=network.dim,
            params=sum(parameter.numel() for parameter in encoder.parameters()),
            layers=network.selector.indices,
            padding="equal-length",
            precision="bfloat16" if self._bfloat16 else "float32",
            revision=revision,
            layer_params=network.selector.count_parameters(),
        )

    def frames(self, samples: int) -> int:
        return self.network.frames(samples)

    @torch.inference_mode()
    def encode(self, waves: Sequence[FloatArray]) -> list[FloatArray]:
        lengths = [len(wave) for wave in waves]
        if len({*lengths}) > 1:
            raise ValueError("this encoder requires waves of equal length")
        inputs = torch.from_numpy(np.stack(waves)).to(self._device)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bfloat16):
            states = self.network(inputs, lengths).cpu().numpy()
        return [np.ascontiguousarray(each) for each in states]
