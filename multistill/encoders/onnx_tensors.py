"""Read the stored tensors of an ONNX file, without its graph and without a dependency.

ONNX is protobuf. Of the whole format, converting weights needs the initialisers: a list of named
arrays (github.com/onnx/onnx, onnx/onnx.proto). Anything else is skipped, and whatever does not fit
the format raises: sizes come from the file, so each is checked against what is left of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

# Field numbers of onnx.proto.
_MODEL_GRAPH = 7
_GRAPH_INITIALIZER = 5
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_RAW = 1, 2, 8, 9
_TYPED_FLOATS, _TYPED_INTS, _TYPED_LONGS = 4, 5, 7

_DTYPES = {1: "<f4", 2: "u1", 3: "i1", 6: "<i4", 7: "<i8"}
"""TensorProto.DataType of float, uint8, int8, int32 and int64."""


class InvalidOnnxError(ValueError):
    """The bytes are not an ONNX model, or use a part of the format that is not read here."""


def read_tensors(model: bytes) -> dict[str, NDArray[np.generic]]:
    """The initialisers of an ONNX model by name, each a read-only view or a small copy.

    Raises:
        InvalidOnnxError: the file is damaged, or a tensor is of a type that is not read here.
    """
    tensors: dict[str, NDArray[np.generic]] = {}
    for number, graph in _fields(memoryview(model)):
        if number != _MODEL_GRAPH:
            continue
        for inner, content in _fields(_message(graph)):
            if inner == _GRAPH_INITIALIZER:
                name, array = _tensor(_message(content))
                if name in tensors:
                    raise InvalidOnnxError(f"two tensors have the name {name}")
                tensors[name] = array
    return tensors


def _tensor(message: memoryview) -> tuple[str, NDArray[np.generic]]:
    dims: list[int] = []
    typed: list[int] = []
    floats: list[bytes] = []
    name, kind, raw = "", 0, None
    for number, value in _fields(message):
        if number == _TENSOR_DIMS:
            dims += _integers(value)
        elif number == _TENSOR_TYPE and isinstance(value, int):
            kind = value
        elif number == _TENSOR_NAME:
            name = _text(_message(value))
        elif number == _TENSOR_RAW:
            raw = _message(value)
        elif number == _TYPED_FLOATS:
            floats.append(bytes(_message(value)))
        elif number in (_TYPED_INTS, _TYPED_LONGS):
            typed += _integers(value)
    if kind not in _DTYPES:
        raise InvalidOnnxError(f"tensor {name} is of type {kind}")
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
                raise InvalidOnnxError(f"tensor {name} has values outside of its type")
    except ValueError as error:
        raise InvalidOnnxError(f"tensor {name}: {error}") from error
    if array.size != math.prod(dims):
        raise InvalidOnnxError(f"tensor {name} has {array.size} values for the shape {dims}")
    return name, array.reshape(dims)


def _text(content: memoryview) -> str:
    try:
        return bytes(content).decode()
    except UnicodeDecodeError as error:
        raise InvalidOnnxError("a tensor's name is not text") from error


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """`(field number, value)` of a message: a number, or the bytes of anything longer."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(message, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise InvalidOnnxError(f"wire type {wire} at byte {at}")
        if size > len(message) - at:
            raise InvalidOnnxError("it ends in the middle of a field")
        yield number, message[at : at + size]
        at += size


def _integers(value: int | memoryview) -> list[int]:
    """A repeated integer field: one number, or several packed into bytes."""
    if isinstance(value, int):
        return [value]
    numbers, at = [], 0
    while at < len(value):
        number, at = _varint(value, at)
        numbers.append(number)
    return numbers


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise InvalidOnnxError("it ends in the middle of a number")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> 64:
                break
            return value, at
    raise InvalidOnnxError(f"a number of more than 64 bits before byte {at}")


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise InvalidOnnxError("a number stands where a message is expected")
    return value
