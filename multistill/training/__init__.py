"""Training: one model's data, the loop a worker runs, checkpoints, the Ray Train launcher."""
