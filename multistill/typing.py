"""NumPy array types for the signatures of this package."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.float32]
"""Samples, hidden states, logits."""

DoubleArray: TypeAlias = npt.NDArray[np.float64]
"""Metrics and what they are computed from."""

IntArray: TypeAlias = npt.NDArray[np.int64]
"""Row indices, lengths, class indices."""

AnyArray: TypeAlias = npt.NDArray[np.generic]
"""Stored values in the type of the feature store."""

BoolArray: TypeAlias = npt.NDArray[np.bool_]
"""Masks."""
