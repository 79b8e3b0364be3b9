"""What the help of an option says of its default where that is None."""

from __future__ import annotations

import tyro


def otherwise(default: str, *, metavar: str | None = None) -> object:
    """Help of an option that may be left out: what happens then, in place of "None"."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")
