"""Knowledge distillation: losses on a teacher's outputs, and the files that hold these outputs.

Reading order: `losses.py` (losses on logits), `representations.py` (losses on pooled states),
`schedule.py` (the teacher's weight over training), then `stage.py`, which runs the saved
teachers (`teacher.py`) and writes their soft targets (`targets.py`). No Ray, no MLflow; the
objective that combines the losses is `multistill.training.objective`.
"""
