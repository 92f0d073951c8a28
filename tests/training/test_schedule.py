"""The learning rate over training."""

from __future__ import annotations

from multistill.training.schedule import learning_rate


def test_the_learning_rate_rises_linearly_then_decays_to_zero():
    rates = [learning_rate(step, 100, 1.0, 0.1) for step in range(100)]
    assert rates[9] == max(rates) == 1.0
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[0] > 0
    assert rates[-1] < 0.001
    assert learning_rate(0, 1, 1.0, 0.0) == 1.0
