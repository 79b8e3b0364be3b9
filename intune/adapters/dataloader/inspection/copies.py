"""Batches compared with each other, and copied where whoever made them may write into them again."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

CLOSE = 1e-5
"""Relative difference of numbers that counts as none: with another number of threads sums differ in the last bits."""


def difference(one: Any, other: Any, *, values: bool = True) -> str:
    """In what two batches differ first, in words; nothing where they do not.

    Args:
        values: whether the values count, or only structure, types and shapes.
    """
    waiting: list[tuple[Any, Any, str]] = [(one, other, "")]
    seen: dict[tuple[int, int], Any] = {}  # what refers to itself; the objects too, lest others get their ids
    while waiting:
        mine, its, place = waiting.pop()
        found, parts = _compared(mine, its, values)
        if found:
            return f"{found} at {place}" if place else found
        if parts is not None and (id(mine), id(its)) not in seen:
            seen[id(mine), id(its)] = mine, its
            waiting.extend(reversed([(*pair, f"{place}{name}") for name, *pair in _pairs(*parts)]))
    return ""


def _compared(one: Any, other: Any, values: bool) -> tuple[str, tuple[Any, Any] | None]:
    """In what two things differ, their parts aside; and the containers of those."""
    kinds = type(one).__qualname__, type(other).__qualname__
    if kinds[0] != kinds[1]:
        return f"{kinds[0]} and {kinds[1]}", None
    if isinstance(one, torch.Tensor) and one.is_nested and other.is_nested:
        return _containers(one.unbind(), other.unbind(), values)  # it has no shape of its own
    if isinstance(one, torch.Tensor | np.ndarray):
        here, there = (f"{value.dtype} {tuple(value.shape)}" for value in (one, other))
        if here != there:
            return f"{here} and {there}", None
        return "values" if values and not _equal(one, other) else "", None
    if isinstance(one, list | tuple | Mapping):
        return _containers(one, other, values)
    if values and isinstance(one, str | bytes | bytearray | int | float | complex | np.generic):
        return "" if one == other or (one != one and other != other) else "values", None
    if attributes := getattr(one, "__dict__", None):
        return _containers(dict(attributes), dict(other.__dict__), values)
    return "", None


def _containers(one: Any, other: Any, values: bool) -> tuple[str, tuple[Any, Any] | None]:
    if len(one) != len(other):
        return f"{len(one)} and {len(other)} elements", None
    if isinstance(one, Mapping) and list(one) != list(other):
        return "keys" if values else "", None
    return "", (one, other)


def _pairs(one: Any, other: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(one, Mapping):
        yield from ((f"[{name!r}]", one[name], other[name]) for name in one)
    else:
        yield from (
            (f"[{number}]", mine, its) for number, (mine, its) in enumerate(zip(one, other, strict=True))
        )


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
    try:
        return _copied(batch, {})
    except RecursionError:  # lists in lists, deeper than Python goes
        return batch


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
    if kind is list:
        made: list[Any] = []
        known[id(value)] = made  # it may refer to itself
        made.extend(_copied(one, known) for one in value)
        return made
    if kind is dict:
        named: dict[Any, Any] = {}
        known[id(value)] = named
        named.update((name, _copied(one, known)) for name, one in value.items())
        return named
    if kind is tuple:
        return tuple(_copied(one, known) for one in value)
    if isinstance(value, tuple) and hasattr(kind, "_make"):  # a named one
        return kind._make(_copied(one, known) for one in value)
    return _deeply(value, known)


def _deeply(value: Any, known: dict[int, Any]) -> Any:
    """A copy by `copy.deepcopy`, in which what is known already is the same; itself if it holds what cannot be
    copied."""
    count = len(known)
    try:
        return copy.deepcopy(value, known)
    except Exception:
        while len(known) > count:  # of what was only half made
            known.popitem()
        return value
