"""Job file section `tracking`: the MLflow server and the model registry."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from multistill.config.base import Address, Section


class ChampionConfig(Section):
    """The rule that makes the winner of a search the `champion` of MLflow's model registry."""

    model: str | None = Field(None, min_length=1, description="default: <job>-<student>")
    metric: Literal[
        "validation.macro_f1",
        "validation.uar",
        "validation.weighted_f1",
        "validation.accuracy",
        "validation.ccc",
        "validation.loss",
    ] = Field("validation.macro_f1", description="mean over the seeds; never a test metric")
    margin: float = Field(0.0, ge=0, description="by how much the current champion must be beaten")

    @property
    def mode(self) -> Literal["min", "max"]:
        return "min" if self.metric == "validation.loss" else "max"


def _or_boolean(schema: dict[str, Any]) -> None:
    schema["anyOf"] = [*schema["anyOf"], {"type": "boolean"}]


class TrackingConfig(Section):
    """The MLflow server. Credentials come from the environment only (MLFLOW_TRACKING_*)."""

    uri: Address | None = Field(
        None, description="server address, or sqlite:///file; default: a file in the workspace"
    )
    experiment: str | None = Field(None, description="default: the job's name")
    required: bool = Field(
        True, description="false: start even if the server is unavailable; records are sent later"
    )
    champion: ChampionConfig | None = Field(
        None,
        description="registers the winner of the search; default: no model is registered; `true`: "
        "by the default rule",
        json_schema_extra=_or_boolean,
    )

    @field_validator("champion", mode="before")
    @classmethod
    def _switch(cls, value: Any) -> Any:
        return ({} if value else None) if isinstance(value, bool) else value
