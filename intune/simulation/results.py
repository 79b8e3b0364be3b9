"""`Results`: what a simulation found, with what it was run with; as a document for JSON. Draws nothing."""

from __future__ import annotations

import datetime
import json
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from intune.agents.summary import Summary

LAYOUT = 1
"""Of the JSON document; raised when a reader of the old one would misread the new."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """Of one run of `intune simulate`.

    Attributes:
        settings: what was asked for, for JSON.
        seconds: that it took.
        scenarios: summaries of all agents by scenario, in the order they were asked for.
        descriptions: of the scenarios.
        interval: seconds between two decisions, by scenario (of its first job).
    """

    settings: dict[str, Any]
    seconds: float
    scenarios: dict[str, list[Summary]]
    descriptions: dict[str, str]
    interval: dict[str, float]

    @property
    def reference(self) -> str:
        """The agent to which ratios are given."""
        return str(self.settings["reference"])

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "layout": LAYOUT,
            "intune": _version(),
            "python": platform.python_version(),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "settings": self.settings,
            "seconds": round(self.seconds, 1),
            "scenarios": {
                name: {
                    "description": self.descriptions[name],
                    "interval_s": self.interval[name],
                    "agents": {summary.agent: summary.as_dict() for summary in summaries},
                }
                for name, summaries in self.scenarios.items()
            },
        }

    def save(self, path: Path) -> None:
        """Write the document to `path`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.as_dict(), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def best_first(summaries: list[Summary]) -> list[Summary]:
    """By the share of the best rows over the whole job."""
    return sorted(summaries, key=lambda summary: -summary.outcomes["whole"].mean)


def _version() -> str:
    try:
        return version("intune")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "unknown"
