"""The teacher's weight over training."""

from __future__ import annotations

import pytest

from multistill.distillation.schedule import scheduled_weight


def test_schedules_ramp_the_weight_at_the_start_or_the_end() -> None:
    assert [scheduled_weight(0.6, "fixed", p) for p in (0.0, 0.5, 1.0)] == [0.6, 0.6, 0.6]
    rise = [scheduled_weight(0.6, "rise", p, 0.2) for p in (0.0, 0.1, 0.2, 1.0)]
    assert rise == pytest.approx([0.0, 0.3, 0.6, 0.6])
    fall = [scheduled_weight(0.6, "fall", p, 0.2) for p in (0.0, 0.8, 0.9, 1.0)]
    assert fall == pytest.approx([0.6, 0.6, 0.3, 0.0])
