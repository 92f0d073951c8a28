"""Names of the distill stage's files, apart from what reads them: a plan needs no torch."""

from __future__ import annotations

SOFT_TARGETS = "soft_targets.parquet"
STATES = "states.safetensors"
