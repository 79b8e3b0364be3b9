"""The data of trend forecasting: which steps are trained on, chosen by and judged by, the series, the events.

Training reads Parquet through a pipeline; here is what forecasting whole steps needs in memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from intune.pipelines.errors import ConfigError, DataError, SchemaError
from intune.workloads.pairs.data import RatingData, find_rating_data
from intune.workloads.sequences.stages import IGNORED

Ints = npt.NDArray[np.int64]

LEAST_STEPS = 3
"""Trained on: two make the first acceleration, the third is the first that can be forecast."""


@dataclass(frozen=True, kw_only=True)
class CutOptions:
    """Which steps are held out: the last ones.

    Attributes:
        valid_share, test_share: shares of all steps, each at least one step.
    """

    valid_share: float = 0.15
    test_share: float = 0.2

    def __post_init__(self) -> None:
        for name in ("valid_share", "test_share"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(
                    f"`{name}` must be above 0 and below 1, but {getattr(self, name)} was found"
                )


@dataclass(frozen=True, kw_only=True, eq=False)
class TrendData:
    """A data set of interactions, seen as series.

    Attributes:
        ratings: where it is.
        steps: whole steps; the last one of the data ends with the data, not with the step, and is left out.
        valid_from, test_from: the first steps of validation and of the test.
        start: when step 0 begins, seconds since 1970.
        step_s: length of a step, seconds.
    """

    ratings: RatingData
    steps: int
    valid_from: int
    test_from: int
    start: int
    step_s: int
    cut: CutOptions = field(default_factory=CutOptions)

    @property
    def items(self) -> int:
        """How many items there are."""
        return self.ratings.items

    def held_out(self, split: Literal["valid", "test"]) -> range:
        """The steps to forecast."""
        return (
            range(self.valid_from, self.test_from) if split == "valid" else range(self.test_from, self.steps)
        )

    def moment(self, step: int) -> int:
        """When a step begins, seconds since 1970."""
        return self.start + step * self.step_s

    @cached_property
    def velocity(self) -> Ints:
        """W of every item in every whole step, shape ``(items, steps)``."""
        table = self.ratings.table("series", ["item", "velocity"])
        order = np.argsort(np.asarray(table.column("item")))
        lists = table.column("velocity").combine_chunks()
        values = np.asarray(lists.flatten(), dtype=np.int64)
        if values.size != self.items * self.ratings.description["series"]["steps"]:
            raise SchemaError(
                f"{self.ratings.folder}/series has {values.size} numbers for {self.items} items; make the data "
                f"set again"
            )
        return values.reshape(self.items, -1)[order, : self.steps]

    @cached_property
    def acceleration(self) -> Ints:
        """A(1) … A(T−1), shape ``(items, steps − 1)``."""
        return np.diff(self.velocity, axis=1)

    def truth(self, steps: range) -> Ints:
        """True accelerations of `steps`, shape ``(len(steps), items)``."""
        return self.acceleration[:, steps.start - 1 : steps.stop - 1].T

    @cached_property
    def events(self) -> tuple[Ints, Ints, Ints]:
        """User, item and time of all interactions, of every part of the data set; by user, then by time."""
        names = ["user", "item", "timestamp"]
        table = self.ratings.all_ratings(names)
        user, item, time = (np.asarray(table.column(name), dtype=np.int64) for name in names)
        order = np.lexsort((time, user))
        return user[order], item[order], time[order]

    def sessions_before(self, step: int, *, length: int, active: int | None = None) -> Ints:
        """The last items of every user before `step` begins, shape ``(users with any, length)``, padded on the right.

        Args:
            step: nothing that happens in it or later is seen.
            length: items of a row.
            active: only users who did something in as many steps before `step`; None for all.
        """
        items, times = self._last_before(step, length)
        if active is None:
            return items
        recent: Ints = items[times.max(axis=1) >= self.moment(step - active)]
        return recent

    def next_items(self, steps: range, *, length: int) -> tuple[Ints, Ints]:
        """Sessions and the items after each place that fall into `steps`, `IGNORED` elsewhere, as a pair of matrices.

        Shapes ``(users, length)``, padded on the right; nothing after `steps` is in them.
        """
        items, times = self._last_before(steps.stop, length + 1)
        asked = (times[:, 1:] >= self.moment(steps.start)) & (items[:, 1:] < self.items)
        rows = asked.any(axis=1)
        return items[rows, :-1], np.where(asked, items[:, 1:], IGNORED)[rows]

    def _last_before(self, step: int, length: int) -> tuple[Ints, Ints]:
        """The last items and their times of every user before `step` begins; padding is `items`, at time −1."""
        user, item, time = self.events
        seen = time < self.moment(step)
        user, item, time = user[seen], item[seen], time[seen]
        ends = np.flatnonzero(np.diff(user, append=-1)) + 1
        kept = np.minimum(np.diff(ends, prepend=0), length)
        filled = np.arange(length) < kept[:, None]
        places = ((ends - kept)[:, None] + np.arange(length))[filled]
        items, times = np.full(filled.shape, self.items), np.full(filled.shape, -1)
        items[filled], times[filled] = item[places], time[places]
        return items, times


def find_trend_data(data: str | Path, cut: CutOptions | None = None) -> TrendData:
    """Look at the folder `data`.

    Raises:
        NotFoundError, CorruptError, SchemaError: see `find_rating_data`; there are no series; one user only.
        DataError: there are too few steps to train on after some are held out.
    """
    cut = CutOptions() if cut is None else cut
    ratings = find_rating_data(data)
    series = ratings.description.get("series")
    if not isinstance(series, dict):
        raise SchemaError(f"{data} has no series of its items; make the data set again")
    if ratings.users < 2 or ratings.items < 2:
        raise DataError(
            f"{data} has {ratings.users} users and {ratings.items} items, but trends are shared: give 2 or more of each"
        )
    steps = int(series["steps"]) - 1
    test_from = steps - max(1, round(steps * cut.test_share))
    valid_from = test_from - max(1, round(steps * cut.valid_share))
    if valid_from < LEAST_STEPS:
        raise DataError(
            f"{data} has {max(steps, 0)} whole steps, which leaves {max(valid_from, 0)} to train on, but at least "
            f"{LEAST_STEPS} are needed; make the data set again with a shorter `step_days`, or lower `valid_share` or "
            f"`test_share`"
        )
    return TrendData(
        ratings=ratings,
        steps=steps,
        valid_from=valid_from,
        test_from=test_from,
        start=int(series["start"]),
        step_s=int(series["step_s"]),
        cut=cut,
    )
