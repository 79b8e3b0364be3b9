"""From a folder of interactions to forecasts of what will trend: TrendRec and what it is compared with, judged alike.

Next items are learnt first, from sessions, then acceleration, from series; both are read through pipelines. No event of
a step is used to forecast it, and none of a held-out step to train.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from intune.pipelines import Loader, Pipeline
from intune.pipelines.errors import ConfigError, DataError
from intune.workloads.evaluation import SCORES_AT_ONCE
from intune.workloads.sequences.stages import IGNORED
from intune.workloads.training.batch_sizes import redrawn
from intune.workloads.training.devices import check_device
from intune.workloads.training.feeding import FeedOptions, feeding
from intune.workloads.training.fitting import FitOptions, FitSummary, fit, require_metric
from intune.workloads.training.trainer import NO_MATTER, OnStep
from intune.workloads.trends import baselines
from intune.workloads.trends.data import TrendData
from intune.workloads.trends.metrics import mean_metrics, trend_metrics
from intune.workloads.trends.options import LEARNS_ITEMS, LEARNS_TRENDS, TrendFit, TrendOptions, TrendResult
from intune.workloads.trends.stages import NextItemsBefore, SeriesBefore
from intune.workloads.trends.trendrec import Forecaster, TrendRec, TwoTower

SHUFFLE = 8
"""Row groups whose rows are mixed."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

Watch: TypeAlias = Callable[[str, Loader, int], AbstractContextManager[OnStep | None]]
"""Shows one training while it lasts: given its name, its loader and the most steps to come."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TrendForecaster:
    """One forecaster on one data set."""

    data: TrendData
    options: TrendOptions = field(default_factory=TrendOptions)

    def __post_init__(self) -> None:
        check_device(self.options.device)
        most = max(self.options.cutoffs, default=0)
        if not 1 <= most <= self.data.items:
            raise ConfigError(
                f"`cutoffs` are {self.options.cutoffs}, but the data has {self.data.items} items; choose 1 to that"
            )

    @cached_property
    def model(self) -> TrendRec:
        """Made anew from the seed."""
        model = TrendRec(self.options.config(self.data.items), seed=self.options.seed)
        return model.to(self.options.device)

    @property
    def sessions(self) -> Pipeline:
        """Sessions up to validation's first step, as windows with targets."""
        options, data = self.options, self.data
        stage = NextItemsBefore(
            items=data.items,
            length=options.length,
            moment=data.moment(data.valid_from),
            seed=options.seed,
        )
        pipeline = data.ratings.pipeline("sessions/train", ["items", "timestamps"])
        pipeline = pipeline.shuffle(SHUFFLE, seed=options.seed)
        rows = data.ratings.rows("sessions/train")
        pipeline = pipeline.batch(
            redrawn(options.item_batch_size, rows, shuffle=SHUFFLE, drawn="windows of sessions")
        )
        return pipeline.map(stage, name="windows").to(options.device)

    @property
    def series(self) -> Pipeline:
        """Series up to validation's first step, a row an item."""
        options = self.options
        pipeline = self.data.ratings.pipeline("series", ["item", "velocity"])
        pipeline = pipeline.shuffle(SHUFFLE, seed=options.seed).batch(options.batch_size)
        return pipeline.map(SeriesBefore(steps=self.data.valid_from), name="series").to(options.device)

    @torch.no_grad()
    def forecast(self, steps: range) -> Floats:
        """A score of every item, the higher the more it is expected to accelerate, shape ``(len(steps), items)``."""
        options, data = self.options, self.data
        if options.forecaster == "markov":
            return baselines.markov(data.velocity, steps)
        if options.forecaster == "exponential-average":
            return baselines.exponential_average(data.velocity, steps, weight=options.weight)
        if options.forecaster == "last-velocity":
            return baselines.last_velocity(data.velocity, steps)
        if options.forecaster == "gru4rec":
            return np.stack([self._next_popularity(step) for step in steps])
        blocks = [self.model.forecaster(*block).mean for block in self._series_before(steps.stop - 1)]
        # Its first column is the forecast of A(2).
        mean: Floats = torch.cat(blocks)[:, steps.start - 2 :].T.double().cpu().numpy()
        return mean

    def _series_before(self, step: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Items and their velocities before `step`, block by block: an LSTM keeps four gates of every step."""
        options, data = self.options, self.data
        numbers = step * 4 * max(options.hidden, options.width)
        for rows in in_blocks(np.full(data.items, numbers)):
            velocity = torch.from_numpy(data.velocity[rows, :step].astype(np.float32))
            item = torch.arange(rows.start, rows.stop, device=options.device)
            yield item, velocity.to(options.device)

    def _next_popularity(self, step: int) -> Floats:
        data, options = self.data, self.options
        active = data.sessions_before(step, length=options.length, active=1)
        popularity = baselines.predicted_popularity(
            self.model.next_item, active, items=data.items, device=options.device
        )
        if not options.growth:
            return popularity
        now = data.velocity[:, step - 1]
        growth: Floats = popularity * (now.sum() / max(popularity.sum(), 1e-12)) - now
        return growth

    def metrics(self, split: Literal["valid", "test"]) -> dict[str, float]:
        """Mean metrics over the steps of `split`."""
        steps = self.data.held_out(split)
        self.model.eval()
        return mean_metrics(
            trend_metrics(self.forecast(steps), self.data.truth(steps), cutoffs=self.options.cutoffs)
        )

    @torch.no_grad()
    def loss_of_trends(self) -> float:
        """The forecaster's loss on validation's steps."""
        steps = self.data.held_out("valid")
        total = 0.0
        for item, velocity in self._series_before(steps.stop):
            loss = self.model.forecaster.losses(item, velocity)
            # Its first column is that of A(2).
            total += float(loss[:, steps.start - 2 :].mean()) * len(item)
        return total / self.data.items

    @torch.no_grad()
    def loss_of_items(self) -> float:
        """The next-item model's loss on validation's steps."""
        options, (sequence, target) = self.options, self._valid_items
        asked = np.count_nonzero(target != IGNORED, axis=1)
        # Scores of all items for every target, or three gates of every place, whichever is more.
        numbers = np.maximum(asked * self.data.items, options.length * 3 * options.width)
        total = 0.0
        for rows in in_blocks(numbers):
            matrices = {"sequence": sequence[rows], "target": target[rows]}
            batch = {name: torch.from_numpy(each).to(options.device) for name, each in matrices.items()}
            total += float(self.model.next_item.loss(batch)) * int(asked[rows].sum())
        return total / max(int(asked.sum()), 1)

    @cached_property
    def _valid_items(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        return self.data.next_items(self.data.held_out("valid"), length=self.options.length)

    def require_next_items(self) -> None:
        """Raise a `DataError` where there is no next item to learn, or none in validation's steps to choose by."""
        data = self.data
        remedy = (
            "choose another `valid_share`, or a `forecaster` that learns no next items, such as 'deepar-item'"
        )
        # What the data set itself holds out is no part of training's sessions, however early it was.
        trained = data.ratings.table("ratings/train", ["user", "timestamp"])
        early = np.asarray(trained.column("timestamp")) < data.moment(data.valid_from)
        if np.bincount(np.asarray(trained.column("user"))[early]).max(initial=0) < 2:
            raise DataError(
                f"{data.ratings.folder}: no user has 2 interactions to train on before validation's steps, so that "
                f"there is no next item to learn; make the data set with `--split` global-time, {remedy}"
            )
        if not len(self._valid_items[0]):
            raise DataError(
                f"{data.ratings.folder}: in validation's {len(data.held_out('valid'))} steps no user has an "
                f"interaction that follows another one, so that there is no next item to choose by; {remedy}"
            )

    def fit_items(self, fitting: TrendFit, *, watch: Watch | None = None) -> FitSummary:
        """Learn next items.

        Raises:
            IntuneError: see `require_next_items`; whatever `fit` raises.
        """
        self.require_next_items()
        return self._fit(
            self.model.next_item,
            self.sessions,
            self._inside(fitting.items, "items"),
            fitting.feed,
            rate=self.options.item_learning_rate,
            evaluate=lambda: {"loss": self.loss_of_items()},
            metrics=("loss",),
            config=self._config("items"),
            watched=None if watch is None else partial(watch, "next items"),
        )

    def fit_trends(self, fitting: TrendFit, *, watch: Watch | None = None) -> FitSummary:
        """Learn acceleration.

        Raises:
            IntuneError: whatever `fit` raises; a checkpoint that began with another item embedding is refused.
        """
        config = self._config("trends") | {"item_embedding": _digest(self.model.items.weight)}
        self.model.items.weight.requires_grad_(self.options.tune_items)
        return self._fit(
            self.model.forecaster,
            self.series,
            self._inside(fitting.trends, "trends"),
            fitting.feed,
            rate=self.options.learning_rate,
            evaluate=lambda: {"loss": self.loss_of_trends(), **self.metrics("valid")},
            metrics=self._names,
            config=config,
            watched=None if watch is None else partial(watch, "acceleration"),
        )

    def _fit(
        self,
        module: TwoTower | Forecaster,
        pipeline: Pipeline,
        options: FitOptions,
        feed: FeedOptions,
        *,
        rate: float,
        watched: Callable[[Loader, int], AbstractContextManager[OnStep | None]] | None,
        **more: Any,
    ) -> FitSummary:
        """One of the two trainings, AdamW at this learning rate; what else is said goes to `fit`."""
        wanted = [parameter for parameter in module.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(wanted, lr=rate, weight_decay=self.options.weight_decay)
        with feeding(pipeline, feed) as loader:
            steps = min(options.epochs * len(loader), options.max_steps or 2**62)
            with nullcontext() if watched is None else watched(loader, steps) as on_step:
                return fit(
                    module, optimizer, loader, loss=module.loss, options=options, on_step=on_step, **more
                )

    def _inside(self, options: FitOptions, name: str) -> FitOptions:
        """The same with a folder of its own for what each of the two trainings writes."""
        return replace(
            options,
            seed=self.options.seed,
            checkpoints=None if options.checkpoints is None else options.checkpoints / name,
            tensorboard=None if options.tensorboard is None else options.tensorboard / name,
        )

    def _config(self, phase: str) -> dict[str, Any]:
        options = {name: value for name, value in asdict(self.options).items() if name not in NO_MATTER}
        return {**options, **asdict(self.data.cut), "items": self.data.items, "phase": phase}

    @property
    def _names(self) -> tuple[str, ...]:
        """What may decide when training on acceleration ends."""
        return ("loss", *(f"{name}@{k}" for name in ("precision", "gain") for k in self.options.cutoffs))

    def fit(self, fitting: TrendFit | None = None, *, watch: Watch | None = None) -> TrendResult:
        """Train what is to be trained; then validation's metrics, and the test's, once.

        Args:
            fitting: how long, and within what.
            watch: for a live display; see `Watch`.

        Raises:
            IntuneError: data, checkpoint or an option cannot be used, or a loss is no number.
        """
        fitting = TrendFit() if fitting is None else fitting
        if self.options.forecaster in LEARNS_TRENDS:
            # Before next items are learnt, which may take hours.
            require_metric(fitting.trends.metric, self._names)
        items = trends = None
        if self.options.forecaster in LEARNS_ITEMS:
            items = self.fit_items(fitting, watch=watch)
        stopped = items is not None and items.train.stopped_by is not None
        if self.options.forecaster in LEARNS_TRENDS and not stopped:
            trends = self.fit_trends(fitting, watch=watch)
            stopped = trends.train.stopped_by is not None
        valid = {} if stopped else self.metrics("valid")
        return TrendResult(
            items=items, trends=trends, valid=valid, test={} if stopped else self.metrics("test")
        )


def _digest(values: torch.Tensor) -> str:
    return hashlib.sha256(values.detach().cpu().numpy().tobytes()).hexdigest()[:16]


def in_blocks(numbers: Ints) -> Iterator[slice]:
    """Runs of rows to be computed at once: of their `numbers`, so many of each row, one holds `SCORES_AT_ONCE` at most,
    its largest row not counted."""
    block = (np.cumsum(numbers) - 1) // SCORES_AT_ONCE
    edges = np.flatnonzero(np.diff(block, prepend=-2, append=-2)).tolist()
    return (slice(start, stop) for start, stop in itertools.pairwise(edges))
