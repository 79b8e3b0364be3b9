"""Which task may start next. No threads, no clock, no data: executors call it under their lock with the time.

It knows where the plan's tasks stand (`tasks.py`), the slots of each stage, what memory blocks hold and tasks will take
(`footprint.py`); it decides order, admission and retries. It never sees a payload.

- *Order.* Within a stage the task needed earliest goes first; between stages the one nearest to delivery.
- *Memory.* A task starts only if what is held, what running tasks will make and what later stages' slots may
  make fit the limit; the task next in order may always run, so the pipeline cannot deadlock. Where the size of
  what is read can only be guessed, no others are begun before one has shown it.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from intune.pipelines.allocation import Allocation
from intune.pipelines.footprint import Footprint
from intune.pipelines.memory import MemoryLedger
from intune.pipelines.metrics import StageMeter, StageStats
from intune.pipelines.plan import Plan
from intune.pipelines.tasks import Key, Task, Tasks

LOOK_AGAIN_S = 0.05
"""Seconds after which a task is tried again for which the system had no memory."""


class Scheduler:
    """State of one epoch.

    Args:
        plan: the epoch's tasks.
        stages: the stages' names, in order; those of the plan's levels and no others.
        allocation: slots, complete over `stages` (see `Allocation.merged`).
        memory: bytes that may be held.
        first_batch: batches before this one are not made.
        offered: how many tasks of the first level may start at all, where that is not known from the beginning;
            see `offer`.
        in_order: deliver in plan order; else as they are finished.
        ledger, meters: carried over from one epoch to the next.
        pressed: whether, with so many tasks running and so many ended, the system's memory is nearly gone; then
            only what the next delivery needs is begun.
    """

    def __init__(
        self,
        plan: Plan,
        stages: Sequence[str],
        *,
        allocation: Allocation,
        memory: int,
        first_batch: int = 0,
        offered: int | None = None,
        in_order: bool = True,
        ledger: MemoryLedger | None = None,
        meters: Mapping[str, StageMeter] | None = None,
        pressed: Callable[[int, int], bool] = lambda running, ended: False,
        now: float = 0.0,
    ) -> None:
        self.plan = plan
        self.stages = tuple(stages)
        self.allocation = allocation
        self.memory = memory
        self.ledger = ledger if ledger is not None else MemoryLedger()
        self.meters = meters if meters is not None else {name: StageMeter(name) for name in stages}
        self._tasks = Tasks(
            plan,
            first_batch=first_batch,
            offered=len(plan.levels[0]) if offered is None else offered,
            in_order=in_order,
        )
        self._footprint = Footprint(plan, allocation, self.meters)
        self._pressed = pressed
        self._look_again = math.inf
        self._ended = 0
        self._stage_of = [self.stages.index(level.stage) for level in plan.levels]
        self._last = len(plan.levels) - 1
        self._running = [0] * len(self.stages)
        self._under_way: dict[Key, tuple[Task, int]] = {}  # with what it is expected to make
        self._promised = 0
        self._over: Key | None = None
        self._delayed: list[tuple[float, Key]] = []
        self._held_back = [False] * len(self.stages)
        self._now = now

    # ---- questions -------------------------------------------------------------------------------------------

    @property
    def exhausted(self) -> bool:
        """Whether every output of the last level has been handed over."""
        return self._tasks.exhausted

    @property
    def redone(self) -> int:
        """Outputs that were lost with a worker and are made again."""
        return self._tasks.redone

    @property
    def running(self) -> int:
        """Tasks that run now."""
        return len(self._under_way)

    def running_tasks(self) -> list[Task]:
        """Tasks that run now."""
        return [task for task, _ in self._under_way.values()]

    @property
    def limit(self) -> int:
        """Bytes that may be held now: what the allocation says, else what its slots can use; at least what one
        delivery takes, the budget at most."""
        wanted = self._footprint.working_set if self.allocation.memory is None else self.allocation.memory
        return min(self.memory, max(wanted, self._footprint.minimum))

    @property
    def next_due(self) -> float | None:
        """When a task may start that may not now, although nothing happens: a delayed retry, or one for which the
        system had no memory; None without one."""
        delayed = self._delayed[0][0] if self._delayed else math.inf
        due = min(delayed, self._look_again)
        return due if due < math.inf else None

    @property
    def short_of_memory(self) -> bool:
        """Whether something waits because the system had no memory for it."""
        return self._look_again < math.inf

    def deliverable(self) -> bool:
        """Whether `deliver` would return something."""
        return self._tasks.deliverable()

    def read(self) -> tuple[StageStats, ...]:
        """What was measured of every stage."""
        waiting = [0] * len(self.stages)
        for level, stage in enumerate(self._stage_of):
            waiting[stage] += self._tasks.done(level)
        return tuple(
            self.meters[name].read(slots=self.allocation.of(name), running=running, queue=queue)
            for name, running, queue in zip(self.stages, self._running, waiting, strict=True)
        )

    # ---- time ------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Book the time since the last call to the stages' counters."""
        seconds = now - self._now
        if seconds <= 0:
            return
        self._now = now
        shared = self.allocation.is_shared
        for index, name in enumerate(self.stages):
            self.meters[name].pass_time(
                seconds,
                self._running[index],
                self.allocation.of(name),
                shared=shared,
                ready=self._held_back[index],
            )

    # ---- decisions -------------------------------------------------------------------------------------------

    def take(self, now: float) -> Task | None:
        """The next task to run, now marked as running; None if none may start."""
        self.tick(now)
        while self._delayed and self._delayed[0][0] <= now:
            self._tasks.again(heapq.heappop(self._delayed)[1])
        self._look_again = math.inf
        self._held_back = [False] * len(self.stages)
        if self.allocation.is_shared and self.running >= self.allocation.pool:
            return None
        for level in range(self._last, -1, -1):
            stage = self._stage_of[level]
            if self._running[stage] >= self.allocation.of(self.stages[stage]):
                continue
            index = self._tasks.next_ready(level)
            if index is None:
                continue
            if not self._admit(level, index):
                self._held_back[stage] = True
                continue
            return self._start(level, index, now)
        return None

    def _admit(self, level: int, index: int) -> bool:
        """Whether a task's output fits; remembers that the next in order was let through above the limit."""
        ahead = int(self.plan.need[level][index]) > self._tasks.head
        if ahead and not self._footprint.known:
            return False
        limit = self.limit
        if self._pressed(self.running, self._ended):
            limit, self._look_again = 0, self._now + LOOK_AGAIN_S
        used = self.ledger.held + self._promised + self._footprint.of(level, index)
        if used + self._reserve(level) <= limit:
            return True
        if ahead:
            return False
        if used <= limit:
            return True
        if self._over is not None:
            return False
        self._over = (level, index)
        return True

    def _reserve(self, level: int) -> int:
        """Room to leave for the slots of later stages, lest blocks read ahead keep them from running."""
        total = 0
        for later in range(level + 1, self._last + 1):
            if self.plan.levels[later].view:
                continue
            stage = self._stage_of[later]
            free = self.allocation.of(self.stages[stage]) - self._running[stage]
            total += max(free, 1) * self._footprint.typical(later)
            if self.allocation.is_shared:
                return total
        return total

    def _start(self, level: int, index: int, now: float) -> Task:
        task = self._tasks.start(level, index, now)
        promised = self._footprint.of(level, index)
        self._under_way[task.key] = task, promised
        self._promised += promised
        self._running[self._stage_of[level]] += 1
        return task

    def _stop(self, task: Task) -> StageMeter:
        _, promised = self._under_way.pop(task.key)
        self._promised -= promised
        self._ended += 1
        stage = self._stage_of[task.level]
        self._running[stage] -= 1
        if self._over == task.key:
            self._over = None
        return self.meters[self.stages[stage]]

    # ---- reports from workers --------------------------------------------------------------------------------

    def finish(self, task: Task, now: float, roots: Mapping[Any, int], *, cpu_s: float = 0.0) -> list[Key]:
        """A task is done; `roots` are the buffers its output keeps alive (see `MemoryLedger`).

        Returns:
            Outputs that nobody needs any more; the executor lets go of them.
        """
        self.tick(now)
        meter = self._stop(task)
        made = self.ledger.add(task.key, roots)
        self._footprint.learn(task.level, made, task.rows)
        meter.tasks += 1
        meter.rows += task.rows
        meter.bytes_out += made
        meter.cpu_s += cpu_s
        meter.done_s += max(0.0, now - task.started)
        return self._released(self._tasks.finish(task))

    def fail(self, task: Task, now: float, *, retry_at: float | None = None) -> None:
        """A task did not get done and is to be tried again, at `retry_at` or at once."""
        self.tick(now)
        self._stop(task).retries += 1
        if retry_at is None:
            self._tasks.again(task.key)
        else:
            self._tasks.delay(task.key)
            heapq.heappush(self._delayed, (retry_at, task.key))

    def lose(self, keys: Iterable[Key], now: float) -> list[Key]:
        """Outputs that went with their worker. Those still needed are made again.

        Returns:
            The outputs that are gone. A running task that takes one and has not got it yet must be failed by
            the executor; one that has it may go on.
        """
        self.tick(now)
        return self._released(self._tasks.lose(keys))

    def deliver(self) -> int | None:
        """Hand over the next output of the last level; call `consumed` when the trainer is done with it."""
        return self._tasks.deliver()

    def consumed(self, index: int, now: float) -> Key:
        """The trainer is done with an output it was handed."""
        self.tick(now)
        (key,) = self._released([self._tasks.consumed(index)])
        return key

    def offer(self, count: int) -> None:
        """The first `count` tasks of the first level may start from now on: what they work on has become known."""
        self._tasks.offer(count)

    def resize(self, allocation: Allocation, now: float) -> None:
        """Other slots from now on; running tasks finish, the next `take` follows the new numbers."""
        self.tick(now)
        self.allocation = allocation
        self._footprint.resize(allocation)

    def _released(self, keys: list[Key]) -> list[Key]:
        for key in keys:
            self.ledger.release(key)
        return keys
