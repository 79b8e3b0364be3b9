"""Whether the trainer has left its loop for a while, as for a validation or a checkpoint between two batches. Such time
says nothing of any slots, and within an epoch nobody else tells it from work."""

from __future__ import annotations

from collections.abc import Callable

from intune.pipelines.metrics import PipelineStats

LONG = 4.0
"""Times that a batch has taken on average so far, from which on the trainer counts as away: single steps vary."""

LEAST_S = 0.5
"""Seconds that it has to be away at least: of an interval of a second or more, less is no great part."""


class Absence:
    """Looks at a pipeline's counters now and then.

    Args:
        stats: reads them.

    Attributes:
        away: whether the trainer was away at the last look.
    """

    def __init__(self, stats: Callable[[], PipelineStats]) -> None:
        self._stats = stats
        self._idle: PipelineStats | None = None
        self.away = False

    def look(self) -> bool:
        """Whether it has left or come back since the last look."""
        before, self.away = self.away, self._is_away(self._stats())
        return self.away != before

    def _is_away(self, now: PipelineStats) -> bool:
        """Whether batches have been ready for long, with nothing at work behind them, and it took none.

        Where a stage is at work, the trainer may be waiting: what is ready need not be next in order.
        """
        full = now.stages[-1].queue > 0 and not any(stage.running for stage in now.stages)
        if not full or self._idle is None or now.batches != self._idle.batches:
            self._idle = now if full else None
            return False
        since = self._idle
        a_batch = since.elapsed_s / max(since.batches, 1)
        return now.elapsed_s - since.elapsed_s > max(LONG * a_batch, LEAST_S)
