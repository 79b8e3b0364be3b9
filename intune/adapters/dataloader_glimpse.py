"""Whether the trainer has changed a dataset while an epoch is under way: by a glimpse at what its objects keep.

Some 20 us for a few objects, so that it can be taken before every batch. Seen are plain values, and which objects there
are; of arrays not what is in them, of tensors that they were written into.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import numpy as np
import torch

MOST = 200
"""Objects looked at."""

MOST_ITEMS = 32
"""Of a list or dictionary up to which each is looked at: longer ones are data."""

_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_CLOSED = (type, FunctionType, BuiltinFunctionType, ModuleType, np.ndarray, torch.Tensor)
"""Kinds that are not looked into."""


@dataclass(frozen=True, slots=True)
class Glimpse:
    """Equal to another one if nothing seen has changed between the two.

    Attributes:
        marks: what was seen.
        kept: what was looked at, lest others get their ids meanwhile.
    """

    marks: tuple[Any, ...]
    kept: list[Any]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Glimpse) and self.marks == other.marks

    def __hash__(self) -> int:
        return hash(len(self.marks))


def glimpse(*values: Any) -> Glimpse:
    """What objects and those that they keep look like now."""
    marks: list[Any] = []
    kept: dict[int, Any] = {}
    waiting = deque(values)
    while waiting and len(kept) < MOST:
        value = waiting.popleft()
        if type(value) in _PLAIN:
            marks.append((type(value), value))
            continue
        marks.append(id(value))
        if id(value) in kept:
            continue
        kept[id(value)] = value
        if isinstance(value, torch.Tensor):
            marks.append(_version(value))
        elif not isinstance(value, _CLOSED):
            parts = _parts(value)
            marks.append(len(parts))
            waiting.extend(parts)
    return Glimpse(tuple(marks), list(kept.values()))


def _parts(value: Any) -> list[Any]:
    if isinstance(value, dict | list | tuple):
        if len(value) > MOST_ITEMS:
            return [len(value)]
        return [*value.keys(), *value.values()] if isinstance(value, dict) else list(value)
    try:
        kept = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return []
    return [*kept.keys(), *kept.values()]


def _version(tensor: torch.Tensor) -> int:
    """How often it was written into; not counted of those made for inference."""
    return 0 if tensor.is_inference() else int(tensor._version)
