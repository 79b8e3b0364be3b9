"""`Footprint`: bytes that tasks make, guessed from footers and learnt from what was made, and what follows of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from intune.pipelines.allocation import Allocation
from intune.pipelines.metrics import StageMeter
from intune.pipelines.plan import Plan

DECODE_OVERHEAD = 0.5
"""While a row group is decoded its encoded pages are held too; they are at most about half of what they make."""


class Footprint:
    """What an epoch's tasks take.

    Args:
        plan: the epoch's tasks.
        allocation: slots of all stages.
        meters: of the stages; what was guessed before the first epoch has been seen since.

    Attributes:
        minimum: bytes that must be held at once for anything to be delivered, about.
        working_set: bytes with which every slot has one task in hand and one output ahead, beside twice the inputs of
            one delivery: more would only wait. A trainer that is slower than the pipeline so costs no memory.
    """

    def __init__(self, plan: Plan, allocation: Allocation, meters: Mapping[str, StageMeter]) -> None:
        self._plan = plan
        self._allocation = allocation
        # The first tasks of an epoch are smaller than most, the last one may be.
        self._typical_rows = [int(level.rows.max(initial=0)) for level in plan.levels]
        self._row_bytes = [0.0 if level.view else plan.row_bytes for level in plan.levels]
        # Of which levels it is known how large their outputs are, more or less.
        self._sized = [not plan.guessed] * len(plan.levels)
        for level, this in enumerate(plan.levels):
            meter = meters[this.stage]
            if meter.bytes_out and not self._sized[level]:
                self._sized[level] = True
                self._row_bytes[level] = meter.bytes_out / meter.rows
        self.minimum = self._minimum()
        self.working_set = self._working_set()

    @property
    def known(self) -> bool:
        """Whether it is known how large what is read is."""
        return self._sized[0]

    def of(self, level: int, index: int) -> int:
        """Bytes that a task takes while it runs."""
        extra = 1.0 + DECODE_OVERHEAD if level == 0 else 1.0
        return int(int(self._plan.levels[level].rows[index]) * self._row_bytes[level] * extra)

    def typical(self, level: int) -> int:
        """Bytes that a task of a level makes."""
        return int(self._typical_rows[level] * self._row_bytes[level])

    def resize(self, allocation: Allocation) -> None:
        """Other slots from now on."""
        self._allocation = allocation
        self.working_set = self._working_set()

    def learn(self, level: int, made: int, rows: int) -> None:
        """A task has made so many bytes of so many rows: what is expected is quick to rise, slow to fall."""
        if not rows:
            return
        seen, expected = made / rows, self._row_bytes[level]
        if made and not self._sized[level]:
            self._size(level, seen)
            return
        self._row_bytes[level] = max(seen, 0.9 * expected + 0.1 * seen)
        if self._row_bytes[level] != expected:
            self.working_set = self._working_set()

    def _size(self, level: int, seen: float) -> None:
        """The first of a level's outputs takes the place of what was guessed of them; of the first level's, also for
        the levels after, whose outputs are as large for all that is known."""
        self._sized[level] = True
        self._row_bytes[level] = seen
        if level == 0:
            for later, this in enumerate(self._plan.levels):
                if not (self._sized[later] or this.view):
                    self._row_bytes[later] = seen
        self.minimum = self._minimum()
        self.working_set = self._working_set()

    def _minimum(self) -> int:
        """All that goes into one output, at every level (of a shuffle, blocks stay until the last of their window is
        put together), and the output before, which the trainer still has."""
        first = np.arange(len(self._plan.levels[-1]), dtype=np.int64)
        last = first + 1
        total = 0
        in_hand = 0
        for level, size in zip(reversed(self._plan.levels), reversed(self._row_bytes), strict=True):
            before = np.zeros(len(level) + 1, dtype=np.int64)
            np.cumsum(level.rows, out=before[1:])
            most = int((before[last] - before[first]).max() * size)
            total += most
            in_hand = in_hand or most
            first, last = level.first[first], level.last[last - 1]
        return total + in_hand

    def _working_set(self) -> int:
        total = 2.0 * self.minimum
        for level, rows, size in zip(self._plan.levels, self._typical_rows, self._row_bytes, strict=True):
            if not level.view:
                total += 2 * (self._allocation.of(level.stage) + 1) * rows * size
        return int(total)
