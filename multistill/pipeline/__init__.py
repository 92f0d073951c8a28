"""A job from its file to its report: reading it, planning it, running what is missing.

from pathlib import Path
from multistill import pipeline

outcome = pipeline.run(pipeline.load(Path("jobs/demo.yaml")))
"""

from multistill.pipeline.jobfile import load
from multistill.pipeline.runner import Outcome, join, run, status

__all__ = ["Outcome", "join", "load", "run", "status"]
