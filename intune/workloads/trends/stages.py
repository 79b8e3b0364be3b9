"""Pipeline stages of trend forecasting: sessions up to a moment as next-item windows, series up to a step as a matrix.

What must not be known yet is cut off here, before a model or a device sees it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from intune.pipelines.errors import DataError
from intune.pipelines.schema import Block, Column, Ragged
from intune.pipelines.transforms.base import Transform
from intune.pipelines.transforms.lists import require_lists
from intune.pipelines.whole import at_least
from intune.workloads.sequences.draws import generator_of
from intune.workloads.sequences.stages import IGNORED, sessions_of


@dataclass(frozen=True, kw_only=True)
class NextItemsBefore(Transform):
    """A window of each session, of events before a moment only, as input and target of a next-item model.

    A session with fewer than two events before the moment has nothing to predict: its row is all padding. The lists
    themselves are left out of the block, so that nothing later goes on with it.

    Attributes:
        items: number n of items; n is padding.
        length: inputs of a row.
        moment: seconds since 1970; events then or later are not seen.
        seed: of the window's place, drawn from all.
    """

    rowwise: ClassVar[bool] = False

    items: int
    length: int
    moment: int
    seed: int = 0

    def __post_init__(self) -> None:
        at_least("items", self.items, 1)
        at_least("length", self.length, 1)

    def __call__(self, block: Mapping[str, Column]) -> Block:
        """``sequence`` and ``target`` in place of the lists, int64, shape ``(rows, length)``, padded on the right.

        Raises:
            DataError: an id that is not one of the `items`, or times that go backwards within a session.
        """
        sessions = sessions_of("NextItemsBefore", block, "items")
        times = require_lists("NextItemsBefore", "timestamps", block["timestamps"])
        check_sessions(sessions, times, self.items)
        starts = np.asarray(sessions.offsets[:-1])
        seen = np.concatenate([[0], np.cumsum(np.asarray(times.values) < self.moment)])
        known = seen[sessions.offsets[1:]] - seen[starts]
        draw = generator_of(self.seed, sessions.values)
        end = draw.integers(np.minimum(known, self.length + 1), known + 1)
        kept = np.minimum(end, self.length + 1)
        column = np.arange(self.length)
        filled = column < kept[:, None] - 1
        source = (starts + end - kept)[:, None] + column
        sequence = np.full(filled.shape, self.items, dtype=np.int64)
        target = np.full(filled.shape, IGNORED, dtype=np.int64)
        sequence[filled] = sessions.values[source[filled]]
        target[filled] = sessions.values[source[filled] + 1]
        kept_columns = {name: value for name, value in block.items() if name not in ("items", "timestamps")}
        return {**kept_columns, "sequence": sequence, "target": target}


@dataclass(frozen=True, kw_only=True)
class SeriesBefore(Transform):
    """The first `steps` steps of each item's velocity, a list column, as rows of a matrix.

    Attributes:
        steps: step s and later are not seen.
    """

    steps: int

    def __post_init__(self) -> None:
        at_least("steps", self.steps, 1)

    def __call__(self, block: Mapping[str, Column]) -> Block:
        """``velocity`` as float32, shape ``(rows, steps)``.

        Raises:
            DataError: a series is shorter, or a velocity is negative.
        """
        series = require_lists("SeriesBefore", "velocity", block["velocity"])
        lengths = np.asarray(series.lengths)
        if len(lengths) and lengths.min() < self.steps:
            raise DataError(
                f"SeriesBefore: a series of {int(lengths.min())} steps was found, but {self.steps} are needed; make "
                f"the data set again"
            )
        values = np.asarray(series.values)
        if len(values) and values.min() < 0:
            raise DataError(
                f"SeriesBefore: a velocity of {values.min()} was found, but interactions cannot be fewer than 0; make "
                f"the data set again"
            )
        places = np.asarray(series.offsets[:-1])[:, None] + np.arange(self.steps)
        return {**block, "velocity": values[places].astype(np.float32)}


def check_sessions(sessions: Ragged, times: Ragged, items: int) -> None:
    """Raise a `DataError` where ids are outside the catalogue or a session's time goes backwards."""
    values = sessions.values
    outside = np.flatnonzero((values < 0) | (values >= items))
    if len(outside):
        raise DataError(
            f"`items` has the item {int(values[outside[0]])}, but the catalogue has {items} items, 0 to {items - 1}; "
            f"make the data set again"
        )
    if not np.array_equal(sessions.offsets, times.offsets):
        raise DataError(
            "`items` and `timestamps` have lists of other lengths; every item has a time, make the data set again"
        )
    back = np.flatnonzero(np.diff(times.values) < 0) + 1
    back = back[~np.isin(back, times.offsets)]
    if len(back):
        session = int(np.searchsorted(times.offsets, back[0], side="right")) - 1
        raise DataError(
            f"time goes backwards in session {session} of the batch, from {int(times.values[back[0] - 1])} to "
            f"{int(times.values[back[0]])}; sort sessions by time"
        )
