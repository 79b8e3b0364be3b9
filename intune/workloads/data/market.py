"""A simulated market: items whose audiences are shared follow common trends, seen through what users do. Pure.

The expected velocity of every item in every step is known, so that the best possible forecast is, too. Written by
`ratings.write_ratings` like any data set of interactions.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from intune.pipelines.errors import ConfigError, DataError
from intune.pipelines.whole import at_least
from intune.workloads.data.interactions import CleaningOptions, Interactions
from intune.workloads.data.ratings import RatingsOptions, write_ratings
from intune.workloads.data.splits import SplitOptions
from intune.workloads.data.tables import SeriesOptions
from intune.workloads.data.text import item_table
from intune.workloads.data.writer import Progress

Floats = npt.NDArray[np.float64]

START = 1_600_000_000
"""When step 0 begins, seconds since 1970; any moment will do."""

HARMONICS = 3
"""Sine waves that a season is made of: enough for two audiences' seasons to differ in more than their phase."""

LEAST_RATE = 1e-12
"""Of any item in any step; keeps the drawing of counts away from a rate of exactly zero."""


@dataclass(frozen=True, kw_only=True)
class MarketOptions:
    """What is simulated.

    Attributes:
        users, items, audiences: how many; every user and every item belongs to one audience.
        steps: of time.
        step_days: length of a step, days.
        volume: median of an item's interactions per step.
        spread: standard deviation of the logarithm of items' own volumes.
        season: steps after which an audience's season comes again.
        season_strength: standard deviation of the logarithm of velocity over a season.
        shock: standard deviation of an audience's random trend, on the same scale.
        persistence: share of that trend that is left a step later.
        loyalty: share of an item's interactions that come from its audience; the others are anybody's.
        seed: of everything random.
    """

    users: int = 600
    items: int = 240
    audiences: int = 12
    steps: int = 60
    step_days: float = 7.0
    volume: float = 4.0
    spread: float = 0.5
    season: int = 12
    season_strength: float = 0.6
    shock: float = 0.2
    persistence: float = 0.7
    loyalty: float = 0.9
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"users": 2, "items": 2, "audiences": 1, "steps": 3, "season": 2, "seed": 0}
        for name, value in least.items():
            at_least(name, getattr(self, name), value)
        if self.audiences > min(self.users, self.items):
            raise ConfigError(
                f"`audiences`={self.audiences} leaves some without a user or an item; lower it to "
                f"{min(self.users, self.items)} or less"
            )
        for name in ("spread", "season_strength", "shock"):
            if not 0 <= getattr(self, name) <= 5:
                raise ConfigError(f"`{name}` must be from 0 to 5, but {getattr(self, name)} was found")
        for name, most in (("loyalty", 1.0), ("persistence", 0.999)):
            if not 0 <= getattr(self, name) <= most:
                raise ConfigError(f"`{name}` must be from 0 to {most:g}, but {getattr(self, name)} was found")
        if not 0 < self.volume < 1e6:
            raise ConfigError(f"`volume` must be above 0 and below 1e6, but {self.volume} was found")
        SeriesOptions(step_days=self.step_days)


def expected_velocity(
    options: MarketOptions, generator: np.random.Generator
) -> tuple[npt.NDArray[np.int64], Floats]:
    """Audience of every item, shape ``(items,)``, and expected interactions, shape ``(items, steps)``."""
    audience = generator.permutation(np.arange(options.items) % options.audiences)
    weights = generator.normal(size=(2, options.audiences, HARMONICS, 1))
    turns = np.arange(1, HARMONICS + 1)[:, None] * np.arange(options.season) / options.season
    waves = weights[0] * np.sin(2 * np.pi * turns) + weights[1] * np.cos(2 * np.pi * turns)
    season = waves.sum(axis=1)
    season *= options.season_strength / np.maximum(season.std(axis=1, keepdims=True), LEAST_RATE)
    fresh = generator.normal(size=(options.audiences, options.steps)) * options.shock
    # A stationary first-order autoregression: its standard deviation is `shock` in every step.
    shock = np.empty_like(fresh)
    shock[:, 0] = fresh[:, 0]
    for step in range(1, options.steps):
        left = options.persistence * shock[:, step - 1]
        shock[:, step] = left + (1 - options.persistence**2) ** 0.5 * fresh[:, step]
    trend = season[:, np.arange(options.steps) % options.season] + shock
    volume = options.volume * np.exp(options.spread * generator.normal(size=options.items))
    return audience, volume[:, None] * np.exp(trend[audience])


def simulate(options: MarketOptions) -> Interactions:
    """The market's interactions; `users` has a column ``audience``, `items` also ``expected_velocity``.

    Raises:
        DataError: nothing happens in the first or the last step, so that steps could not be told from the data.
    """
    generator = np.random.default_rng(options.seed)
    audience, expected = expected_velocity(options, generator)
    counts = generator.poisson(np.maximum(expected, LEAST_RATE))
    if not (counts[:, 0].any() and counts[:, -1].any()):
        raise DataError(
            f"the market has no interaction in its first or last step with `volume`={options.volume:g} and "
            f"{options.items} items; raise one of them"
        )
    place = np.repeat(np.arange(counts.size), counts.ravel())
    item, step = place // options.steps, place % options.steps
    step_s = SeriesOptions(step_days=options.step_days).step_s
    timestamp = START + step * step_s + generator.integers(0, step_s, len(place))
    timestamp[np.argmin(timestamp)] = START  # steps are counted from the first interaction
    members = np.arange(options.users) % options.audiences
    by_audience = np.argsort(members, kind="stable")
    sizes = np.bincount(members, minlength=options.audiences)
    starts = np.cumsum(sizes) - sizes
    group = audience[item]
    loyal = by_audience[starts[group] + generator.integers(0, sizes[group])]
    anybody = generator.integers(0, options.users, len(place))
    user = np.where(generator.random(len(place)) < options.loyalty, loyal, anybody)
    names = [f"item {number}" for number in range(options.items)]
    items = item_table(names, names, [None] * options.items, [()] * options.items)
    items = items.append_column("audience", pa.array(audience))
    items = items.append_column("expected_velocity", pa.array(list(expected)))
    users = {"user_id": [f"user {number}" for number in range(options.users)], "audience": members}
    return Interactions(
        user=user.astype(np.int64),
        item=item.astype(np.int64),
        rating=np.ones(len(place), dtype=np.float32),
        timestamp=timestamp.astype(np.int64),
        users=pa.table(users),
        items=items,
        source=f"a simulated market, seed {options.seed}",
    )


def write_market(
    options: MarketOptions,
    out: Path,
    *,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Simulate, hold out everything after a moment, and write the tables of `ratings.py` to `out`.

    Returns:
        What has been written to `dataset.json`.

    Raises:
        IntuneError: see `simulate` and `write_ratings`.
    """
    chosen = RatingsOptions(
        cleaning=CleaningOptions(keep_repeated=True),
        split=SplitOptions(name="global-time", valid_share=0.15, test_share=0.2),
        series=SeriesOptions(step_days=options.step_days),
    )
    more = {"market": asdict(options)}
    return write_ratings(simulate(options), chosen, out, kind="market", progress=progress, more=more)
