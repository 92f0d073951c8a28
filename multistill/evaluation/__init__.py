"""Scoring trained models on the test set: metrics with intervals, paired comparisons, latency."""
