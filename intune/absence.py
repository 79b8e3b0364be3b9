"""Whether the trainer has left its loop for a while, as for a validation or a checkpoint between two batches. Such time
says nothing of any slots, and within an epoch nobody else tells it from work."""

from __future__ import annotations

from collections.abc import Callable

from intune.pipelines.metrics import PipelineStats

LONG = 4.0
"""Times that a batch has taken on average so far, from which on the trainer counts as away: single steps vary."""


class Absence:
    """Looks at a pipeline's counters now and then.

    Args:
        stats: reads them.
    """

    def __init__(self, stats: Callable[[], PipelineStats]) -> None:
        self._stats = stats
        self._idle: PipelineStats | None = None

    def look(self) -> bool:
        """Whether batches have been ready for long, with nothing at work behind them, and the trainer took none.

        Where a stage is at work, the trainer may be waiting: what is ready need not be next in order.
        """
        now = self._stats()
        full = now.stages[-1].queue > 0 and not any(stage.running for stage in now.stages)
        if not full or self._idle is None or now.batches != self._idle.batches:
            self._idle = now if full else None
            return False
        since = self._idle
        return now.elapsed_s - since.elapsed_s > LONG * since.elapsed_s / max(since.batches, 1)
