"""When a trainer counts as away from its loop, from counters written by hand."""

from __future__ import annotations

from intune.absence import LONG, Absence
from intune.pipelines import Allocation
from intune.pipelines.metrics import PipelineStats, StageStats


def looks(*readings: tuple[float, int, int, int]) -> list[bool]:
    """Whether it is away at readings of seconds, batches taken, batches ready and tasks at work."""
    left = iter(readings)

    def stats() -> PipelineStats:
        elapsed, batches, queue, running = next(left)
        return PipelineStats(
            stages=(StageStats(name="load", running=running), StageStats(name="batch", queue=queue)),
            elapsed_s=elapsed, epoch=0, batch=0, batches=batches, rows=0, step_s=0.0, wait_s=0.0, memory_held=0,
            memory_peak=0, memory_limit=1, allocation=Allocation.shared(2),
        )  # fmt: skip

    absence = Absence(stats)
    found = []
    for _ in readings:
        before = absence.away
        assert absence.look() == (absence.away != before)
        found.append(absence.away)
    return found


def test_it_is_away_while_batches_are_ready_for_long_and_it_takes_none() -> None:
    found = looks((10, 100, 4, 0), (11, 100, 4, 0), (20, 100, 4, 0), (21, 103, 4, 0), (22, 112, 4, 0))
    assert found == [False, True, True, False, False]


def test_a_step_that_takes_long_every_time_is_no_absence() -> None:
    assert looks((30, 3, 4, 0), (30 + 10 * LONG, 3, 4, 0), (31 + 10 * LONG, 3, 4, 0)) == [False, False, True]


def test_a_moment_is_no_absence() -> None:
    assert looks((10, 10_000, 4, 0), (10.4, 10_000, 4, 0), (10.6, 10_000, 4, 0)) == [False, False, True]


def test_while_something_is_at_work_it_may_be_waiting() -> None:
    assert not any(looks((10, 100, 4, 1), (15, 100, 4, 1), (20, 100, 4, 1)))
    # What was ready came out of order, and what was waited for came at last.
    assert not any(looks((10, 100, 4, 1), (20, 100, 5, 0), (20.1, 105, 0, 0)))


def test_while_nothing_is_ready_it_waits() -> None:
    assert not any(looks((10, 100, 0, 0), (20, 100, 0, 0), (30, 100, 0, 0)))


def test_between_epochs_no_time_passes() -> None:
    assert not any(looks((10, 100, 4, 0), (10, 100, 4, 0), (10, 100, 4, 0)))


def test_before_the_first_batch_nothing_is_known() -> None:
    assert not any(looks((0, 0, 0, 0), (1, 0, 2, 0), (1.5, 0, 2, 0)))
