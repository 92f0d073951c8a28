"""The section of Ray: where it is, and how much of this machine it may use."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from multistill.config.base import Address, Section


class ResourcesConfig(Section):
    """Where Ray is and how much of it a local Ray may use."""

    address: Address | None = Field(
        None, description="a Ray cluster (`auto`, host:port); default: a Ray on this machine"
    )
    num_cpus: int | None = Field(None, ge=1, description="logical CPUs of a local Ray")
    num_gpus: int | None = Field(None, ge=0, description="GPUs of a local Ray; default: all")
    object_store_mb: int | None = Field(None, ge=80)
    wait_for: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict,
        description="what a cluster that adds nodes by itself shall grow to before the first "
        "stage, e.g. {GPU: 4}",
    )
    wait_minutes: float = Field(20.0, gt=0, description="for `wait_for`")
