"""Long clips in overlapping windows whose states line up with those of the whole clip.

Windows start at multiples of the encoder's hop, so state i of a window that starts at
sample s is state s / hop + i of the clip, and the clip has exactly as many states as by
the convolution formula. In the overlap the first half comes from the earlier window and
the second half from the later one: each state is taken where it has more context.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from multistill.encoders.base import SAMPLE_RATE
from multistill.typing import FloatArray

Span = tuple[int, int]


def spans(samples: int, hop: int, minimum: int, window_s: float, overlap_s: float) -> list[Span]:
    """Sample ranges that cover the clip; one range where a single window holds it.

    Args:
        hop: samples between two states.
        minimum: samples of the shortest piece that makes a state.

    Examples:
        >>> spans(samples=25 * 16_000, hop=320, minimum=400, window_s=10.0, overlap_s=2.0)
        [(0, 160080), (128000, 288080), (256000, 400000)]
    """
    window = max(round(window_s * SAMPLE_RATE) // hop * hop, hop) + minimum - hop
    if samples <= window:
        return [(0, samples)]
    step = max(hop, round((window_s - overlap_s) * SAMPLE_RATE) // hop * hop)
    found = []
    start = 0
    while start + window < samples:
        found.append((start, start + window))
        start += step
    found.append((start, samples))
    # What is left may make no state of its own: the window before it already holds its frames.
    if samples - start < minimum:
        found.pop()
        found[-1] = (found[-1][0], samples)
    return found


def join(pieces: Sequence[FloatArray], parts: Sequence[Span], hop: int) -> FloatArray:
    """States [T, dim] of the whole clip from the states of its windows."""
    if len(pieces) == 1:
        return pieces[0]
    starts = [start // hop for start, _ in parts]
    kept = []
    begin = 0
    for number, (piece, start) in enumerate(zip(pieces, starts, strict=True)):
        end = start + len(piece)
        if number + 1 < len(pieces):
            end = (starts[number + 1] + end + 1) // 2
        kept.append(piece[begin - start : end - start])
        begin = end
    return np.concatenate(kept)
