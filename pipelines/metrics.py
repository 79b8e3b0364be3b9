"""What is measured of a running pipeline, with units. Counting happens in `scheduler.py` and `epoch.py`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from intune.pipelines.allocation import Allocation


@dataclass(frozen=True, kw_only=True)
class StageStats:
    """One stage since the loader was made (or between two readings, see `PipelineStats.since`).

    Attributes:
        name: the stage.
        slots: tasks that may run at once now (of a shared pool: the pool).
        running: tasks that run now.
        tasks: tasks finished.
        rows: rows that finished tasks went through, those left out under ``on_error="skip"`` among them.
        bytes_out: bytes newly made by finished tasks; a view of its input adds nothing.
        busy_s: seconds in which tasks ran, summed over slots.
        done_s: seconds that the finished tasks had run; where tasks take long, it comes in bursts, as `rows` does.
        cpu_s: seconds of processor time they used. `busy_s - cpu_s` is waiting: for storage, for Python's
            lock or for a processor.
        slot_s: seconds of slots offered (slots x time); of a shared pool, the same as `busy_s`.
        starved_s: seconds of free slots with no input ready: upstream is the slower one.
        blocked_s: seconds of free slots with input ready but no memory for the output: downstream is slower.
        queue: outputs finished and not yet taken by the next stage (or the trainer).
        retries: tasks run again after storage failed or a worker died.
    """

    name: str
    slots: int = 0
    running: int = 0
    tasks: int = 0
    rows: int = 0
    bytes_out: int = 0
    busy_s: float = 0.0
    done_s: float = 0.0
    cpu_s: float = 0.0
    slot_s: float = 0.0
    starved_s: float = 0.0
    blocked_s: float = 0.0
    queue: int = 0
    retries: int = 0

    @property
    def occupancy(self) -> float:
        """Share of its slots' time in which tasks ran, 0 to 1; near 1 for long: the stage may be the bottleneck."""
        return min(1.0, self.busy_s / self.slot_s) if self.slot_s > 0 else 0.0

    @property
    def waiting_s(self) -> float:
        """Seconds in which tasks ran without using a processor."""
        return max(0.0, self.busy_s - self.cpu_s)


@dataclass(frozen=True, kw_only=True)
class PipelineStats:
    """A running pipeline since its loader was made (or between two readings, see `since`).

    Attributes:
        stages: one entry a stage, in order.
        elapsed_s: seconds since the loader was made, while an epoch was under way.
        epoch: the epoch under way; once it was read to its end, the next.
        batch: batches of that epoch handed to the trainer.
        batches, rows: batches and rows handed to the trainer, over all epochs.
        step_s: seconds the trainer spent between taking a batch and asking for the next.
        wait_s: seconds the trainer waited for a batch.
        memory_held: bytes in blocks now: inputs, outputs and the batches waiting for the trainer.
        memory_peak: the most bytes held at once.
        memory_resident: resident bytes of this process and its workers; 0 where it was not asked for.
        memory_limit: bytes the pipeline may hold.
        redone: tasks whose output was lost with a worker and made again.
        workers_lost: worker processes that died.
        skipped: files, row groups and batches left out under ``on_error="skip"``.
        allocation: slots in force.
        watched: whether it begins no task that would take the last of the memory (see `pressure`).
    """

    stages: tuple[StageStats, ...]
    elapsed_s: float
    epoch: int
    batch: int
    batches: int
    rows: int
    step_s: float
    wait_s: float
    memory_held: int
    memory_peak: int
    memory_limit: int
    allocation: Allocation
    memory_resident: int = 0
    redone: int = 0
    workers_lost: int = 0
    skipped: int = 0
    watched: bool = False

    @property
    def rows_per_s(self) -> float:
        """Rows handed to the trainer per second."""
        return self.rows / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def wait_share(self) -> float:
        """Share of the trainer's time spent waiting for data, 0 to 1."""
        total = self.step_s + self.wait_s
        return self.wait_s / total if total > 0 else 0.0

    def stage(self, name: str) -> StageStats:
        """The stage called `name`."""
        return next(stage for stage in self.stages if stage.name == name)

    def since(self, earlier: PipelineStats) -> PipelineStats:
        """What happened between an earlier reading and this one; states (slots, memory, queues) are this one's."""
        stages = tuple(
            _minus(now, then, _STAGE_COUNTERS) for now, then in zip(self.stages, earlier.stages, strict=True)
        )
        difference: PipelineStats = _minus(self, earlier, _PIPELINE_COUNTERS, stages=stages)
        return difference


_STAGE_COUNTERS = (
    "tasks", "rows", "bytes_out", "busy_s", "done_s", "cpu_s", "slot_s", "starved_s", "blocked_s", "retries",
)  # fmt: skip
_PIPELINE_COUNTERS = (
    "elapsed_s", "batches", "rows", "step_s", "wait_s", "redone", "workers_lost", "skipped",
)  # fmt: skip


def _minus(now: Any, then: Any, counters: tuple[str, ...], **changes: Any) -> Any:
    values = {field.name: getattr(now, field.name) for field in fields(now)}
    values.update({name: getattr(now, name) - getattr(then, name) for name in counters})
    values.update(changes)
    return type(now)(**values)


class StageMeter:
    """Counts one stage; the scheduler calls it under its lock."""

    __slots__ = ("name", *_STAGE_COUNTERS)

    def __init__(self, name: str) -> None:
        self.name = name
        self.tasks = self.rows = self.bytes_out = self.retries = 0
        self.busy_s = self.done_s = self.cpu_s = self.slot_s = self.starved_s = self.blocked_s = 0.0

    def pass_time(self, seconds: float, running: int, slots: int, *, shared: bool, ready: bool) -> None:
        """`seconds` went by with `running` tasks on `slots` slots; `ready`: input waits that could not start."""
        self.busy_s += seconds * running
        self.slot_s += seconds * (running if shared else max(slots, running))
        free = 0 if shared else max(0, slots - running)
        if ready:
            self.blocked_s += seconds * free
        else:
            self.starved_s += seconds * free

    def add(self, other: StageMeter) -> None:
        """Count what another one has counted besides."""
        for name in _STAGE_COUNTERS:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def read(self, *, slots: int, running: int, queue: int) -> StageStats:
        """A reading."""
        counters = {name: getattr(self, name) for name in _STAGE_COUNTERS}
        return StageStats(name=self.name, slots=slots, running=running, queue=queue, **counters)
