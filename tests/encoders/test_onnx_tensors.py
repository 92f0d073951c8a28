"""The reader of ONNX tensors: every stored form, and every damage refused."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from multistill.encoders.onnx_tensors import read_tensors
from multistill.encoders.protobuf import InvalidMessageError

TYPES = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7}


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def whole(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def piece(field: int, content: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(content)) + content


def model(*tensors: bytes) -> bytes:
    return whole(1, 10) + piece(7, b"".join(piece(5, tensor) for tensor in tensors))


def tensor(name: str, array: np.ndarray, form: str = "raw") -> bytes:
    shape = b"".join(whole(1, size) for size in array.shape)
    head = shape + whole(2, TYPES[str(array.dtype)]) + piece(8, name.encode())
    if form == "raw":
        return head + piece(9, array.astype(array.dtype.newbyteorder("<")).tobytes())
    if array.dtype == np.float32:
        return head + piece(4, array.astype("<f4").tobytes())
    field = 7 if array.dtype == np.int64 else 5
    if form == "packed":
        return head + piece(field, b"".join(varint(int(value)) for value in array.ravel()))
    return head + b"".join(whole(field, int(value)) for value in array.ravel())


@given(
    st.sampled_from(sorted(TYPES)).flatmap(
        lambda dtype: arrays(dtype, array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    ),
    st.sampled_from(["raw", "packed", "single"]),
)
def test_every_form_of_every_type_is_read(array: np.ndarray, form: str) -> None:
    [(name, found)] = read_tensors(model(tensor("a", array, form))).items()
    assert name == "a"
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_damaged_file_is_read_or_refused_and_nothing_else(at: int, byte: int) -> None:
    good = model(
        tensor("a", np.arange(6, dtype=np.float32).reshape(2, 3)),
        tensor("b", np.array([-3, 7], np.int8), "packed"),
    )
    bad = bytearray(good)
    bad[at % len(bad)] = byte
    for content in (bytes(bad), good[: at % len(good)]):
        try:
            read_tensors(content)
        except InvalidMessageError:
            continue


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    with contextlib.suppress(InvalidMessageError):
        assert isinstance(read_tensors(content), dict)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x3a\x05", "in the middle of a field"),
        (b"\x80", "in the middle of a number"),
        (b"\xff" * 11, "more than 64 bits"),
        (b"\x0b", "wire type 3"),
        (whole(7, 3), "a number stands where"),
        (model(whole(2, 16) + piece(8, b"half")), "tensor half is of type 16"),
        (model(whole(1, 3) + whole(2, 1) + piece(9, bytes(8))), "2 values for the shape"),
        (model(whole(1, 1) + whole(2, 1) + piece(9, bytes(3))), "tensor"),
        (model(whole(1, 1) + whole(2, 3) + whole(5, 200) + piece(8, b"q")), "outside of its type"),
        (model(*[tensor("a", np.zeros(1, np.float32))] * 2), "two tensors"),
        (model(whole(2, 1) + piece(8, b"\xff")), "not text"),
    ],
)
def test_what_does_not_fit_the_format_is_named(content: bytes, reason: str) -> None:
    with pytest.raises(InvalidMessageError, match=reason):
        read_tensors(content)
