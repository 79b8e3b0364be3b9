"""Finds a rival's best setting: every one is run, the fastest few are run again, the best median wins."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import harness
from benchmarks.families import Family

FINALISTS = 3
"""Settings that are run again: one run tells a bad setting from a good one, not a good one from the best."""

RERUNS = 2


def sweep(family: Family, data: Path, *, progress: Callable[[str], None]) -> list[dict[str, Any]]:
    """Rates of every setting, best first: ``config``, ``rates`` (rows/s of each run), ``rate``, ``error``."""
    rates: dict[str, list[float]] = {json.dumps(config): [] for config in family.configs}
    errors: dict[str, str] = {}

    def once(key: str) -> None:
        progress(f"sweep of {family.name}: {key}")
        try:
            result = harness.run(family.contender(json.loads(key)), data)
            rates[key].append(result["rows"] / result["seconds"])
        except harness.ContenderFailed as error:
            errors[key] = str(error)

    for key in rates:
        once(key)
    for _ in range(RERUNS):
        for key in finalists(rates, errors):
            once(key)
    return ranked(rates, errors)


def finalists(rates: Mapping[str, Sequence[float]], errors: Mapping[str, str]) -> list[str]:
    """The settings to run again: the `FINALISTS` fastest first runs that did not fail."""
    whole = [key for key, runs in rates.items() if runs and key not in errors]
    return sorted(whole, key=lambda key: -rates[key][0])[:FINALISTS]


def ranked(rates: Mapping[str, Sequence[float]], errors: Mapping[str, str]) -> list[dict[str, Any]]:
    """Rows of the sweep's table: settings that were run to the end by their median, then the others, then failures."""
    rows = [
        {
            "config": json.loads(key),
            "rates": list(runs),
            "rate": median(runs) if runs else 0.0,
            "error": errors.get(key),
        }
        for key, runs in rates.items()
    ]
    return sorted(rows, key=lambda row: (row["error"] is not None, -len(row["rates"]), -row["rate"]))


def best(
    rows: Sequence[Mapping[str, Any]], accept: Callable[[Mapping[str, Any]], bool] = lambda _: True
) -> Any:
    """The setting of the first row that did not fail and that `accept` takes; None if there is none."""
    return next((row["config"] for row in rows if row["error"] is None and accept(row["config"])), None)
