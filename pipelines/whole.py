"""Whole numbers that a user gives, as Python's own: NumPy's, with which agents compute, count too."""

from __future__ import annotations

import operator
from typing import Any

from intune.pipelines.errors import ConfigError

LARGEST = 2**63 - 1
"""What 64 bits hold."""


def whole(value: Any) -> int | None:
    """The value as Python's own whole number; None for anything else, truth values included."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def at_least(name: str, value: Any, least: int, remedy: str = "", *, most: int = LARGEST) -> int:
    """The value as Python's own whole number, which a saved state can hold; a `ConfigError` that names the argument
    if it is none, or out of bounds."""
    number = whole(value)
    if number is None or number < least:
        raise ConfigError(
            f"`{name}`={value!r} must be a whole number, {least} or more" + (f"; {remedy}" if remedy else "")
        )
    if number > most:
        raise ConfigError(f"`{name}`={value!r} is too large; {most} is the most")
    return number
