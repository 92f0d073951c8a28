"""Emotion heads over cached encoder states, in pure PyTorch: no Ray, no MLflow, no job file.

Reading order: `spec.py` and `presets.py` (hyperparameters), `base.py` (what every network has),
`build.py` (`EmotionModel`, the forward pass of heads), `networks.py` (the others), `fusion.py` and
`layers.py` (blocks of heads), `context.py` (previous turns of the dialogue), `losses.py` (losses
against labels), `files.py` (model folders). `probe.py` is the linear baseline, `catalogue.py` the
table that `multistill models` prints.
"""
