"""Hyperparameter search: Ray Tune and Optuna over the students of one teacher.

Read `spec.py` and `space.py` (what is searched), `study.py` (a search from start to end),
`experiment.py` with `searcher.py`, `trainable.py` and `trial_logger.py` (one Tune experiment),
then `storage.py`, `locks.py` and `trial_folders.py` (what several drivers share on disk) and
`results.py` and `finalists.py` (tables of the trials, retraining of the best).
"""
