"""Job file section `resources`: Ray's address, and the resources that Ray may use."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from multistill.config.base import Address, Section


class ResourcesConfig(Section):
    """Ray's address, and the resources of a local Ray."""

    address: Address | None = Field(
        None, description="a Ray cluster (`auto`, host:port); default: a local Ray"
    )
    num_cpus: int | None = Field(None, ge=1, description="logical CPUs of a local Ray")
    num_gpus: int | None = Field(None, ge=0, description="GPUs of a local Ray; default: all")
    object_store_mb: int | None = Field(
        None, ge=80, description="object store of a local Ray, in MB; default: Ray's"
    )
    wait_for: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict,
        description="resources that an autoscaled cluster must have before the first stage, "
        "e.g. {GPU: 4}",
    )
    wait_minutes: float = Field(20.0, gt=0, description="maximum time to wait for `wait_for`")
