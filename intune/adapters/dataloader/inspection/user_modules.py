"""Which modules are the user's own: the script, and those that are installed nowhere."""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from functools import cache
from types import ModuleType
from typing import Any

from intune.pipelines.executors.import_path import import_path

SCRIPTS = ("__main__", "__mp_main__")
"""Names of the script's own module. What of it is used travels along with the code that uses it."""

_INSTALLED = tuple(
    os.path.realpath(path) + os.sep
    for path in {*sysconfig.get_paths().values(), sys.prefix, sys.base_prefix, site.getusersitepackages()}
)

_PACKAGES = {"site-packages", "dist-packages"}
"""Names of folders of installed packages, also of another Python's that is on the path (Debian's, Spark's)."""


def is_users(module: Any) -> bool:
    """Whether it is a module that is installed nowhere."""
    file = getattr(module, "__file__", None) if type(module) is ModuleType else None
    return isinstance(file, str) and not _is_installed(file) and module.__name__.partition(".")[0] != "intune"


@cache
def _is_installed(file: str) -> bool:
    """Asked at every epoch of some two thousand modules; resolving a path takes the system a while."""
    path = os.path.realpath(file)
    if path.startswith(_INSTALLED) or not _PACKAGES.isdisjoint(path.split(os.sep)):
        return True
    # As `pip install --target` leaves it, in a folder of any name.
    roots = (os.path.realpath(entry) for entry in import_path() if os.path.isabs(entry))
    return any(path.startswith(root + os.sep) and _holds_packages(root) for root in roots)


@cache
def _holds_packages(folder: str) -> bool:
    """Whether something was installed there, which leaves a note of it beside."""
    try:
        return any(name.endswith(".dist-info") for name in os.listdir(folder))
    except OSError:  # an archive, or gone
        return False
