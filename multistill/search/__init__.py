"""Hyperparameter search: Ray Tune and Optuna over the students of one teacher."""
