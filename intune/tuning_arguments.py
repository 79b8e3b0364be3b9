"""Arguments of `tune`, checked before anything is made: what is wrong is told at once, and how to mend it."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from intune.control import Pace
from intune.decisions import Entry
from intune.pipelines.errors import ConfigError


def check_source(source: object) -> None:
    """A `ConfigError` for what is often given instead of a loader."""
    if isinstance(source, str | os.PathLike):
        raise ConfigError(
            f"`source`={os.fspath(source)!r} is a path; give what reads it, as in "
            "intune.pipelines.Pipeline.from_parquet(path).batch(8192)"
        )
    if not hasattr(source, "stages"):
        raise ConfigError(
            f"`source` is a {type(source).__name__}, which cannot be tuned, since nothing says how its batches are "
            "made; give a torch DataLoader or an intune Pipeline that makes them, or what has `stages`, `budget`, "
            "`stats` and `resize`"
        )


def check_flag(name: str, value: object) -> None:
    """True or False."""
    if not isinstance(value, bool):
        raise ConfigError(f"`{name}`={value!r} must be True or False")


def folder_of(name: str, value: object) -> Path | None:
    """A folder, ``~`` being the home folder as for data, or None. Absolute: a script may change its own meanwhile."""
    if value is None:
        return None
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(text, str) or not text or "\0" in text:
        raise ConfigError(f"`{name}`={value!r} must be a folder (text or a Path), or None to write nothing")
    return Path(os.path.abspath(os.path.expanduser(text)))


def check_knowledge(value: object) -> None:
    """True, False or a folder."""
    if not isinstance(value, bool | str | Path) or value == "":
        raise ConfigError(
            f"`knowledge`={value!r} must be True, False (to begin without and keep nothing) or a folder to keep it in"
        )


def check_pace(value: object) -> None:
    """A `Pace`, or None."""
    if value is not None and not isinstance(value, Pace):
        raise ConfigError(
            f"`pace`={value!r} must be an intune.control.Pace, as in Pace(shortest=1.0, longest=10.0), or None"
        )


def watchers(value: Any) -> tuple[Callable[[Entry], None], ...]:
    """Functions to be told of decisions; a single one needs no list."""
    several = not callable(value) and isinstance(value, Iterable)
    given = tuple(value) if several else (value,)
    if not all(map(callable, given)):
        raise ConfigError(
            f"`watch`={value!r} must be a function that is told of every decision, or a list of them"
        )
    return given


def check_options(options: Mapping[str, Any], function: Callable[..., Any], what: str) -> None:
    """A `ConfigError` for options that `function` does not take."""
    taken = [
        name
        for name, one in inspect.signature(function).parameters.items()
        if one.kind is one.KEYWORD_ONLY and name not in ("budget", "allocation")
    ]
    unknown = [name for name in options if name not in taken]
    if unknown:
        names = ", ".join(f"`{name}`" for name in unknown)
        raise ConfigError(
            f"{names}: intune.tune has no such option for a {what}; beside its own there are: "
            f"{', '.join(taken)}"
        )
