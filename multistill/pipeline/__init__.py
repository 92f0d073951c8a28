"""A job from its file to its report.

    from pathlib import Path
    from multistill import pipeline

    outcome = pipeline.run(pipeline.load(Path("jobs/demo.yaml")))

`jobfile` reads the file, `recipes` lists the steps of each method, `steps` joins them to the
packages that do the work, `runner` runs them, `stage_status` and `plan` look without running,
`runs` finds what ran.
"""

from multistill.pipeline.jobfile import load
from multistill.pipeline.runner import Outcome, run
from multistill.pipeline.stage_status import StageStatus, status

__all__ = ["Outcome", "StageStatus", "load", "run", "status"]
