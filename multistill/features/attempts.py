"""Telling a clip that cannot be encoded from an encoder that does not work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from multistill.audio.errors import describe
from multistill.errors import MultistillError
from multistill.typing import AnyArray

Item = TypeVar("Item")


def encode_each(
    encode: Callable[[Sequence[Item]], Sequence[AnyArray]],
    items: Sequence[Item],
    probe: Item,
    failure: str,
) -> list[AnyArray | str]:
    """States of each item of a batch; if the batch fails, of those that can be encoded alone.

    Args:
        probe: an item that can be encoded if the encoder works.
        failure: how the reason begins of an item that fails.

    Returns:
        states, or the reason why the item could not be encoded.

    Raises:
        MultistillError: the settings are wrong, as the encoder says.
        whatever `encode` raises, if the probe fails, too, or there is not enough memory.
    """
    try:
        return _encode(encode, items)
    except Exception as error:
        if not is_of_the_item(error):
            raise
        failed: Exception = error
    results: list[AnyArray | str] = []
    for item in items:
        try:
            if len(items) > 1:
                results += _encode(encode, [item])
                continue
        except Exception as error:
            if not is_of_the_item(error):
                raise
            failed = error
        try:
            _encode(encode, [probe])
        except Exception:
            raise failed from None
        results.append(f"{failure}: {type(failed).__name__}: {describe(failed)}")
    return results


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device, or this machine, lacked the memory for a tensor."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _encode(
    encode: Callable[[Sequence[Item]], Sequence[AnyArray]], items: Sequence[Item]
) -> list[AnyArray | str]:
    states = list(encode(items))
    if len(states) != len(items):
        raise RuntimeError(f"{len(states)} results for {len(items)} inputs")
    return [*states]


def is_of_the_item(error: Exception) -> bool:
    """Whether another item might not raise this: it is neither settings nor resources."""
    lasting = isinstance(error, (MultistillError, MemoryError, ImportError))
    return not lasting and not is_out_of_memory(error)
