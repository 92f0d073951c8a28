"""The encoder half of Whisper: log-mel of the whole clip, two convolutions, transformer layers.

Published by Radford et al., 2022 (arXiv:2212.04356). The model was trained on clips padded to a
fixed length. Here nothing is padded: positions count from the start of the clip, and a clip with
more states than there are positions is encoded in windows.

Log-mel of Whisper holds the level of the recording. Checkpoints that were trained on waves of unit
variance (`do_normalize`) get such waves; others get all waves at `SPEECH_LEVEL`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from multistill.audio import SAMPLE_RATE
from multistill.config import OneSpeechEncoderConfig
from multistill.encoders.base import SPEECH_SECTION, EncoderInfo, Weights
from multistill.encoders.layers import LayerSelector
from multistill.encoders.speech import ComparedWithFloat32, Wav2Vec2Frames, uses_bfloat16
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


class WhisperStates(Wav2Vec2Frames, ComparedWithFloat32):
    """States of a `WhisperEncoder` of transformers, 50 a second, as many as those of wav2vec2.

    The log-mel energies are floored relative to the loudest moment of the clip, so they are
    computed before the clip is cut into windows. There is no attention mask in Whisper: clips
    share a batch only if they are of equal length.

    Args:
        encoder: a `transformers` WhisperEncoder; its final norm applies to the last layer.
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
        from torchaudio.transforms import MelSpectrogram

        settings = encoder.config
        holder = nn.Module()
        holder.encoder = encoder
        self._selector = LayerSelector(
            holder, "layers", config.layers, config.combine, f"{SPEECH_SECTION}.layers"
        )
        self._encoder = encoder.eval().to(device)
        self._device = device
        self._bfloat16 = uses_bfloat16(config, device)
        self._level = level
        self._positions = int(settings.max_source_positions)
        self._mel = MelSpectrogram(
            sample_rate=SAMPLE_RATE,
            n_fft=FFT,
            hop_length=MEL_HOP,
            n_mels=settings.num_mel_bins,
            norm="slaney",
            mel_scale="slaney",
        ).to(device)
        self.info = EncoderInfo(
            name=config.model,
            weights=weights,
            dim=self._selector.width(settings.d_model),
            params=sum(parameter.numel() for parameter in encoder.parameters()),
            layers=self._selector.indices,
            padding="equal-length",
            precision="bfloat16" if self._bfloat16 else "float32",
            revision=revision,
            layer_params=self._selector.count_parameters(),
        )

    @torch.inference_mode()
    def encode(self, waves: Sequence[FloatArray]) -> list[FloatArray]:
        if len({len(wave) for wave in waves}) > 1:
            raise ValueError("this encoder requires waves of equal length")
        mel = self.log_mel(torch.from_numpy(np.stack(waves)).to(self._device))
        # The second convolution makes one state of two mel frames.
        count = -(-mel.shape[-1] // 2)
        starts = window_starts(count, self._positions)
        parts = []
        for number, start in enumerate(starts):
            states = self._forward(mel[..., 2 * start : 2 * (start + self._positions)])
            # Of what two windows share, each gives the half in which it has more context.
            first, end = start, start + states.shape[1]
            if number:
                first = (start + starts[number - 1] + self._positions + 1) // 2
            if number + 1 < len(starts):
                end = (starts[number + 1] + end + 1) // 2
            parts.append(states[:, first - start : end - start])
        joined = torch.cat(parts, dim=1)[:, : self.frames(len(waves[0]))].cpu().numpy()
        return [np.ascontiguousarray(states) for states in joined]

    def log_mel(self, waves: Tensor) -> Tensor:
        """Whisper's input [B, bands, samples // 160] of waves [B, samples] of unit variance."""
        energies = torch.log10(self._mel(waves * self._level)[..., :-1].clamp_min(1e-10))
        floor = energies.amax(dim=(1, 2), keepdim=True) - 8.0
        return (torch.maximum(energies, floor) + 4.0) / 4.0

    def _forward(self, mel: Tensor) -> Tensor:
        # Not the encoder's own `forward`, which refuses everything but the padded length.
        encoder = self._encoder
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bfloat16):
            states = nn.functional.gelu(encoder.conv1(mel))
            states = nn.functional.gelu(encoder.conv2(states)).transpose(1, 2)
            states = states + encoder.embed_positions.weight[: states.shape[1]]
            for layer in encoder.layers:
                output = layer(states, None)
                states = output[0] if isinstance(output, tuple) else output
            return self._selector.gather(encoder.layer_norm(states))
