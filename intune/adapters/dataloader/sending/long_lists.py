"""Long lists and dictionaries of plain things in what a dataset keeps: a sample of each tells what all are like.

To look through a million tuples takes seconds, whoever does it: interactions, paths and vocabularies are kept so.
"""

from __future__ import annotations

import operator
import pickle
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

LONG = 10_000
"""Items from which on a list is a long one."""

SAMPLED = 64
"""Items of a long list that are looked at, spread evenly."""

SHORT = 500
"""Things that one item of a long list may consist of."""

MOST = 200
"""Objects among which long lists are searched for."""

PLAIN = (bool, int, float, complex, str, bytes, type(None))
"""Kinds of things that cannot change and refer to nothing."""

_FROZEN = {*PLAIN, tuple}


@dataclass(frozen=True, slots=True)
class LongList:
    """One of them.

    Attributes:
        items: a list, tuple, dictionary or set.
        sample: some of its items, pickled.
        size: bytes of all when pickled, about.
    """

    items: Collection[Any]
    sample: bytes
    size: int


@dataclass(frozen=True, slots=True)
class KeptItems:
    """The items of a long list, none of which can change.

    Attributes:
        value: the list itself.
        items: a copy.
    """

    value: Any
    items: Any

    def still(self, value: Any) -> bool:
        """Whether that is the same list with the very same items: not looked into, some 30 ms for a million."""
        if value is not self.value or len(value) != len(self.items):
            return False
        if isinstance(value, set | frozenset):
            return set(map(id, value)) == set(map(id, self.items))
        parts = zip(_parts(value), _parts(self.items), strict=True)
        return all(all(map(operator.is_, now, before)) for now, before in parts)


def kept_items(value: Any) -> KeptItems | None:
    """Of a list, tuple, dictionary or set with nothing in it but plain things and tuples of them; None of another."""
    for part in _parts(value):
        kinds = set(map(type, part))
        tuples = (one for one in part if type(one) is tuple) if tuple in kinds else ()
        if not kinds <= _FROZEN or not set(map(type, chain.from_iterable(tuples))) <= set(PLAIN):
            return None
    return KeptItems(value, copied_items(value))


def copied_items(value: Any) -> Any:
    """The same items in a list of their own; itself if it cannot change."""
    return value if isinstance(value, tuple | frozenset) else value.copy()


def long_lists(value: Any) -> list[LongList]:
    """Those that something keeps in its attributes, or those of what it keeps, and that would be pickled with it."""
    found: list[LongList] = []
    seen: dict[int, Any] = {}
    waiting = deque([value])
    while waiting and len(seen) < MOST:
        part = waiting.popleft()
        if id(part) in seen or type(part) in PLAIN:
            continue
        seen[id(part)] = part
        if type(part) not in (list, tuple, dict, set, frozenset):
            waiting.extend(_attributes(part))
        elif len(part) < LONG:
            waiting.extend(islice(_items(part), MOST))
        elif (one := _sampled(part)) is not None:
            found.append(one)
    return found


def _sampled(items: Collection[Any]) -> LongList | None:
    sample = list(islice(_items(items), 0, None, max(1, len(items) // SAMPLED)))
    if not all(map(_is_plain, sample)):
        return None
    pickled = pickle.dumps((len(items), sample), protocol=5)
    return LongList(items, pickled, len(pickled) * len(items) // len(sample))


def _parts(value: Any) -> list[Any]:
    return [value.keys(), value.values()] if isinstance(value, dict) else [value]


def _items(items: Any) -> Collection[Any]:
    found: Collection[Any] = items.items() if isinstance(items, dict) else items
    return found


def _is_plain(value: Any) -> bool:
    """Whether it is a number, a text or the like, or lists and dictionaries of a few of them."""
    waiting = [value]
    for _ in range(SHORT):
        if not waiting:
            return True
        part = waiting.pop()
        if type(part) in (list, tuple, dict, set, frozenset) and len(part) <= SHORT:
            waiting.extend(_items(part))
        elif type(part) not in PLAIN:
            return False
    return not waiting


def _attributes(value: Any) -> list[Any]:
    """Of an object that is pickled as all of them."""
    kind: Any = type(value)
    if (
        isinstance(value, type)
        or getattr(kind, "__getstate__", None) is not object.__getstate__
        or kind.__reduce__ is not object.__reduce__
        or kind.__reduce_ex__ is not object.__reduce_ex__
    ):
        return []
    try:
        return list(object.__getattribute__(value, "__dict__").values())
    except AttributeError:
        return []
