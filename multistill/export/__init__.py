"""Trained models for use elsewhere: ONNX, a folder with a card, an MLflow model."""
