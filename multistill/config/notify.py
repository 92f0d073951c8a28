"""Job file section `notify`: when somebody is told what became of a run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import StringConstraints

from multistill.config.base import Section, execution

WEBHOOK = "MULTISTILL_WEBHOOK"
"""Environment variable with the address of the webhook. Addresses of webhooks are secrets, so
none stands in a job file."""

NOTIFY_COMMAND = "MULTISTILL_NOTIFY_COMMAND"
"""Environment variable with the command that is told. It may hold a secret, as an argument."""

Event = Literal["end", "failure", "champion"]
Variable = Annotated[str, StringConstraints(pattern=rf"^{WEBHOOK}(_[A-Z0-9_]+)?$")]


class NotifyConfig(Section):
    """A message to a webhook or a command when a run ends. Both are named by the environment, so
    that a job file holds no secret and runs no code."""

    events: list[Event] = execution(
        ["end", "failure", "champion"],
        description="`end`: it finished; `failure`: it failed or was stopped; `champion`: a model "
        "of it became the champion",
    )
    webhook_env: Variable | None = execution(
        None,
        description="environment variable with the webhook's address, MULTISTILL_WEBHOOK_NAME; "
        "default: MULTISTILL_WEBHOOK, if it is set",
    )
