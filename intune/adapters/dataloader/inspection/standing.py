"""Where objects stand: the values that they keep and the places in the files that they have open.

What is read further than anybody asked for shows there, if it shows at all: a counter, a buffer, a file's place. What
the trainer changes in a dataset while an epoch is under way shows in a glimpse: some 20 us for a few objects, so that
it can be taken before every batch.
"""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch

from intune.adapters.dataloader.sending.pickled_size import fingerprint

MOST = 2_000
"""Objects looked at for files and iterators."""

MOST_ITEMS = 32
"""Of a list or dictionary up to which each is looked at: longer ones are data."""

_CLOSED = (str, bytes, bytearray, int, float, complex, type, CodeType, ModuleType, np.ndarray, torch.Tensor)
"""Kinds that are not looked into."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Equal to another one if the objects stand where they stood.

    Attributes:
        kept: what they keep, to be compared.
        places: of the open files among it, in their order.
    """

    kept: Any
    places: tuple[Any, ...]


def standing(*values: Any) -> Standing | None:
    """Where objects stand; None where that cannot be told: they keep an iterator or a connection, or a file of text
    that is read line by line."""
    if not values:
        return Standing(b"", ())
    try:
        places = tuple((id(file), file.tell()) for file in open_files(*values))
    except Exception:  # a pipe, an iterator, or a class of the user's that refuses
        return None
    kept = fingerprint(values, tolerant=True)
    if kept is None:
        return None
    return Standing(kept or glimpse(*values), places)  # there is no print of what is too large


def open_files(*values: Any) -> list[Any]:
    """The open files that objects keep, and what else has a place to be told.

    Raises:
        TypeError: among it is something that has a place which it does not tell.
    """
    found: list[Any] = []
    seen: dict[int, Any] = {}
    waiting = deque(values)
    while waiting and len(seen) < MOST:
        value = waiting.popleft()
        if value is None or isinstance(value, _CLOSED) or id(value) in seen:
            continue
        seen[id(value)] = value
        if _has_place(value):
            if not _is_over(value):
                found.append(value)
            continue
        if _hides_place(value):
            raise TypeError(f"where a {type(value).__name__} stands cannot be told")
        waiting.extend(_parts(value))
    return found


def _has_place(value: Any) -> bool:
    # Asked of its class: an object may answer to any name.
    return all(callable(getattr(type(value), name, None)) for name in ("tell", "seek"))


def _is_over(value: Any) -> bool:
    """Whether nothing is read from a file: it is closed, or written only."""
    if getattr(value, "closed", False) is True:
        return True
    readable = getattr(value, "readable", None)
    return callable(readable) and not readable()


def _hides_place(value: Any) -> bool:
    kind = type(value)
    if hasattr(kind, "recv") or (hasattr(kind, "get_nowait") and not isinstance(value, queue.Queue)):
        return True
    return isinstance(value, Iterator) and not hasattr(value, "__dict__")


def _parts(value: Any) -> list[Any]:
    """What an object keeps that may be files, or have some."""
    if isinstance(value, FunctionType):
        return [content for cell in value.__closure__ or () for content in _contents(cell)]
    if isinstance(value, MethodType):
        return [value.__self__]
    if isinstance(value, partial):
        return [value.func, *value.args, *value.keywords.values()]
    parts: list[Any] = []
    if isinstance(value, dict | list | tuple | set | frozenset | deque) and len(value) <= MOST_ITEMS:
        parts += value.values() if isinstance(value, dict) else value
    with suppress(AttributeError):
        parts += object.__getattribute__(value, "__dict__").values()
    for base in type(value).__mro__:
        slots = vars(base).get("__slots__", ())
        parts += [getattr(value, name, None) for name in ((slots,) if isinstance(slots, str) else slots)]
    return parts


def _contents(cell: CellType) -> list[Any]:
    try:
        return [cell.cell_contents]
    except ValueError:  # not yet filled
        return []


# ---- a glimpse ---------------------------------------------------------------------------------------------

GLIMPSED = 200
"""Objects that a glimpse is taken at."""

_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_UNSEEN = (type, FunctionType, BuiltinFunctionType, ModuleType, np.ndarray, torch.Tensor)
"""Kinds that no glimpse is taken into."""


@dataclass(frozen=True, slots=True)
class Glimpse:
    """Equal to another one if nothing seen has changed between the two.

    Attributes:
        marks: what was seen.
        kept: what was looked at, lest others get their ids meanwhile.
    """

    marks: tuple[Any, ...]
    kept: list[Any] = field(compare=False)


def glimpse(*values: Any) -> Glimpse:
    """What objects and those that they keep look like now."""
    marks: list[Any] = []
    kept: dict[int, Any] = {}
    waiting = deque(values)
    while waiting and len(kept) < GLIMPSED:
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
        elif not isinstance(value, _UNSEEN):
            parts = _seen_parts(value)
            marks.append(len(parts))
            waiting.extend(parts)
    return Glimpse(tuple(marks), list(kept.values()))


def _seen_parts(value: Any) -> list[Any]:
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
