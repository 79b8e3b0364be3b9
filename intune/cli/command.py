"""What a subcommand is: a summary, and where its function lives, which is imported only when it is called."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Command:
    """Where a subcommand's function is.

    Attributes:
        summary: one line for the list of subcommands.
        function: where it is, ``module:name``. The module's constant ``NAME_HELP`` is the text above the options in
            its `--help`, examples included.
    """

    summary: str
    function: str

    def load(self) -> tuple[Callable[..., Any], str]:
        """The function and its help text."""
        module_name, name = self.function.split(":")
        module = importlib.import_module(module_name)
        return getattr(module, name), getattr(module, f"{name.upper()}_HELP")
