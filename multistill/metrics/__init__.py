"""Metrics of predictions: classification, calibration and intervals. NumPy only."""
