"""Emotion heads over encoder states: pure PyTorch, free of Ray, MLflow and the job file."""
