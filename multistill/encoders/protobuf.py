"""Walk the fields of a protobuf message without its schema and without a dependency.

The wire format is that of protobuf.dev/programming-guides/encoding. Sizes come from the file, so
each is checked against what is left of it, and whatever does not fit the format raises.
"""

from __future__ import annotations

from collections.abc import Iterator

Value = int | memoryview
"""Of a field: a number, or the bytes of anything longer, fixed-size numbers included."""


class InvalidMessageError(ValueError):
    """The bytes are not a protobuf message, or not the expected one."""


def fields(message: memoryview) -> Iterator[tuple[int, Value]]:
    """`(field number, value)` of each field of a message, in its order.

    Raises:
        InvalidMessageError: the bytes are not a message.
    """
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
            raise InvalidMessageError(f"wire type {wire} at byte {at}")
        if size > len(message) - at:
            raise InvalidMessageError("it ends in the middle of a field")
        yield number, message[at : at + size]
        at += size


def content(value: Value) -> memoryview:
    """The bytes of a field that holds a message, a string or packed numbers.

    Raises:
        InvalidMessageError: it is a number.
    """
    if isinstance(value, int):
        raise InvalidMessageError("a number stands where a message is expected")
    return value


def text(value: Value) -> str:
    """The text of a field.

    Raises:
        InvalidMessageError: it is a number, or not UTF-8.
    """
    try:
        return bytes(content(value)).decode()
    except UnicodeDecodeError as error:
        raise InvalidMessageError("a name is not text") from error


def integers(value: Value) -> list[int]:
    """A repeated integer field: one number, or several packed into bytes.

    Raises:
        InvalidMessageError: the packed numbers are damaged.
    """
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
            raise InvalidMessageError("it ends in the middle of a number")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> 64:
                break
            return value, at
    raise InvalidMessageError(f"a number of more than 64 bits before byte {at}")
