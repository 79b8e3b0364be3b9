"""`Tasks`: where every task of an epoch stands, which could start, and what nobody needs any more.

When one starts is decided in `scheduler.py`. Tasks are pure, so an output that went with its worker is made again,
along with those of its inputs that had been let go.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from intune.pipelines.plan import Plan

Key = tuple[int, int]
"""A task and its output: (level, index)."""


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
class _Level:
    records: dict[int, _Record] = field(default_factory=dict)
    ready: list[int] = field(default_factory=list)  # a heap
    done: int = 0

    def is_ready(self, index: int) -> bool:
        record = self.records.get(index)
        return record is not None and record.state is State.READY


class Tasks:
    """The tasks of an epoch.

    Args:
        plan: which there are.
        first_batch: batches before this one are not made.
        offered: how many tasks of the first level may start at all.
        in_order: deliver in plan order; else as they are finished.

    Attributes:
        head: the first output of the last level that was not delivered.
        redone: outputs that were lost and are made again.
    """

    def __init__(self, plan: Plan, *, first_batch: int, offered: int, in_order: bool) -> None:
        self._plan = plan
        self._offered = offered
        self._in_order = in_order
        self._levels = [_Level() for _ in plan.levels]
        self._last = len(plan.levels) - 1
        self._first = self._first_tasks(first_batch)
        self._next_source = self._first[0]
        self.head = self._first[-1]
        self.redone = 0
        self._delivered: set[int] = set()
        self._finished: list[int] = []

    # ---- questions -------------------------------------------------------------------------------------------

    @property
    def exhausted(self) -> bool:
        """Whether every output of the last level has been handed over."""
        return self.head >= len(self._plan.levels[-1])

    def deliverable(self) -> bool:
        """Whether `deliver` would return something."""
        if self._in_order:
            record = self._levels[-1].records.get(self.head)
            return record is not None and record.state is State.DONE
        return bool(self._finished)

    def done(self, level: int) -> int:
        """Finished outputs of a level that wait to be taken."""
        return self._levels[level].done

    def next_ready(self, level: int) -> int | None:
        """The first task of a level whose inputs are there."""
        state = self._levels[level]
        ready = state.ready
        while ready and not state.is_ready(ready[0]):  # it was ready twice: its inputs were lost in between
            heapq.heappop(ready)
        if level == 0 and self._next_source < self._offered:
            return min(ready[0], self._next_source) if ready else self._next_source
        return ready[0] if ready else None

    # ---- what happens to them --------------------------------------------------------------------------------

    def offer(self, count: int) -> None:
        """The first `count` tasks of the first level may start from now on."""
        self._offered = min(max(self._offered, count), len(self._plan.levels[0]))

    def start(self, level: int, index: int, now: float) -> Task:
        """The task that is `next_ready` runs."""
        state = self._levels[level]
        if level == 0 and index == self._next_source:
            self._next_source += 1
        else:
            heapq.heappop(state.ready)
        record = state.records.setdefault(index, _Record())
        record.state = State.RUNNING
        record.attempts += 1
        return Task(
            level=level,
            index=index,
            inputs=tuple((level - 1, i) for i in self._inputs(level, index)),
            rows=int(self._plan.levels[level].rows[index]),
            attempt=record.attempts,
            started=now,
        )

    def finish(self, task: Task) -> list[Key]:
        """A task is done; outputs that nobody needs any more."""
        record = self._record(task.key)
        record.state = State.DONE
        self._levels[task.level].done += 1
        freed: list[Key] = []
        if task.level == self._last:
            record.users = 1
            if not self._in_order:
                self._finished.append(task.index)
        else:
            for consumer in self._consumers(task.level, task.index):
                self._input_done(task.level + 1, consumer, record)
            if record.users == 0:
                freed.append(self._let_go(task.key))
        for key in task.inputs:
            held = self._record(key)
            if held.state is not State.DONE:
                continue  # lost while this task ran on it; being made again for others
            held.users -= 1
            if held.users == 0:
                freed.append(self._let_go(key))
        return freed

    def delay(self, key: Key) -> None:
        """A task that ran did not get done; it waits for `again`."""
        record = self._record(key)
        record.state = State.WAITING
        record.missing = 1  # no input, but that call

    def again(self, key: Key) -> None:
        """Put a task that is not done back: ready if its inputs are there, else waiting, its inputs revived."""
        level, index = key
        record = self._record(key)
        record.state = State.WAITING
        missing = 0
        for i in self._inputs(level, index):
            below = self._record((level - 1, i))
            if below.state is not State.DONE:
                missing += 1
                if below.state is State.GONE:
                    self._revive((level - 1, i))
        record.missing = missing
        if not missing:
            record.state = State.READY
            heapq.heappush(self._levels[level].ready, index)

    def lose(self, keys: Iterable[Key]) -> list[Key]:
        """Outputs are gone. Those that are still needed are made again; the ones that were there at all."""
        lost = [
            (level, index)
            for level, index in keys
            if level != self._last
            and index in self._levels[level].records
            and self._record((level, index)).state is State.DONE
        ]
        for key in lost:
            self._let_go(key)
            for consumer in self._consumers(*key):
                waiting = self._levels[key[0] + 1].records.get(consumer)
                if waiting is None or waiting.state not in (State.WAITING, State.READY):
                    continue
                waiting.state = State.WAITING
                waiting.missing += 1
        for key in lost:
            self._revive(key)
        return lost

    def deliver(self) -> int | None:
        """Hand over the next output of the last level."""
        if not self.deliverable():
            return None
        index = self.head if self._in_order else self._finished.pop(0)
        self._levels[-1].done -= 1
        self._delivered.add(index)
        while self.head in self._delivered:
            self._delivered.discard(self.head)
            self.head += 1
        return index

    def consumed(self, index: int) -> Key:
        """The trainer is done with an output it was handed."""
        record = self._levels[-1].records[index]
        record.users = 0
        record.state = State.GONE
        self._forget()
        return self._last, index

    # ---- inside ----------------------------------------------------------------------------------------------

    def _record(self, key: Key) -> _Record:
        return self._levels[key[0]].records[key[1]]

    def _inputs(self, level: int, index: int) -> range:
        this = self._plan.levels[level]
        return range(int(this.first[index]), int(this.last[index])) if level else range(0)

    def _consumers(self, level: int, index: int) -> range:
        first, last = self._plan.consumers[level]
        return range(max(int(first[index]), self._first[level + 1]), int(last[index]))

    def _input_done(self, level: int, index: int, made: _Record) -> None:
        """One input of a task has come; counts the task as a user of it."""
        state = self._levels[level]
        record = state.records.get(index)
        if record is None:
            record = state.records[index] = _Record(missing=len(self._inputs(level, index)))
        if record.state in (State.DONE, State.GONE):
            return
        made.users += 1
        if record.state is State.WAITING:
            record.missing -= 1
            if record.missing == 0:
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
            for consumer in self._consumers(level, index)
        ):
            return
        self.redone += 1
        record.users = 0
        for i in self._inputs(level, index):
            below = self._record((level - 1, i))
            if below.state is State.DONE:
                below.users += 1
        self.again(key)

    def _let_go(self, key: Key) -> Key:
        self._record(key).state = State.GONE
        self._levels[key[0]].done -= 1
        return key

    def _forget(self) -> None:
        """Drop the records of tasks that nothing from the next delivery on can need."""
        index = self.head
        for level in range(self._last, -1, -1):
            this = self._plan.levels[level]
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
        top = self._plan.levels[-1]
        index = 0
        while index < len(top) and int(top.stop[index]) <= first_batch:
            index += 1
        firsts = [index]
        for level in reversed(self._plan.levels[1:]):
            index = int(level.first[index]) if index < len(level) else int(level.last[-1])
            firsts.append(index)
        return list(reversed(firsts))
