"""Metrics of predictions: classification, calibration and intervals. NumPy and SciPy only."""
