"""Windows of long clips: the work that the settings allow."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from multistill.config import SpeechEncoderConfig
from multistill.features.windows import window_spans


@pytest.mark.parametrize(
    ("overlap", "window", "valid"),
    [(5, 10, True), (5.1, 10, False), (10, 10, False), (12, 10, False), (1, 1.5, False)],
)
def test_windows_overlap_by_half_at_most(overlap: float, window: float, valid: bool) -> None:
    """An overlap of a whole window moves one hop at a time: thousands of windows a clip."""
    settings = {"overlap_seconds": overlap, "window_seconds": window}
    if valid:
        config = SpeechEncoderConfig(**settings)
        spans = window_spans(60 * 16_000, 320, 400, config.window_seconds, config.overlap_seconds)
        assert sum(end - start for start, end in spans) < 2.2 * 60 * 16_000
    else:
        with pytest.raises(ValidationError, match="more than half of window_seconds"):
            SpeechEncoderConfig(**settings)
