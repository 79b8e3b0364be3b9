"""The subcommands by family: every module here has `COMMANDS`, which says where functions are and imports none.

To add a subcommand, add a line to its family's module; to add a family, add a module.
"""

from __future__ import annotations

import importlib
import pkgutil

from intune.cli.command import Command


def find_commands() -> dict[str, Command]:
    """All subcommands, by what is typed to call them.

    Raises:
        RuntimeError: two families have a subcommand of the same name.
    """
    found: dict[str, Command] = {}
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name):
        commands: dict[str, Command] = importlib.import_module(f"{__name__}.{module.name}").COMMANDS
        if taken := found.keys() & commands.keys():
            raise RuntimeError(
                f"{module.name}.py names {', '.join(sorted(taken))} again; choose another name"
            )
        found |= commands
    return found
