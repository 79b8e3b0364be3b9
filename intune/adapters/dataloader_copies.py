"""Batches compared with each other, and copied where whoever made them may write into them again."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

CLOSE = 1e-5
"""Relative difference of numbers that counts as none: with another number of threads sums differ in the last bits."""


def difference(one: Any, other: Any, *, values: bool = True, place: str = "") -> str:
    """In what two batches differ first, in words; nothing where they do not.

    Args:
        values: whether the values count, or only structure, types and shapes.
        place: where in the batches the two are.
    """
    at = f" at {place}" if place else ""
    kinds = type(one).__qualname__, type(other).__qualname__
    if kinds[0] != kinds[1]:
        return f"{kinds[0]} and {kinds[1]}{at}"
    if isinstance(one, torch.Tensor | np.ndarray):
        here, there = (f"{value.dtype} {tuple(value.shape)}" for value in (one, other))
        if here != there:
            return f"{here} and {there}{at}"
        return f"values{at}" if values and not _equal(one, other) else ""
    if isinstance(one, list | tuple | Mapping):
        if len(one) != len(other):
            return f"{len(one)} and {len(other)} elements{at}"
        if isinstance(one, Mapping) and list(one) != list(other):
            return f"keys{at}" if values else ""
        for name, mine, its in _pairs(one, other):
            if found := difference(mine, its, values=values, place=f"{place}[{name!r}]"):
                return found
        return ""
    if values and isinstance(one, str | bytes | bytearray | int | float | complex | np.generic):
        return "" if one == other or (one != one and other != other) else f"values{at}"
    if attributes := getattr(one, "__dict__", None):
        return difference(dict(attributes), dict(other.__dict__), values=values, place=place)
    return ""


def _pairs(one: Any, other: Any) -> Iterator[tuple[Any, Any, Any]]:
    if isinstance(one, Mapping):
        yield from ((name, one[name], other[name]) for name in one)
    else:
        yield from ((number, mine, its) for number, (mine, its) in enumerate(zip(one, other, strict=True)))


def _equal(one: Any, other: Any) -> bool:
    """Whether two arrays or tensors alike hold the same values; so if it cannot be told."""
    try:
        if isinstance(one, np.ndarray):
            if one.dtype.kind in "fc":
                return bool(np.allclose(one, other, rtol=CLOSE, equal_nan=True))
            return bool(np.array_equal(one, other))
        if one.layout is not torch.strided:
            one, other = one.to_dense(), other.to_dense()
        if one.is_floating_point() or one.is_complex():
            return bool(torch.allclose(one, other, rtol=CLOSE, equal_nan=True))
        return bool(torch.equal(one, other))
    except (RuntimeError, NotImplementedError, TypeError, ValueError):  # without values, or of objects
        return True


def copied(batch: Any) -> Any:
    """A batch with memory of its own; what cannot be copied stays as it is."""
    return _copied(batch, {})


def _copied(value: Any, known: dict[int, Any]) -> Any:
    if value is None or isinstance(value, str | bytes | int | float | complex):
        return value
    if id(value) not in known:
        known[id(value)] = _copy(value, known)
    return known[id(value)]


def _copy(value: Any, known: dict[int, Any]) -> Any:
    kind = type(value)
    if kind is torch.Tensor:
        return value.clone() if not value.requires_grad else value
    if kind is np.ndarray and not value.dtype.hasobject:
        return value.copy(order="K")
    if kind in (list, tuple):
        return kind(_copied(one, known) for one in value)
    if kind is dict:
        return {name: _copied(one, known) for name, one in value.items()}
    if isinstance(value, tuple) and hasattr(kind, "_make"):  # a named one
        return kind._make(_copied(one, known) for one in value)
    try:
        return copy.deepcopy(value)
    except Exception:  # it holds what cannot be copied
        return value
