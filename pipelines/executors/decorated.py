"""What Python's own decorators make of the functions of a user's script, made again in another process.

cloudpickle sends a function by value where no other process can import it, but not what `functools` puts around one: it
sends the name of a function with a cache, and nothing for a function by type or, before Python 3.12, for a property
that is computed once, which have weak references and a lock.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from types import FunctionType
from typing import Any

import cloudpickle

_Cached = type(functools.lru_cache(len))
_BY_TYPE = functools.singledispatch(len).__code__  # type: ignore[attr-defined]  # it is a function


def decorated(value: Any) -> tuple[Any, ...] | None:
    """How such a function or property is made again, as `object.__reduce__` says it; None for all else. Caches begin
    empty; what is kept for a thread (`threading.local`) is that of the thread which asks."""
    kind = type(value)
    if kind is _Cached:
        return None if _is_imported(value) else (_cached, (value.__wrapped__, value.cache_parameters()))
    if kind is FunctionType and value.__code__ is _BY_TYPE:
        functions = tuple(value.registry.items())
        return None if _is_imported(value) else (_by_type, (value.registry[object], functions))
    if kind is functools.cached_property:
        return _computed_once, (value.func, value.attrname)
    if kind is threading.local:
        return threading.local, (), vars(value) or None
    return None


def _is_imported(value: Any) -> bool:
    """Whether other processes can import it."""
    found = cloudpickle.cloudpickle._lookup_module_and_qualname(value)
    return found is not None and not cloudpickle.cloudpickle._is_registered_pickle_by_value(found[0])


def _cached(function: Callable[..., Any], parameters: dict[str, Any]) -> Any:
    return functools.lru_cache(**parameters)(function)


def _by_type(function: Callable[..., Any], functions: tuple[tuple[type, Callable[..., Any]], ...]) -> Any:
    made = functools.singledispatch(function)
    for kind, of_kind in functions:
        made.register(kind, of_kind)
    return made


def _computed_once(function: Callable[[Any], Any], name: str | None) -> Any:
    made = functools.cached_property(function)
    made.attrname = name
    return made
