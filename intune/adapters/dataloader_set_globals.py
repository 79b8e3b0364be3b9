"""What a script has set in the user's own modules, set in a worker process too; see `dataloader_globals.py`."""

from __future__ import annotations

import contextlib
import logging
import pickle
import sys
from collections.abc import Callable
from functools import partial
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

from intune.adapters.dataloader_globals import Globals, owner_of
from intune.adapters.pickled_values import LeftError, pickled_value, remember

logger = logging.getLogger("intune")


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
