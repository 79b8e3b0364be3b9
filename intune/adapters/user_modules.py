"""Which modules are the user's own: the script, and those that are installed nowhere."""

from __future__ import annotations

import os
import sys
import sysconfig
from functools import cache
from types import ModuleType
from typing import Any

SCRIPTS = ("__main__", "__mp_main__")
"""Names of the script's own module. What of it is used travels along with the code that uses it."""

_INSTALLED = tuple(
    os.path.realpath(path) + os.sep for path in {*sysconfig.get_paths().values(), sys.prefix, sys.base_prefix}
)


def is_users(module: Any) -> bool:
    """Whether it is a module that is installed nowhere."""
    file = getattr(module, "__file__", None) if type(module) is ModuleType else None
    return isinstance(file, str) and not _is_installed(file) and module.__name__.partition(".")[0] != "intune"


@cache
def _is_installed(file: str) -> bool:
    """Asked at every epoch of some two thousand modules; resolving a path takes the system a while."""
    return os.path.realpath(file).startswith(_INSTALLED)
