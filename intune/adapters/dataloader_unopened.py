"""A dataset as it is now, but for what it has opened since: that is as it was before.

Datasets over files open them when they are first used, in each process for itself. From then on they cannot be
sent, though their other attributes may well change from epoch to epoch.
"""

from __future__ import annotations

from typing import Any

from intune.adapters.pickled_size import structure_bytes


def unopened(now: Any, before: Any) -> Any:
    """`now` with whatever of it cannot be pickled as it was in `before`, the same object before it was used.

    Neither is changed. What has no counterpart in `before` is left out.
    """
    return _unopened(now, before, {})


def _unopened(now: Any, before: Any, known: dict[int, Any]) -> Any:
    if id(now) in known:
        return known[id(now)]
    if structure_bytes(now) is not None:
        return now
    made = before
    if type(now) is not type(before):
        pass
    elif type(now) in (list, tuple) and len(now) == len(before):
        made = type(now)(_unopened(one, other, known) for one, other in zip(now, before, strict=True))
    elif type(now) is dict:
        made = _of_attributes(now, before, known)
    elif hasattr(now, "__dict__") and (empty := _empty(type(now))) is not None:
        made = known[id(now)] = empty  # it may refer to itself
        made.__dict__.update(_of_attributes(vars(now), vars(before), known))
    known[id(now)] = made
    return made


def _empty(kind: type) -> Any:
    """An object without attributes; None where they are not all there is to one, as to a dictionary's or a list's."""
    if any(vars(base).get("__slots__") for base in kind.__mro__):
        return None
    try:
        return object.__new__(kind)
    except TypeError:
        return None


def _of_attributes(now: dict[Any, Any], before: dict[Any, Any], known: dict[int, Any]) -> dict[Any, Any]:
    return {
        name: _unopened(value, before.get(name), known)
        for name, value in now.items()
        if name in before or structure_bytes(value) is not None
    }
