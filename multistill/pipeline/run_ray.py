"""Ray for a run: begun while the first stages need none, connected once a stage uses it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from multistill.config import JobConfig
from multistill.pipeline.drivers import LINKS, Driver
from multistill.pipeline.step import Step

if TYPE_CHECKING:
    from multistill.tracking.console import ProgressDisplay
    from multistill.tracking.logger import RunLogger


class RunRay:
    """Starts Ray for a run, and says where its dashboard is.

    Args:
        steps: of the run.
        stack: of the run, which ends what is started here.
    """

    def __init__(
        self,
        job: JobConfig,
        steps: Sequence[Step],
        stack: ExitStack,
        driver: Driver,
        display: ProgressDisplay,
    ) -> None:
        self._resources = job.resources
        self._steps = steps
        self._stack = stack
        self._driver = driver
        self._display = display
        self._wait_until_started: Callable[[], None] | None = None
        self._connected = False

    @property
    def job_id(self) -> str | None:
        """Id of the Ray job we run in, for finding its logs; None outside Ray."""
        submitted = os.environ.get("RAY_JOB_SUBMISSION_ID")
        if submitted or not self._connected:
            return submitted or None
        import ray

        return str(ray.get_runtime_context().get_job_id())

    def begin(self, left: Sequence[Step]) -> None:
        """Have a local Ray start in the background, if one of these steps uses it."""
        if self._connected or self._wait_until_started is not None:
            return
        if any(step.uses_ray for step in left):
            from multistill import cluster

            if cluster.is_private(self._resources):
                dashboard = any(step.needs_dashboard for step in self._steps)
                self._wait_until_started = self._stack.enter_context(
                    cluster.starting(self._resources, dashboard=dashboard)
                )

    def connect(self, logger: RunLogger) -> None:
        """Connect to Ray for the rest of the run.

        Raises:
            MultistillError: as of `cluster.start`.
        """
        if self._connected:
            return
        from multistill import cluster

        if self._wait_until_started is not None:
            self._wait_until_started()
            self._stack.callback(self._driver.link, ray_dashboard=None)  # it ends with the run
        self._stack.enter_context(cluster.start(self._resources, log=self._display.print))
        self._connected = True
        dashboard = cluster.dashboard_url()
        self._driver.link(ray_dashboard=dashboard)
        if dashboard:
            self._display.print(f"{LINKS['ray_dashboard']:<9} {dashboard}", style="dim")
        if self.job_id:
            logger.tags({"multistill.ray_job_id": self.job_id})
