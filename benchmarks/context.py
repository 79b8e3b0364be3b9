"""What every section of the benchmark is given, and the bars it answers with.

A section is a module with ``TITLE``, ``measure(context) -> dict`` (goes into the JSON as it is),
``bars(result) -> list[Bar]`` and ``show(result, console)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from rich.console import Console

from benchmarks.stats import Estimate


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """How to run. `quick` asks for the smallest run that still exercises everything."""

    rows: int
    repeats: int
    seed: int
    quick: bool
    only: tuple[str, ...]
    progress: Callable[[str], None]

    def wants(self, name: str) -> bool:
        """Whether the contender called `name` is to take part: no choice, or a part of its name chosen."""
        return not self.only or any(part.lower() in name.lower() for part in self.only)


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """One thing that must hold: `measured` at least (or at most) `limit`; `measured` is None if it was not."""

    name: str
    limit: float
    unit: str
    measured: Estimate | None
    at_least: bool = True

    @property
    def passed(self) -> bool | None:
        """Whether the median is on the right side; None if there is none."""
        if self.measured is None:
            return None
        return self.measured.median >= self.limit if self.at_least else self.measured.median <= self.limit

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "limit": self.limit,
            "unit": self.unit,
            "at_least": self.at_least,
            "measured": self.measured.as_dict() if self.measured else None,
            "passed": self.passed,
        }


class Section(Protocol):
    """The four names that a section's module has."""

    TITLE: str

    def measure(self, context: Context) -> dict[str, Any]:
        """Run it."""

    def bars(self, result: dict[str, Any]) -> list[Bar]:
        """What of it must hold."""

    def show(self, result: dict[str, Any], console: Console) -> None:
        """Print it."""
