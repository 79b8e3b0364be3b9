"""Which task may start next. No threads, no clock, no data: executors call it under their lock with the time.

It knows the plan's tasks and their state, the slots of each stage, what memory blocks hold, and what is to be
delivered next; it decides order, admission and retries. It never sees a payload.

- *Order.* Within a stage the task needed earliest goes first; between stages the one nearest to delivery.
- *Memory.* A task starts only if what is held, what running tasks will make and what later stages' slots may
  make fit the limit; the task next in order may always run, so the pipeline cannot deadlock. Where the size of
  what is read can only be guessed, no others are begun before one has shown it.
- *Loss.* Tasks are pure, so an output that went with its worker is made again, along with those of its inputs
  that had been let go.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np

from intune.pipelines.allocation import Allocation
from intune.pipelines.memory import MemoryLedger
from intune.pipelines.metrics import StageMeter, StageStats
from intune.pipelines.plan import Plan

LOOK_AGAIN_S = 0.05
"""Seconds after which a task is tried again for which the system had no memory."""

Key = tuple[int, int]
"""A task and its output: (level, index)."""

DECODE_OVERHEAD = 0.5
"""While a row group is decoded its encoded pages are held too; they are at most about half of what they make."""


class State(Enum):
    """Where a task stands."""

    WAITING = "waiting"
    READY = "ready"
    RUNNING = "running"
    DONE = "done"
    GONE = "gone"  # done, and its output let go


@dataclass(slots=True)
class _Record:
    """What is known of a task that has been touched."""

    state: State = State.WAITING
    missing: int = 0
    users: int = 0
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class Task:
    """A task to run now: do it on `inputs`, then call `Scheduler.finish` or `fail`."""

    level: int
    index: int
    inputs: tuple[Key, ...]
    rows: int
    attempt: int
    started: float

    @property
    def key(self) -> Key:
        """Which output it makes."""
        return self.level, self.index


@dataclass(slots=True)
class _LevelState:
    stage: int
    view: bool
    records: dict[int, _Record] = field(default_factory=dict)
    ready: list[int] = field(default_factory=list)
    running: int = 0
    done: int = 0
    next_source: int = 0


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
        self.in_order = in_order
        self.offered = len(plan.levels[0]) if offered is None else offered
        self.ledger = ledger if ledger is not None else MemoryLedger()
        self.meters = meters if meters is not None else {name: StageMeter(name) for name in stages}
        self.redone = 0
        self._pressed = pressed
        self._look_again = math.inf
        self._ended = 0
        self._levels = [
            _LevelState(stage=self.stages.index(level.stage), view=level.view) for level in plan.levels
        ]
        self._last = len(self._levels) - 1
        # The first tasks of an epoch are smaller than most, the last one may be.
        self._typical_rows = [int(level.rows.max(initial=0)) for level in plan.levels]
        self._bytes_per_row = [
            0.0 if state.view else plan.row_bytes
            for state, level in zip(self._levels, plan.levels, strict=True)
        ]
        # Of which levels it is known how large their outputs are, more or less.
        self._sized = [not plan.guessed] * len(self._levels)
        self._recall()
        self._running = [0] * len(self.stages)
        self._tasks: dict[Key, Task] = {}
        self._promised: dict[Key, int] = {}
        self._promise = 0
        self._over: Key | None = None
        self._delayed: list[tuple[float, Key]] = []
        self._held_back = [False] * len(self.stages)
        self._now = now
        self._minimum = self.minimum_bytes()
        self._working_set = self._estimate_working_set()
        self._first = self._first_tasks(first_batch)
        for state, first in zip(self._levels, self._first, strict=True):
            state.next_source = first
        self._head = self._first[-1]
        self._delivered: set[int] = set()
        self._finished: list[int] = []

    # ---- questions -------------------------------------------------------------------------------------------

    @property
    def exhausted(self) -> bool:
        """Whether every output of the last level has been handed over."""
        return self._head >= len(self.plan.levels[-1])

    @property
    def running(self) -> int:
        """Tasks that run now."""
        return len(self._tasks)

    def running_tasks(self) -> list[Task]:
        """Tasks that run now."""
        return list(self._tasks.values())

    @property
    def limit(self) -> int:
        """Bytes that may be held now: what the allocation says, else what its slots can use; at least what one
        delivery takes, the budget at most."""
        wanted = self._working_set if self.allocation.memory is None else self.allocation.memory
        return min(self.memory, max(wanted, self._minimum))

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
        if self.in_order:
            record = self._levels[-1].records.get(self._head)
            return record is not None and record.state is State.DONE
        return bool(self._finished)

    def queue(self, stage: int) -> int:
        """Finished outputs of a stage that wait to be taken."""
        return sum(state.done for state in self._levels if state.stage == stage)

    def read(self) -> tuple[StageStats, ...]:
        """What was measured of every stage."""
        return tuple(
            self.meters[name].read(
                slots=self.allocation.of(name), running=self._running[index], queue=self.queue(index)
            )
            for index, name in enumerate(self.stages)
        )

    def minimum_bytes(self) -> int:
        """About what must be held at once for anything to be delivered: all that goes into one output, at every
        level (of a shuffle, blocks stay until the last of their window is put together), and the output before,
        which the trainer still has."""
        first = np.arange(len(self.plan.levels[-1]), dtype=np.int64)
        last = first + 1
        total = 0
        in_hand = 0
        for level, size in zip(reversed(self.plan.levels), reversed(self._bytes_per_row), strict=True):
            before = np.zeros(len(level) + 1, dtype=np.int64)
            np.cumsum(level.rows, out=before[1:])
            most = int((before[last] - before[first]).max() * size)
            total += most
            in_hand = in_hand or most
            first, last = level.first[first], level.last[last - 1]
        return total + in_hand

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
        self._wake(now)
        self._look_again = math.inf
        pool_full = self.allocation.is_shared and len(self._tasks) >= self.allocation.pool
        for stage in range(len(self.stages)):
            self._held_back[stage] = False
        for level in range(self._last, -1, -1):
            state = self._levels[level]
            if pool_full or self._running[state.stage] >= self.allocation.of(self.stages[state.stage]):
                continue
            index = self._next_ready(level)
            if index is None:
                continue
            if not self._admit(level, index):
                self._held_back[state.stage] = True
                continue
            return self._start(level, index, now)
        return None

    def _next_ready(self, level: int) -> int | None:
        """The first task of a level whose inputs are there."""
        state = self._levels[level]
        ready = state.ready
        while ready and state.records[ready[0]].state is not State.READY:
            heapq.heappop(ready)
        if level == 0 and state.next_source < self.offered:
            return min(ready[0], state.next_source) if ready else state.next_source
        return ready[0] if ready else None

    def _estimate(self, level: int, index: int) -> int:
        rows = int(self.plan.levels[level].rows[index])
        extra = 1.0 + DECODE_OVERHEAD if level == 0 else 1.0
        return int(rows * self._bytes_per_row[level] * extra)

    def _admit(self, level: int, index: int) -> bool:
        """Whether a task's output fits; remembers that the next in order was let through above the limit."""
        used = self.ledger.held + self._promise
        estimate = self._estimate(level, index)
        ahead = int(self.plan.need[level][index]) > self._head
        if ahead and not self._sized[0]:
            return False
        limit = self.limit
        if self._pressed(len(self._tasks), self._ended):
            limit, self._look_again = 0, self._now + LOOK_AGAIN_S
        if used + estimate + self._reserve(level, index) <= limit:
            return True
        if ahead:
            return False
        if used + estimate <= limit:
            return True
        if self._over is not None:
            return False
        self._over = (level, index)
        return True

    def _reserve(self, level: int, index: int) -> int:
        """Room to leave for the slots of later stages, lest blocks read ahead keep them from running."""
        total = 0
        for later in range(level + 1, self._last + 1):
            state = self._levels[later]
            if state.view:
                continue
            typical = int(self._typical_rows[later] * self._bytes_per_row[later])
            free = self.allocation.of(self.stages[state.stage]) - self._running[state.stage]
            total += max(free, 1) * typical
            if self.allocation.is_shared:
                return total
        return total

    def _start(self, level: int, index: int, now: float) -> Task:
        state = self._levels[level]
        if state.ready and state.ready[0] == index and index in state.records:
            heapq.heappop(state.ready)
        if level == 0 and index == state.next_source:
            state.next_source += 1
        record = state.records.setdefault(index, _Record())
        record.state = State.RUNNING
        record.attempts += 1
        state.running += 1
        self._running[state.stage] += 1
        this = self.plan.levels[level]
        inputs = range(int(this.first[index]), int(this.last[index])) if level else range(0)
        task = Task(
            level=level,
            index=index,
            inputs=tuple((level - 1, i) for i in inputs),
            rows=int(this.rows[index]),
            attempt=record.attempts,
            started=now,
        )
        self._tasks[task.key] = task
        promise = self._estimate(level, index)
        self._promised[task.key] = promise
        self._promise += promise
        return task

    def _stop(self, task: Task) -> _Record:
        state = self._levels[task.level]
        del self._tasks[task.key]
        self._ended += 1
        self._promise -= self._promised.pop(task.key)
        state.running -= 1
        self._running[state.stage] -= 1
        if self._over == task.key:
            self._over = None
        return state.records[task.index]

    # ---- reports from workers --------------------------------------------------------------------------------

    def finish(self, task: Task, now: float, roots: Mapping[Any, int], *, cpu_s: float = 0.0) -> list[Key]:
        """A task is done; `roots` are the buffers its output keeps alive (see `MemoryLedger`).

        Returns:
            Outputs that nobody needs any more; the executor lets go of them.
        """
        self.tick(now)
        record = self._stop(task)
        state = self._levels[task.level]
        record.state = State.DONE
        state.done += 1
        made = self.ledger.add(task.key, roots)
        self._learn(task.level, made, task.rows)
        meter = self.meters[self.stages[state.stage]]
        meter.tasks += 1
        meter.rows += task.rows
        meter.bytes_out += made
        meter.cpu_s += cpu_s
        meter.done_s += max(0.0, now - task.started)
        freed: list[Key] = []
        if task.level == self._last:
            record.users = 1
            if not self.in_order:
                self._finished.append(task.index)
        else:
            first, last = self._consumers(task.level, task.index)
            for consumer in range(first, last):
                self._input_done(task.level + 1, consumer, record)
            if record.users == 0:
                freed.append(self._let_go(task.key))
        for level, index in task.inputs:
            held = self._record((level, index))
            if held.state is not State.DONE:
                continue  # lost while this task ran on it; being made again for others
            held.users -= 1
            if held.users == 0:
                freed.append(self._let_go((level, index)))
        return freed

    def fail(self, task: Task, now: float, *, retry_at: float | None = None) -> None:
        """A task did not get done and is to be tried again, at `retry_at` or at once."""
        self.tick(now)
        record = self._stop(task)
        self.meters[self.stages[self._levels[task.level].stage]].retries += 1
        if retry_at is not None:
            record.state = State.WAITING
            record.missing = 1  # the delay; `_wake` takes it off
            heapq.heappush(self._delayed, (retry_at, task.key))
        else:
            self._make_ready_or_wait(task.level, task.index)

    def lose(self, keys: Iterable[Key], now: float) -> list[Key]:
        """Outputs that went with their worker. Those still needed are made again.

        Returns:
            The outputs that are gone. A running task that takes one and has not got it yet must be failed by
            the executor; one that has it may go on.
        """
        self.tick(now)
        lost = [
            (level, index)
            for level, index in keys
            if level != self._last
            and index in self._levels[level].records
            and self._record((level, index)).state is State.DONE
        ]
        for key in lost:
            record = self._record(key)
            record.state = State.GONE
            self._levels[key[0]].done -= 1
            self.ledger.release(key)
            for consumer in range(*self._consumers(*key)):
                waiting = self._levels[key[0] + 1].records.get(consumer)
                if waiting is None or waiting.state not in (State.WAITING, State.READY):
                    continue
                waiting.state = State.WAITING
                waiting.missing += 1
        for key in lost:
            self._revive(key)
        return lost

    def deliver(self) -> int | None:
        """Hand over the next output of the last level; call `consumed` when the trainer is done with it."""
        if not self.deliverable():
            return None
        index = self._head if self.in_order else self._finished.pop(0)
        self._levels[-1].done -= 1
        self._delivered.add(index)
        while self._head in self._delivered:
            self._delivered.discard(self._head)
            self._head += 1
        return index

    def consumed(self, index: int, now: float) -> Key:
        """The trainer is done with an output it was handed."""
        self.tick(now)
        record = self._levels[-1].records[index]
        record.users = 0
        record.state = State.GONE
        self.ledger.release((self._last, index))
        self._forget()
        return self._last, index

    def offer(self, count: int) -> None:
        """The first `count` tasks of the first level may start from now on: what they work on has become known."""
        self.offered = min(max(self.offered, count), len(self.plan.levels[0]))

    def resize(self, allocation: Allocation, now: float) -> None:
        """Other slots from now on; running tasks finish, the next `take` follows the new numbers."""
        self.tick(now)
        self.allocation = allocation
        self._working_set = self._estimate_working_set()

    # ---- state of tasks --------------------------------------------------------------------------------------

    def _record(self, key: Key) -> _Record:
        return self._levels[key[0]].records[key[1]]

    def _consumers(self, level: int, index: int) -> tuple[int, int]:
        first, last = self.plan.consumers[level]
        return max(int(first[index]), self._first[level + 1]), int(last[index])

    def _input_done(self, level: int, index: int, made: _Record) -> None:
        """One input of a task has come; counts the task as a user of it."""
        state = self._levels[level]
        record = state.records.get(index)
        if record is None:
            this = self.plan.levels[level]
            record = state.records[index] = _Record(missing=int(this.last[index] - this.first[index]))
        if record.state in (State.DONE, State.GONE):
            return
        made.users += 1
        if record.state is State.WAITING:
            record.missing -= 1
            if record.missing == 0:
                record.state = State.READY
                heapq.heappush(state.ready, index)

    def _make_ready_or_wait(self, level: int, index: int) -> None:
        """Put a task that is not done back: ready if its inputs are there, else waiting, its inputs revived."""
        state = self._levels[level]
        record = state.records[index]
        record.state = State.WAITING
        missing = 0
        if level:
            this = self.plan.levels[level]
            for i in range(int(this.first[index]), int(this.last[index])):
                below = self._record((level - 1, i))
                if below.state is not State.DONE:
                    missing += 1
                    if below.state is State.GONE:
                        self._revive((level - 1, i))
        record.missing = missing
        if not missing:
            record.state = State.READY
            heapq.heappush(state.ready, index)

    def _revive(self, key: Key) -> None:
        """Make a lost or let-go output again, if anything yet to start needs it.

        A task that runs has its inputs, or is failed by the executor and then asks for them.
        """
        level, index = key
        record = self._record(key)
        if record.state is not State.GONE:
            return
        above = self._levels[level + 1].records
        if not any(
            consumer not in above or above[consumer].state in (State.WAITING, State.READY)
            for consumer in range(*self._consumers(level, index))
        ):
            return
        self.redone += 1
        record.users = 0
        if level:
            this = self.plan.levels[level]
            for i in range(int(this.first[index]), int(this.last[index])):
                below = self._record((level - 1, i))
                if below.state is State.DONE:
                    below.users += 1
        self._make_ready_or_wait(level, index)

    def _let_go(self, key: Key) -> Key:
        record = self._record(key)
        record.state = State.GONE
        self._levels[key[0]].done -= 1
        self.ledger.release(key)
        return key

    def _wake(self, now: float) -> None:
        while self._delayed and self._delayed[0][0] <= now:
            _, (level, index) = heapq.heappop(self._delayed)
            if self._record((level, index)).state is State.WAITING:
                self._make_ready_or_wait(level, index)

    def _learn(self, level: int, made: int, rows: int) -> None:
        """Bytes per row that a level's outputs add, from what was seen: quick to rise, slow to fall."""
        if rows:
            seen, known = made / rows, self._bytes_per_row[level]
            if made and not self._sized[level]:
                self._size(level, seen)
                return
            self._bytes_per_row[level] = max(seen, 0.9 * known + 0.1 * seen)
            if self._bytes_per_row[level] != known:
                self._working_set = self._estimate_working_set()

    def _size(self, level: int, seen: float) -> None:
        """The first of a level's outputs takes the place of what was guessed of them; of the first level's, also for
        the levels after, whose outputs are as large for all that is known."""
        self._sized[level] = True
        for other in range(level, len(self._levels) if level == 0 else level + 1):
            if other == level or not (self._sized[other] or self._levels[other].view):
                self._bytes_per_row[other] = seen
        self._minimum = self.minimum_bytes()
        self._working_set = self._estimate_working_set()

    def _recall(self) -> None:
        """What was guessed before the first epoch has been seen since."""
        for level, state in enumerate(self._levels):
            meter = self.meters[self.stages[state.stage]]
            if meter.bytes_out and not self._sized[level]:
                self._sized[level] = True
                self._bytes_per_row[level] = meter.bytes_out / meter.rows

    def _estimate_working_set(self) -> int:
        """Bytes with which every slot has one task in hand and one output ahead, beside twice the inputs of one
        delivery: more would only wait. A trainer that is slower than the pipeline so costs no memory."""
        total = 2.0 * self._minimum
        for state, rows, size in zip(self._levels, self._typical_rows, self._bytes_per_row, strict=True):
            if not state.view:
                slots = self.allocation.of(self.stages[state.stage])
                total += 2 * (slots + 1) * rows * size
        return int(total)

    def _forget(self) -> None:
        """Drop the records of tasks that nothing from the next delivery on can need."""
        index = self._head
        for level in range(self._last, -1, -1):
            this = self.plan.levels[level]
            records = self._levels[level].records
            for old in range(self._first[level], index):
                record = records.get(old)
                if record is not None and record.state is not State.GONE:
                    index = old  # handed out of order, or delivered and still held by the trainer
                    break
                records.pop(old, None)
            self._first[level] = max(self._first[level], index)
            if level:
                index = int(this.first[index]) if index < len(this) else int(this.last[-1])

    def _first_tasks(self, first_batch: int) -> list[int]:
        """For each level, the first task that anything from `first_batch` on needs."""
        top = self.plan.levels[-1]
        index = 0
        while index < len(top) and int(top.stop[index]) <= first_batch:
            index += 1
        firsts = [index]
        for level in reversed(self.plan.levels[1:]):
            index = int(level.first[index]) if index < len(level) else int(level.last[-1])
            firsts.append(index)
        return list(reversed(firsts))
