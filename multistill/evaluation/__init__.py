"""Metrics with intervals, paired comparisons, calibration, cost, and the report."""
