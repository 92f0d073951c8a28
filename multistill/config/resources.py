"""Job file section `resources`: Ray's address, and the resources that Ray may use."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from multistill.config.base import Address, Section


class PriceConfig(Section):
    """What hours cost, for the forecast."""

    hour: float = Field(0.0, ge=0, description="an hour of the machine, or of all nodes together")
    gpu_hour: float = Field(0.0, ge=0, description="an hour of a GPU that is in use, on top")
    currency: str = Field("EUR", min_length=1, description="name of the currency")


class AllowConfig(Section):
    """What a job may take; `submit` asks when the forecast is beyond."""

    hours: float | None = Field(None, gt=0, description="hours from start to end")
    gpu_hours: float | None = Field(None, gt=0, description="hours of GPUs, added")
    cost: float | None = Field(None, gt=0, description="in the currency of `resources.price`")
    disk_gb: float | None = Field(
        None, gt=0, description="GB that features, models and checkpoints add to the workspace"
    )


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
    price: PriceConfig | None = Field(
        None, description="what hours cost, e.g. {gpu_hour: 2.5, currency: EUR}"
    )
    allow: AllowConfig = Field(
        default_factory=AllowConfig,
        description="what the job may take, e.g. {hours: 8, gpu_hours: 16}; `submit` asks when the "
        "forecast is beyond",
    )

    @model_validator(mode="after")
    def _check(self) -> ResourcesConfig:
        if self.allow.cost is not None and self.price is None:
            raise ValueError("`allow.cost` needs a `price`; set `resources.price`, or remove it")
        return self
