"""What an evaluation reads besides the models: results of other steps, for its references."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class ReferenceInputs:
    """Inputs of the references that stand beside the models.

    Attributes:
        rated: corpora whose raters' answers are known, and whether their votes are weighted
            (`human_ceiling.rated_corpora`).
        distorted: folder of the distorted test clips; None without the robustness pack.
        functionals: folder of the openSMILE functionals; None without.
    """

    rated: Mapping[str, bool] = field(default_factory=dict)
    distorted: Path | None = None
    functionals: Path | None = None
