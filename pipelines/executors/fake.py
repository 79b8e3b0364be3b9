"""A deterministic executor for tests and for those who write agents: no threads, virtual time, seeded chance.

It drives the real `Scheduler`. A seeded generator draws how long a task takes, which worker gets it, which
reads fail and which workers die; everything else follows. Tasks do not slow each other down: contention is the
subject of the simulated environment, not of this one. Without `operations` nothing is read or computed and a
batch is just a number.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from intune.pipelines.allocation import Allocation
from intune.pipelines.budget import Budget
from intune.pipelines.errors import ConfigError, IntuneError
from intune.pipelines.memory import roots
from intune.pipelines.metrics import PipelineStats
from intune.pipelines.operations import Operations
from intune.pipelines.plan import Plan
from intune.pipelines.run import finalize
from intune.pipelines.scheduler import Scheduler
from intune.pipelines.tasks import Key, Task


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What tasks cost in virtual time, and what goes wrong.

    Attributes:
        task_s: seconds that any task takes.
        row_s: seconds a row takes besides, by stage; `default_row_s` for those not named.
        spread: durations are drawn evenly from ``1 - spread`` to ``1 + spread`` times these.
        step_s: seconds the trainer spends on one output of the last level (several batches).
        failures: chance that a read fails and is tried again after `retry_s`.
        deaths: chance that a task takes its worker down instead of ending.
    """

    task_s: float = 1e-4
    row_s: Mapping[str, float] = field(default_factory=dict)
    default_row_s: float = 1e-6
    spread: float = 0.5
    step_s: float = 0.0
    failures: float = 0.0
    deaths: float = 0.0
    retry_s: float = 0.1

    def __post_init__(self) -> None:
        for name in ("spread", "failures", "deaths"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(f"`{name}`={getattr(self, name)!r} must be at least 0 and below 1")
        for name in ("task_s", "default_row_s", "step_s", "retry_s"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"`{name}`={getattr(self, name)!r} must be seconds, 0 or more")


@dataclass(frozen=True, slots=True)
class _Running:
    """A task under way: it ends at `ends` unless its worker dies; it has its inputs already."""

    ends: float
    number: int
    worker: int
    task: Task
    inputs: tuple[_Output, ...]

    def __lt__(self, other: _Running) -> bool:
        return (self.ends, self.number) < (other.ends, other.number)


@dataclass(frozen=True, slots=True)
class _Output:
    """What a finished task left: where, which buffers it keeps alive, and the payload with real operations."""

    worker: int
    roots: Mapping[int, int]
    payload: Any


class FakeExecutor:
    """One epoch in virtual time. Iterating gives ``(index of the output, payload)`` as the trainer gets them.

    ::

        fake = FakeExecutor(plan, allocation=Allocation.shared(4), costs=Costs(row_s={"load": 1e-5}), seed=1)
        for output, _ in fake:
            if output % 10 == 9:
                fake.resize(agent(fake.stats()))

    Args:
        plan: the epoch's tasks.
        allocation: slots of all the plan's stages.
        memory: bytes that may be held.
        workers: how many there are; outputs live with the worker that made them, and die with it.
        costs: how long tasks take and what goes wrong.
        output_bytes: bytes a task newly makes; by default its rows times `plan.row_bytes`, nothing for views.
        operations: really run the tasks.
        first_batch, in_order, pressed: as for `Scheduler`.
        seed: of all chance.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        allocation: Allocation,
        memory: int = 1 << 40,
        workers: int = 4,
        costs: Costs | None = None,
        output_bytes: Callable[[Task], int] | None = None,
        operations: Operations | None = None,
        first_batch: int = 0,
        in_order: bool = True,
        pressed: Callable[[int, int], bool] = lambda running, ended: False,
        seed: int = 0,
    ) -> None:
        self.plan = plan
        self.stages = tuple(dict.fromkeys(level.stage for level in plan.levels))
        self.budget = Budget(cpus=workers, memory=memory)
        self.costs = costs if costs is not None else Costs()
        self.now = 0.0
        self.scheduler = Scheduler(
            plan,
            self.stages,
            allocation=allocation,
            memory=memory,
            first_batch=first_batch,
            in_order=in_order,
            pressed=pressed,
        )
        self.workers_lost = 0
        self.delivered: list[int] = []
        self._workers = workers
        self._chance = np.random.default_rng(seed)
        self._bytes = output_bytes if output_bytes is not None else self._usual_bytes
        self._operations = operations
        self._ends: list[_Running] = []  # a heap
        self._outputs: dict[Key, _Output] = {}
        self._made = 0
        self._taken: int | None = None
        self._wait_s = self._step_s = 0.0
        self._rows = 0

    # ---- what a tuner sees -----------------------------------------------------------------------------------

    def resize(self, allocation: Allocation | Mapping[str, int]) -> None:
        """Other slots from now on, as `Loader.resize`."""
        merged = self.scheduler.allocation.merged(allocation, self.stages)
        self.scheduler.resize(merged, self.now)

    def stats(self) -> PipelineStats:
        """As `Loader.stats`, in virtual seconds."""
        self.scheduler.tick(self.now)
        ledger = self.scheduler.ledger
        return PipelineStats(
            stages=self.scheduler.read(),
            elapsed_s=self.now,
            epoch=0,
            batch=len(self.delivered),
            batches=len(self.delivered),
            rows=self._rows,
            step_s=self._step_s,
            wait_s=self._wait_s,
            memory_held=ledger.held,
            memory_peak=ledger.peak,
            memory_limit=self.scheduler.limit,
            redone=self.scheduler.redone,
            workers_lost=self.workers_lost,
            allocation=self.scheduler.allocation,
        )

    # ---- the trainer -----------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        while (index := self.next_output()) is not None:
            yield index, self._outputs[len(self.plan.levels) - 1, index].payload
            self._step_s += self.costs.step_s
            self.run_until(self.now + self.costs.step_s)

    def next_output(self) -> int | None:
        """The next output, once there is one; None at the end. The one before it is let go.

        Raises:
            IntuneError: nothing runs and nothing may start, which must not happen.
        """
        self.consume()
        asked = self.now
        while (index := self.scheduler.deliver()) is None:
            if self.scheduler.exhausted:
                return None
            if not self.advance():
                raise IntuneError(f"deadlock: at {self.now:g} s no task runs and none may start")
        self._wait_s += self.now - asked
        self._taken = index
        self.delivered.append(index)
        self._rows += int(self.plan.levels[-1].rows[index])
        return index

    def consume(self) -> None:
        """Let go of the output that was taken last."""
        if self._taken is not None:
            self._free([self.scheduler.consumed(self._taken, self.now)])
            self._taken = None

    # ---- time ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start every task that may start now."""
        while (task := self.scheduler.take(self.now)) is not None:
            stage = self.plan.levels[task.level].stage
            seconds = self.costs.task_s + task.rows * self.costs.row_s.get(stage, self.costs.default_row_s)
            seconds *= 1.0 + self.costs.spread * float(self._chance.uniform(-1.0, 1.0))
            worker = int(self._chance.integers(self._workers))
            self._made += 1
            inputs = tuple([self._outputs[key] for key in task.inputs])
            heapq.heappush(self._ends, _Running(self.now + seconds, self._made, worker, task, inputs))

    def advance(self) -> bool:
        """Go on to the next event and let it happen; False if there is none."""
        self.start()
        due = self._next_event()
        if due is None:
            return False
        self._happen(due)
        return True

    def run_until(self, time: float) -> None:
        """Let everything happen up to `time`."""
        self.start()
        while (due := self._next_event()) is not None and due <= time:
            self._happen(due)
            self.start()
        self.now = max(self.now, time)
        self.scheduler.tick(self.now)

    def _next_event(self) -> float | None:
        due = [self._ends[0].ends] if self._ends else []
        if self.scheduler.next_due is not None:
            due.append(self.scheduler.next_due)
        return min(due, default=None)

    def _happen(self, due: float) -> None:
        self.now = max(self.now, due)
        if not self._ends or self._ends[0].ends > due:
            return  # a retry is due: `start` takes it up
        running = self._ends[0]
        task = running.task
        if self.costs.deaths and self._chance.random() < self.costs.deaths:
            self.kill([running.worker])
            return
        heapq.heappop(self._ends)
        if self.costs.failures and task.level == 0 and self._chance.random() < self.costs.failures:
            self.scheduler.fail(task, self.now, retry_at=self.now + self.costs.retry_s)
        else:
            self._finish(running)

    def _finish(self, running: _Running) -> None:
        task, inputs = running.task, running.inputs
        payload = None
        if self._operations is not None:
            payload = self._operations.run(task.level, task.index, [made.payload for made in inputs]).payload
            held: dict[int, int] = roots(payload)
            if task.level == len(self.plan.levels) - 1:
                payload = finalize(payload)
        else:
            held = {}
            if self.plan.levels[task.level].view:
                held = {root: size for made in inputs for root, size in made.roots.items()}
            if size := self._bytes(task):
                self._made += 1
                held[-self._made] = size
        self._outputs[task.key] = _Output(running.worker, held, payload)
        self._free(self.scheduler.finish(task, self.now, held))

    def _usual_bytes(self, task: Task) -> int:
        view = self.plan.levels[task.level].view
        return 0 if view else int(task.rows * self.plan.row_bytes)

    # ---- death -----------------------------------------------------------------------------------------------

    def kill(self, workers: Iterable[int]) -> None:
        """These workers die: what they ran and what they kept is gone. Others take their numbers at once.

        A task elsewhere whose input went has, by chance, got it already and goes on, or fails too.
        """
        dead = set(workers)
        self.workers_lost += len(dead)
        last = len(self.plan.levels) - 1
        kept = [key for key, made in self._outputs.items() if made.worker in dead and key[0] != last]
        lost = set(self.scheduler.lose(kept, self.now))
        for key in kept:
            del self._outputs[key]
        alive: list[_Running] = []
        for running in sorted(self._ends):
            needs_lost = not lost.isdisjoint(running.task.inputs)
            if running.worker in dead or (needs_lost and self._chance.random() < 0.5):
                self.scheduler.fail(running.task, self.now)
            else:
                alive.append(running)
        self._ends = alive  # sorted, so a heap

    def _free(self, keys: Iterable[Key]) -> None:
        for key in keys:
            self._outputs.pop(key, None)
