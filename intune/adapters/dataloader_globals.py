"""What a script has set in the user's own modules since they were imported: options, mostly, as `argparse` gives them.

A worker process imports the modules anew and has what stands in their files. Only public names of plain values are
sent: private ones may tell of what this process has opened, which another has not.
"""

from __future__ import annotations

import argparse
import os
import sys
import sysconfig
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any

LONGEST = 10_000
"""Of a text, or of a list or dictionary: longer ones are data, not options."""

_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_INSTALLED = tuple(
    os.path.realpath(path) + os.sep
    for path in {*sysconfig.get_paths().values(), *(os.path.dirname(__file__),), sys.prefix, sys.base_prefix}
)

Globals = dict[str, dict[str, Any]]
"""By module and name."""


def plain_globals() -> Globals:
    """Of the modules of this process that are installed nowhere."""
    found: Globals = {}
    for name, module in list(sys.modules.items()):
        if name != "__main__" and is_users(module):
            values = {key: value for key, value in list(vars(module).items()) if _is_sent(key, value)}
            if values:
                found[name] = values
    return found


def set_globals(wanted: Globals) -> None:
    """Have them in this process, in the modules that it has imported."""
    for name, values in wanted.items():
        if (module := sys.modules.get(name)) is None:
            continue
        for key, value in values.items():
            now = vars(module).get(key)
            if type(now) is not type(value):
                setattr(module, key, value)
            elif now != value:
                _become(module, key, now, value)


def _become(module: ModuleType, key: str, now: Any, value: Any) -> None:
    """Others may refer to the same object: it stays, with other contents."""
    if isinstance(now, dict):
        now.clear()
        now.update(value)
    elif isinstance(now, list):
        now[:] = value
    elif isinstance(now, argparse.Namespace | SimpleNamespace):
        now.__dict__.clear()
        now.__dict__.update(vars(value))
    else:
        setattr(module, key, value)


def is_users(module: Any) -> bool:
    """Whether it is a module that is installed nowhere."""
    file = getattr(module, "__file__", None) if type(module) is ModuleType else None
    return isinstance(file, str) and not _is_installed(file)


@cache
def _is_installed(file: str) -> bool:
    """Asked at every epoch of some two thousand modules; resolving a path takes the system a while."""
    return os.path.realpath(file).startswith(_INSTALLED)


def _is_sent(name: str, value: Any) -> bool:
    return not name.startswith("_") and _is_plain(value)


def _is_plain(value: Any, depth: int = 0) -> bool:
    kind = type(value)
    if kind in _PLAIN:
        return not isinstance(value, str | bytes) or len(value) <= LONGEST
    if depth > 3:
        return False
    if kind in (argparse.Namespace, SimpleNamespace):
        return _is_plain(vars(value), depth)
    if kind in (list, tuple, dict) and len(value) <= LONGEST:
        parts = [*value.keys(), *value.values()] if kind is dict else value
        return all(_is_plain(part, depth + 1) for part in parts)
    return False
