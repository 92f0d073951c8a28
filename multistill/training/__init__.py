"""Training of one model: its data, the training loop, checkpoints, and Ray Train.

Reading order: `task.py` (what is trained), `defaults.py` (what a job file leaves out), `data.py`
and `prefetch.py` (micro-batches), `objective.py` and `step.py` (loss and optimizer step),
`loop.py` (`fit`, which needs no Ray), `checkpoint.py` and `export.py` (files). `launcher.py`
trains tasks on a Ray cluster, with `worker.py` in the workers and `events.py` in the driver;
`model_store.py` keeps trained models as artifacts.
"""
