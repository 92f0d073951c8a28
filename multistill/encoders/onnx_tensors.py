"""Read the stored tensors of an ONNX file, without its graph and without a dependency.

ONNX is protobuf. Of the whole format, converting weights needs the initialisers: a list of named
arrays (github.com/onnx/onnx, onnx/onnx.proto). Anything else is skipped, and whatever does not fit
the format raises.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from multistill.encoders import protobuf
from multistill.encoders.protobuf import InvalidMessageError

# Field numbers of onnx.proto.
_MODEL_GRAPH = 7
_GRAPH_INITIALIZER = 5
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_RAW = 1, 2, 8, 9
_TYPED_FLOATS, _TYPED_INTS, _TYPED_LONGS = 4, 5, 7

_DTYPES = {1: "<f4", 2: "u1", 3: "i1", 6: "<i4", 7: "<i8"}
"""TensorProto.DataType of float, uint8, int8, int32 and int64."""


def read_tensors(model: bytes) -> dict[str, NDArray[np.generic]]:
    """The initialisers of an ONNX model by name, each a read-only view or a small copy.

    Raises:
        InvalidMessageError: the file is damaged, or a tensor is of a type that is not read here.
    """
    tensors: dict[str, NDArray[np.generic]] = {}
    for number, graph in protobuf.fields(memoryview(model)):
        if number != _MODEL_GRAPH:
            continue
        for inner, content in protobuf.fields(protobuf.content(graph)):
            if inner == _GRAPH_INITIALIZER:
                name, array = _tensor(protobuf.content(content))
                if name in tensors:
                    raise InvalidMessageError(f"two tensors have the name {name}")
                tensors[name] = array
    return tensors


def _tensor(message: memoryview) -> tuple[str, NDArray[np.generic]]:
    dims: list[int] = []
    typed: list[int] = []
    floats: list[bytes] = []
    name, kind, raw = "", 0, None
    for number, value in protobuf.fields(message):
        if number == _TENSOR_DIMS:
            dims += protobuf.integers(value)
        elif number == _TENSOR_TYPE and isinstance(value, int):
            kind = value
        elif number == _TENSOR_NAME:
            name = protobuf.text(value)
        elif number == _TENSOR_RAW:
            raw = protobuf.content(value)
        elif number == _TYPED_FLOATS:
            floats.append(bytes(protobuf.content(value)))
        elif number in (_TYPED_INTS, _TYPED_LONGS):
            typed += protobuf.integers(value)
    if kind not in _DTYPES:
        raise InvalidMessageError(f"tensor {name} is of type {kind}")
    dtype = np.dtype(_DTYPES[kind])
    try:
        if raw is not None:
            array = np.frombuffer(raw, dtype)
        elif kind == 1:
            array = np.frombuffer(b"".join(floats), dtype)
        else:
            # Negative numbers are written as 64-bit two's complement.
            signed = [value - (1 << 64) if value >> 63 else value for value in typed]
            array = np.array(signed, np.int64).astype(dtype, casting="unsafe")
            if array.tolist() != signed:
                raise InvalidMessageError(f"tensor {name} has values outside of its type")
    except ValueError as error:
        raise InvalidMessageError(f"tensor {name}: {error}") from error
    if array.size != math.prod(dims):
        raise InvalidMessageError(f"tensor {name} has {array.size} values for the shape {dims}")
    return name, array.reshape(dims)
