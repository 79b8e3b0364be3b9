"""`intune data market`. What is done lives in `intune.workloads.data.market`."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

MARKET_HELP = """\
Simulate a market whose trends are known, and write it to Parquet.

Items with a common audience follow a common trend, a season and random shocks, and are seen through what users do.
OUT gets the tables of `intune data movielens`, everything after one moment held out; items also have their audience
and the expected number of interactions in every step.

Examples:
  intune data market --out market
  intune data market --items 1000 --users 5000 --volume 10 --seed 1 --out market-1
"""


@dataclass(frozen=True, kw_only=True)
class Market:
    """What is simulated.

    Attributes:
        users: How many users.
        items: How many items.
        audiences: How many audiences; every user and every item belongs to one.
        steps: Steps of time.
        step_days: Length of a step, days.
        volume: Median of an item's interactions per step.
        spread: Standard deviation of the logarithm of items' own volumes.
        season: Steps after which an audience's season comes again.
        season_strength: Standard deviation of the logarithm of velocity over a season.
        shock: Standard deviation of an audience's random trend.
        persistence: Share of that trend that is left a step later.
        loyalty: Share of an item's interactions that come from its audience.
        seed: Decides everything random.
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


def market(*, out: Path, market: Market = Market()) -> None:
    """Simulate a market.

    Args:
        out: Folder to write to; it must be new or empty.
        market: What is simulated.
    """
    from intune.cli.data_ratings import summary
    from intune.cli.progress import Progress
    from intune.workloads.data.market import MarketOptions, write_market

    started = time.monotonic()
    with Progress(f"writing {out}") as progress:
        description = write_market(MarketOptions(**asdict(market)), out, progress=progress)
    print(summary(out, description, time.monotonic() - started))
