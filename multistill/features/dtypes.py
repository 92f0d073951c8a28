"""Stored types: float16, bfloat16, float32, or int8 with scales for states; integers for inputs.

| dtype | Arrow type | to float |
| --- | --- | --- |
| float16, float32 | halffloat, float | the value |
| bfloat16 | uint16 | the upper 16 bits of a float32 |
| int8 | int8 | value * scale of its channel |
| int16, int32 | int16, int32 | the integer itself: waves, token ids |

int8 has one scale per clip and channel: a few channels of self-supervised speech models are
tens of times larger than the rest, which a common scale would round to zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import pyarrow as pa

from multistill.encoders.base import Stored
from multistill.typing import AnyArray, FloatArray

Dtype = Literal["float16", "bfloat16", "float32", "int8"]
StoredDtype = Dtype | Literal["int16", "int32"]

_OF_INPUTS: Mapping[Stored, StoredDtype] = {"waves": "int16", "tokens": "int32"}

FLOAT16_MAX = 65504.0


def dtype_of(stored: Stored, dtype: Dtype) -> StoredDtype:
    """The type in which one modality is stored.

    Args:
        dtype: of states.
    """
    return _OF_INPUTS.get(stored, dtype)


def item_type(dtype: StoredDtype) -> pa.DataType:
    """Arrow type of one stored value."""
    return {
        "float16": pa.float16(),
        "bfloat16": pa.uint16(),
        "float32": pa.float32(),
        "int8": pa.int8(),
        "int16": pa.int16(),
        "int32": pa.int32(),
    }[dtype]


def pack(states: AnyArray, dtype: StoredDtype) -> tuple[AnyArray, FloatArray | None]:
    """Convert the states of one clip to the stored type.

    Args:
        states: [frames, dim], finite; float32, or of an integer `dtype`.

    Returns:
        values [frames, dim] in the stored type, and scales [dim] for int8, else None.

    Raises:
        OverflowError: a value is beyond the range of float16.
    """
    if dtype in {"int16", "int32"}:
        return np.ascontiguousarray(states, dtype=dtype), None
    if dtype == "float32":
        return np.ascontiguousarray(states, dtype=np.float32), None
    if dtype == "float16":
        if states.size and float(np.abs(states).max()) > FLOAT16_MAX:
            raise OverflowError("values beyond the range of float16")
        return states.astype(np.float16), None
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(states, dtype=np.float32).view(np.uint32)
        # Round half to even, as hardware does; a carry into the exponent is correct.
        rounded = bits + (0x7FFF + ((bits >> 16) & 1))
        return (rounded >> 16).astype(np.uint16), None
    peak = np.abs(states).max(axis=0) if len(states) else np.zeros(states.shape[1], np.float32)
    scales = (peak / 127.0).astype(np.float32)
    divisor = np.where(scales > 0, scales, 1.0)
    return np.clip(np.rint(states / divisor), -127, 127).astype(np.int8), scales


def unpack(values: AnyArray, scales: FloatArray | None, dtype: StoredDtype) -> AnyArray:
    """Convert bfloat16 and int8 back to float, as a float32 copy; else the array itself."""
    if dtype == "bfloat16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    if dtype == "int8":
        assert scales is not None
        return values.astype(np.float32) * scales
    return values
