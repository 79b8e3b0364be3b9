"""What forecasts what will trend, how it is trained, and what came out; the work itself is `trends/job.py`'s."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeAlias, get_args

from intune.pipelines.errors import ConfigError
from intune.pipelines.whole import at_least
from intune.workloads.training.feeding import FeedOptions
from intune.workloads.training.fitting import FitOptions, FitSummary, check_seed
from intune.workloads.trends.trendrec import TrendRecConfig

ForecasterName: TypeAlias = Literal[
    "trendrec", "deepar-item", "deepar", "gru4rec", "markov", "exponential-average", "last-velocity"
]
FORECASTERS = get_args(ForecasterName)
LEARNS_ITEMS, LEARNS_TRENDS = ("trendrec", "gru4rec"), ("trendrec", "deepar-item", "deepar")


@dataclass(frozen=True, kw_only=True)
class TrendOptions:
    """What forecasts, and how it is trained.

    Attributes:
        forecaster: ``"trendrec"``; ``"deepar-item"``, the same without pre-training on next items, or ``"deepar"``,
            without an item embedding at all; ``"gru4rec"``, the next-item model alone; or one of the rules that
            learn nothing.
        width, hidden, layers, dropout, season, harmonics, likelihood, length: see `TrendRecConfig`.
        tune_items: whether the item embedding goes on learning with acceleration; else it stays as next items made it.
        weight: of the latest acceleration, of ``"exponential-average"``.
        growth: whether ``"gru4rec"`` gives predicted less present velocity rather than predicted popularity.
        learning_rate, batch_size: of Adam on acceleration; a row is an item's series.
        item_learning_rate, item_batch_size: of Adam on next items; a row is a user.
        weight_decay: of both.
        seed: of everything random.
        device: where the model is.
        cutoffs: values of k of the metrics.
    """

    forecaster: ForecasterName = "trendrec"
    width: int = 32
    hidden: int = 32
    layers: int = 1
    dropout: float = 0.1
    season: int = 0
    harmonics: int = 3
    likelihood: Literal["gaussian", "student-t"] = "gaussian"
    length: int = 50
    tune_items: bool = True
    weight: float = 0.5
    growth: bool = False
    learning_rate: float = 3e-3
    batch_size: int = 64
    item_learning_rate: float = 3e-3
    item_batch_size: int = 64
    weight_decay: float = 1e-4
    seed: int = 0
    device: str = "cpu"
    cutoffs: tuple[int, ...] = (10, 20)

    def __post_init__(self) -> None:
        if self.forecaster not in FORECASTERS:
            raise ConfigError(f"`forecaster`={self.forecaster!r} is unknown; use {', '.join(FORECASTERS)}")
        if not 0 < self.weight <= 1:
            raise ConfigError(f"`weight` must be above 0 and at most 1, but {self.weight} was found")
        for name in ("learning_rate", "item_learning_rate"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"`{name}` must be above 0, but {getattr(self, name)} was found")
        if not 0 <= self.weight_decay < float("inf"):
            raise ConfigError(f"`weight_decay` must be at least 0, but {self.weight_decay} was found")
        for name in ("batch_size", "item_batch_size"):
            at_least(name, getattr(self, name), 1)
        check_seed(self.seed)
        self.config(1)

    def config(self, items: int) -> TrendRecConfig:
        """The model's shape for so many items."""
        known: dict[str, Any] = {
            "items": items,
            "embedding": "none" if self.forecaster == "deepar" else "shared",
        }
        names = {entry.name for entry in fields(TrendRecConfig)} - known.keys()
        return TrendRecConfig(**known, **{name: getattr(self, name) for name in names})


@dataclass(frozen=True, kw_only=True)
class TrendFit:
    """How long each of the two trainings lasts, and within what.

    Attributes:
        items: on next items, whose validation loss decides; its metric is ``"loss"``.
        trends: on acceleration; ``"loss"`` or one of the trend metrics decides.
        feed: how the pipelines run.
    """

    items: FitOptions = field(
        default_factory=lambda: FitOptions(metric="loss", higher_is_better=False, epochs=100, patience=5)
    )
    trends: FitOptions = field(
        default_factory=lambda: FitOptions(metric="loss", higher_is_better=False, epochs=200, patience=20)
    )
    feed: FeedOptions = field(default_factory=FeedOptions)


@dataclass(frozen=True, kw_only=True)
class TrendResult:
    """What came out.

    Attributes:
        items, trends: how the trainings went; None where there was none.
        valid, test: mean metrics over the held-out steps; empty if a signal ended training.
    """

    items: FitSummary | None
    trends: FitSummary | None
    valid: Mapping[str, float]
    test: Mapping[str, float]

    @property
    def stopped(self) -> FitSummary | None:
        """The training that a signal ended."""
        return next((each for each in (self.items, self.trends) if each and each.train.stopped_by), None)
