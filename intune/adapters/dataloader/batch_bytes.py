"""How many bytes a batch of anything holds: tensors, arrays, texts and images in whatever containers.

Counted is what shows: a sample that is a view of the dataset's own memory costs as much as it shows, not as
much as the whole dataset, which is there anyway.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch

LOOKED_AT = 64
"""Of a long list of samples so many are looked at, spread evenly, and the others taken to be alike: walking ten
thousand samples would cost as much as collating them."""

DEEPEST = 8


def visible_bytes(payload: Any) -> dict[Hashable, int]:
    """Bytes by what holds them, as the memory ledger takes them; what is on a device holds none here."""
    found: dict[Hashable, int] = {}
    _walk(payload, found, {}, 0)
    return found


def _walk(value: Any, found: dict[Hashable, int], seen: dict[int, Any], depth: int) -> None:
    """Add the bytes of `value` to those `found`.

    Args:
        seen: containers and objects that are counted already, by their ids; where they refer to each other, there
            would be no end of them.
    """
    if value is None or depth > DEEPEST or isinstance(value, bool | type) or id(value) in seen:
        return
    if isinstance(value, torch.Tensor):
        _add_tensor(value, found)
    elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
        if value.nbytes:
            found[value.__array_interface__["data"][0], value.nbytes] = value.nbytes
    elif isinstance(value, str | bytes | bytearray | int | float | complex):
        found[id(value)] = sys.getsizeof(value)
    else:
        seen[id(value)] = value  # itself too, lest another gets its id
        _walk_all(_add_holder(value, found), found, seen, depth)


def _walk_all(values: list[Any], found: dict[Hashable, int], seen: dict[int, Any], depth: int) -> None:
    step = max(1, len(values) // LOOKED_AT)
    if step == 1:
        for value in values:
            _walk(value, found, seen, depth + 1)
        return
    part: dict[Hashable, int] = {}
    for value in values[::step]:
        _walk(value, part, seen, depth + 1)
    looked_at = len(values[::step])
    found["others", id(values[0]), len(values)] = sum(part.values()) * (len(values) - looked_at) // looked_at
    found.update(part)


def _add_tensor(tensor: torch.Tensor, found: dict[Hashable, int]) -> None:
    if tensor.device.type != "cpu":
        return
    if tensor.layout is torch.sparse_coo:
        _add_tensor(tensor._indices(), found)
        _add_tensor(tensor._values(), found)
    elif tensor.layout is not torch.strided:  # compressed rows or columns: values and two indices
        found[id(tensor)] = 2 * tensor.values().nbytes
    elif size := tensor.numel() * tensor.element_size():
        found[tensor.data_ptr(), size] = size


def _add_holder(value: Any, found: dict[Hashable, int]) -> list[Any]:
    """Add what a container or an object takes itself; gives what it holds beside."""
    if isinstance(value, Mapping):
        found[id(value)] = sys.getsizeof(value)
        return list(value.values())
    if isinstance(value, list | tuple | set | frozenset):
        found[id(value)] = sys.getsizeof(value)
        return list(value)
    if isinstance(value, np.ndarray):
        found[id(value)] = value.nbytes
        return list(value.flat)
    return _add_object(value, found)


def _add_object(value: Any, found: dict[Hashable, int]) -> list[Any]:
    """An object of another kind: what it says it has, else what its attributes hold."""
    size = getattr(value, "nbytes", None)  # Arrow, xarray, memoryview
    if isinstance(size, int):
        found[id(value)] = size
    elif callable(getattr(value, "getbands", None)) and isinstance(getattr(value, "size", None), tuple):
        width, height = value.size  # an image of PIL
        found[id(value)] = int(width) * int(height) * len(value.getbands())
    elif callable(getattr(value, "memory_usage", None)):  # a frame of pandas
        found[id(value)] = int(np.sum(value.memory_usage()))
    else:
        found[id(value)] = sys.getsizeof(value, 64)
        slots = [getattr(value, name, None) for name in getattr(type(value), "__slots__", ())]
        return [*getattr(value, "__dict__", {}).values(), *slots]
    return []
