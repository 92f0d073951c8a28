"""Encode long clips in overlapping windows whose states line up with those of the whole clip.

Windows start at multiples of the encoder's hop, so state i of a window that starts at sample s
is state s / hop + i of the clip, and the clip has exactly as many states as the convolution
formula gives. Of an overlap, the first half is taken from the earlier window and the second
half from the later one, so each state comes from the window in which it has more context.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from multistill.audio import SAMPLE_RATE
from multistill.config import SpeechEncoderConfig
from multistill.encoders.base import SpeechEncoder
from multistill.typing import AnyArray

Span = tuple[int, int]
"""First sample of a window and the sample after its last one."""


def clip_spans(samples: int, encoder: SpeechEncoder, config: SpeechEncoderConfig) -> list[Span]:
    """Sample ranges in which a clip is encoded: windows where it is long and the job asks for them.

    Args:
        samples: length of the clip.
    """
    long = config.long_clips == "window" and samples > config.max_seconds * SAMPLE_RATE
    if not long or not encoder.windowed:
        return [(0, samples)]
    return window_spans(
        samples, encoder.hop, encoder.minimum_samples, config.window_seconds, config.overlap_seconds
    )


def window_spans(
    samples: int, hop: int, minimum: int, window_s: float, overlap_s: float
) -> list[Span]:
    """Sample ranges of the windows of a clip; a single range for a short clip.

    Args:
        samples: length of the clip.
        hop: samples between two states.
        minimum: samples of the shortest wave that makes a state.

    Examples:
        >>> window_spans(samples=25 * 16_000, hop=320, minimum=400, window_s=10.0, overlap_s=2.0)
        [(0, 160080), (128000, 288080), (256000, 400000)]
    """
    window = max(round(window_s * SAMPLE_RATE) // hop * hop, hop) + minimum - hop
    if samples <= window:
        return [(0, samples)]
    step = max(hop, round((window_s - overlap_s) * SAMPLE_RATE) // hop * hop)
    spans = []
    start = 0
    while start + window < samples:
        spans.append((start, start + window))
        start += step
    spans.append((start, samples))
    # A rest that is too short for a state is appended to the window before it.
    if samples - start < minimum:
        spans.pop()
        spans[-1] = (spans[-1][0], samples)
    return spans


def join_windows(states: Sequence[AnyArray], spans: Sequence[Span], hop: int) -> AnyArray:
    """States [T, dim] of the whole clip from the states of its windows."""
    if len(states) == 1:
        return states[0]
    first_states = [start // hop for start, _ in spans]
    parts = []
    begin = 0
    for number, (window, first) in enumerate(zip(states, first_states, strict=True)):
        end = first + len(window)
        if number + 1 < len(states):
            end = (first_states[number + 1] + end + 1) // 2
        parts.append(window[begin - first : end - first])
        begin = end
    return np.concatenate(parts)
