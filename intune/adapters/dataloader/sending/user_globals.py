"""What a script has set in the user's own modules since they were imported: options, vocabularies, registries.

A worker process imports the modules anew and has what stands in their files; a fork, as the DataLoader's workers are,
has all of it. Sent are the data of modules that are installed nowhere, and of the classes written in them. What cannot
be sent, or takes too much, is told by name: see `Gathered`.
"""

from __future__ import annotations

import contextlib
import dis
import enum
import logging
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib.machinery import ModuleSpec
from types import BuiltinFunctionType, FunctionType, ModuleType, SimpleNamespace
from typing import Any

from intune.adapters.dataloader.inspection.user_modules import SCRIPTS, is_users
from intune.adapters.dataloader.sending.pickled_values import (
    LeftError,
    forget_all_but,
    pickled_value,
    remember,
)

logger = logging.getLogger("intune")

MOST_SENT = 64 << 20
"""Bytes of all that is sent: a vocabulary of a million words takes some 20 MB, and every process gets its own."""

_LOCKS = (
    type(threading.Lock()),
    type(threading.RLock()),
    threading.Condition,
    threading.Event,
    threading.Semaphore,
    threading.local,
    threading.Thread,
)
"""Every process has its own of these, whatever the script did with its."""

Globals = dict[str, dict[str, bytes]]
"""Pickled values by module and name; of a class's attribute ``Class.attribute``."""


@dataclass(frozen=True)
class Gathered:
    """Of the modules of this process.

    Attributes:
        values: what is sent.
        left: why something is not, by ``module.name``.
    """

    values: Globals = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)


def gather() -> Gathered:
    """The data of the modules of this process that are installed nowhere, and of their classes."""
    found = Gathered()
    room = MOST_SENT
    seen: set[int] = set()
    for name, module in list(sys.modules.items()):
        if name in SCRIPTS or not is_users(module):
            continue
        values: dict[str, bytes] = {}
        left: dict[str, str] = {}
        for place, members in _places(module):
            for key, value in members:
                seen.add(id(value))
                try:
                    values[place + key] = pickled_value(value, max(0, room))
                except LeftError as error:
                    left[place + key] = str(error)
                else:
                    room -= len(values[place + key])
        for key in _set_along_with(module, left):
            values.pop(key, None)
        if values:
            found.values[name] = values
        found.left.update((f"{name}.{key}", why) for key, why in left.items())
    forget_all_but(seen)
    return found


# ---- what is data ------------------------------------------------------------------------------------------


def _places(module: ModuleType) -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    """A module's own data, and that of the classes written in it, each with what stands before its names."""
    waiting: list[tuple[str, Any]] = [("", module)]
    while waiting:
        place, owner = waiting.pop()
        members = list(vars(owner).items())
        yield place, [(key, value) for key, value in members if _is_seen_data(module, f"{place}{key}", value)]
        for key, value in members:
            written = f"{place}{key}"
            if (
                issubclass(type(value), type)  # to ask a stand-in for what it is might have it do anything
                and not issubclass(value, enum.Enum)
                and _is_written(module, written, value)
            ):
                waiting.append((f"{written}.", value))


def _is_seen_data(module: ModuleType, place: str, value: Any) -> bool:
    try:
        return _is_data(module, place, value)
    except Exception:  # a stand-in for something that is not there now
        return False


def _is_data(module: ModuleType, place: str, value: Any) -> bool:
    """Whether it is none of what defining a module or a class makes. A function or a class is data where it was written
    elsewhere by the user: it may have been put there in place of another one."""
    name = place.rpartition(".")[2]
    special = name.startswith("__") and not isinstance(value, FunctionType)
    if special or name == "_abc_impl" or isinstance(value, ModuleType | logging.Logger):
        return False
    if isinstance(value, FunctionType | type):
        return value.__module__ in SCRIPTS or (not _is_written(module, place, value) and _is_by_name(value))
    return not isinstance(value, (BuiltinFunctionType, *_LOCKS)) and not hasattr(type(value), "__get__")


def _is_written(module: ModuleType, place: str, value: FunctionType | type) -> bool:
    return (value.__module__, value.__qualname__) == (module.__name__, place)


def _is_by_name(value: FunctionType | type) -> bool:
    """Whether it is what its name says in a module of the user's, so that the name is all that is sent."""
    found: Any = sys.modules.get(value.__module__)
    if not is_users(found):
        return False
    for part in value.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is value


def _set_along_with(module: ModuleType, left: dict[str, str]) -> set[str]:
    """Private names that tell of what stays behind, as ``_opened`` of a file: of the same class, or global variables
    that one function sets together."""
    if not left:
        return set()
    held: set[str] = set()
    for place, members in _places(module):
        private = {place + key for key, _ in members if key.startswith("_")}
        if place and any(f"{place}{key}" in left for key, _ in members):
            held |= private
        for value in vars(module if not place else owner_of(module, place)).values():
            stored = _globals_stored(value)
            if stored & left.keys():
                held |= {name for name in stored if name.startswith("_")}
    return held


def _globals_stored(value: Any) -> set[str]:
    if type(value) in (staticmethod, classmethod):
        value = value.__func__
    if type(value) is not FunctionType:
        return set()
    return {str(step.argval) for step in dis.get_instructions(value) if step.opname == "STORE_GLOBAL"}


def owner_of(module: ModuleType, place: str) -> Any:
    """The class that a name belongs to, or the module."""
    owner: Any = module
    for part in place.split(".")[:-1]:
        owner = vars(owner)[part]
    return owner


# ---- in a worker process -----------------------------------------------------------------------------------


def set_globals(wanted: Globals) -> None:
    """Have them in this process, in the modules that it has imported, and in others once it imports them."""
    _later.wanted = {name: values for name, values in wanted.items() if name not in sys.modules}
    if _later not in sys.meta_path:
        sys.meta_path.insert(0, _later)
    for name, values in wanted.items():
        if (module := sys.modules.get(name)) is not None:
            _set_all(module, values)


class _Later:
    """A finder of modules that sets in each what is wanted as soon as it has been imported."""

    def __init__(self) -> None:
        self.wanted: Globals = {}

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """As the other finders do."""
        if name not in self.wanted:
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        specs = (finder.find_spec(name, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            with contextlib.suppress(AttributeError):  # a loader that cannot be told of it
                spec.loader.exec_module = partial(self._execute, spec.loader.exec_module)  # type: ignore[method-assign]
        return spec

    def _execute(self, execute: Callable[[ModuleType], None], module: ModuleType) -> None:
        execute(module)
        _set_all(module, self.wanted.get(module.__name__, {}))


_later: Any = _Later()


def _set_all(module: ModuleType, values: dict[str, bytes]) -> None:
    for place, pickled in values.items():
        try:
            _set(module, place, pickled)
        except Exception as error:  # it is made again by whatever code it refers to
            logger.warning(
                "`%s.%s` cannot be made again in a worker process, which has it as the module's file has (%s: %s)",
                module.__name__,
                place,
                type(error).__name__,
                error,
            )


def _set(module: ModuleType, place: str, pickled: bytes) -> None:
    """What is as it is wanted stays untouched: what a library's metaclass has made of a class's attributes, mostly."""
    owner, key = owner_of(module, place), place.rpartition(".")[2]
    now = vars(owner).get(key)
    with contextlib.suppress(LeftError):
        if key in vars(owner) and pickled_value(now, len(pickled)) == pickled:
            return
    value = pickle.loads(pickled)
    if type(now) is not type(value) or not _become(now, value):
        setattr(owner, key, value)
    remember(vars(owner)[key], pickled)


def _become(now: Any, value: Any) -> bool:
    """Others may refer to the same object: it stays, with other contents; says whether it can."""
    if isinstance(now, dict):
        dict.clear(now)
        dict.update(now, value)
    elif isinstance(now, list):
        list.__setitem__(now, slice(None), value)
    elif isinstance(now, set):
        set.clear(now)
        set.update(now, value)
    elif not isinstance(now, SimpleNamespace) and not _has_only_attributes(type(now)):
        return False
    with contextlib.suppress(AttributeError):  # it has no attributes
        kept = object.__getattribute__(now, "__dict__")
        others = object.__getattribute__(value, "__dict__")
        kept.clear()
        kept.update(others)
    return True


def _has_only_attributes(kind: Any) -> bool:
    """Whether all that an object of a class keeps is in its `__dict__`."""
    made: Any = (object.__new__, object.__reduce__, object.__reduce_ex__)
    return (kind.__new__, kind.__reduce__, kind.__reduce_ex__) == made and not any(
        vars(base).get("__slots__") for base in kind.__mro__
    )
