"""Pipelines in virtual time: the real plan and the real scheduler, tasks that only take time. No noise, no machine.

What a twin makes of *these* shows what the physics leaves out (tasks come whole, bursts, admission, order), apart
from what a busy machine adds. Processors are shared evenly by the tasks that compute; Python's lock is held by one
task at a time; decoding is done by as many tasks as there are processors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from intune.envs.measure import measure
from intune.envs.measurement import Measurement
from intune.envs.probe import GAP, LONGER, steady_rate
from intune.envs.resources import Resources
from intune.pipelines import Allocation, PipelineStats
from intune.pipelines.plan import Order, Plan, RowGroups, ShuffleSpec, make_plan
from intune.pipelines.scheduler import Scheduler
from intune.pipelines.tasks import Key, Task

ROW_BYTES, GROUP_ROWS, GROUPS, BATCH = 264, 65_536, 128, 8192
BASE_BYTES = 4e8
TASK_S = 50e-6
"""Seconds that a task costs beside its rows."""
HAND_OVER_S = 20e-6
DONE = 1e-12
DECODE = 1.5
"""Working set of a task that reads, in multiples of what it makes: encoded pages beside decoded ones."""


@dataclass(frozen=True, kw_only=True)
class VirtualSpec:
    """A pipeline: load, shuffle if asked for, batch, transform, transfer.

    Attributes:
        cpu, wait: seconds per row by stage; those not named cost next to nothing.
        lock: stages that hold Python's lock while they compute.
        shuffle: row groups of its window, 0 for none.
        step: seconds per batch that the trainer takes.
        cpus: processors.
        together: what they do at once when all are busy, as a share of what they do one at a time (hyperthreads).
        memory: bytes that blocks may hold.
        most: slots of the main stages at most.
    """

    cpu: Mapping[str, float] = field(default_factory=dict)
    wait: Mapping[str, float] = field(default_factory=dict)
    lock: frozenset[str] = frozenset()
    shuffle: int = 0
    step: float = 0.0
    cpus: int = 2
    together: float = 1.0
    memory: int = 3 << 30
    most: int = 4


_LIGHT = {"load": 2.7e-7, "transform": 2e-7, "batch": 4e-9, "transfer": 4e-9}
_MIXED = {**_LIGHT, "shuffle": 1.5e-7}
_LOCK = frozenset({"transform"})

SPECS: Mapping[str, VirtualSpec] = {
    "arithmetic": VirtualSpec(cpu=_LIGHT, wait={"load": 2e-8}),
    "arithmetic, hyperthreads": VirtualSpec(cpu=_LIGHT, wait={"load": 2e-8}, together=0.65),
    "arithmetic, shuffled": VirtualSpec(cpu=_MIXED, wait={"load": 2e-8}, shuffle=8),
    "heavy arithmetic": VirtualSpec(cpu={**_LIGHT, "transform": 1.6e-6}),
    "Python loop": VirtualSpec(cpu={**_LIGHT, "transform": 5e-7}, lock=_LOCK),
    "Python loop, shuffled": VirtualSpec(cpu={**_MIXED, "transform": 9e-7}, lock=_LOCK, shuffle=4),
    "remote service": VirtualSpec(
        cpu={**_LIGHT, "transform": 1e-8}, wait={"transform": 0.03 / 32_768}, most=16
    ),
    "trainer 12 ms a batch": VirtualSpec(cpu=_LIGHT, step=0.012),
    "trainer 40 ms, shuffled": VirtualSpec(
        cpu={**_MIXED, "transform": 9e-7}, lock=_LOCK, shuffle=4, step=0.04
    ),
    "storage at 5 ms": VirtualSpec(cpu=_LIGHT, wait={"load": 0.02 / GROUP_ROWS}, most=8),
    "storage at 40 ms": VirtualSpec(cpu=_LIGHT, wait={"load": 0.055 / GROUP_ROWS}, most=12),
    "storage at 150 ms": VirtualSpec(cpu=_LIGHT, wait={"load": 0.165 / GROUP_ROWS}, most=16),
    "storage at 150 ms, shuffled": VirtualSpec(
        cpu=_MIXED, wait={"load": 0.165 / GROUP_ROWS}, shuffle=4, most=16
    ),
}


@dataclass(slots=True)
class _Running:
    """A task under way: first it waits, then it computes."""

    task: Task
    stage: str
    wait: float
    cpu: float
    cost: float
    decodes: bool
    admitted: bool = False

    @property
    def computes(self) -> bool:
        return self.wait <= DONE and (self.admitted or not self.decodes)


class VirtualPipeline:
    """One allocation of a pipeline, from the beginning of an epoch on."""

    def __init__(
        self, spec: VirtualSpec, allocation: Allocation, *, noise: float = 0.03, seed: int = 0
    ) -> None:
        self.spec = spec
        self.plan, self.stages = plan_of(spec)
        self._scheduler = Scheduler(self.plan, self.stages, allocation=allocation, memory=spec.memory)
        self._rng, self._noise = np.random.default_rng(seed), noise
        self._roots: dict[Key, dict[Key, int]] = {}
        self._running: dict[Key, _Running] = {}
        self._batches = 0
        self._output: int | None = None
        self._busy_until: float | None = None
        self._asked = 0.0
        self.now = 0.0
        self.rows = 0
        self.step_s = self.wait_s = 0.0
        self.over = False

    def advance(self) -> int:
        """To the next event; rows that the trainer took then."""
        while (task := self._scheduler.take(self.now)) is not None:
            self._start(task)
        if self._busy_until is None and (taken := self._take()):
            return taken
        if self.over:
            return 0
        self._pass(self._next_event())
        return 0

    def measurement(self, before: PipelineStats) -> Measurement:
        """What a live pipeline would measure since `before`."""
        resources = Resources(
            cpu_s=0.0, resident=self.resident, cpus=float(self.spec.cpus), memory_limit=1.6e10
        )
        return measure(self.stats(), before, resources=resources, memory_base=BASE_BYTES)

    @property
    def resident(self) -> float:
        """Bytes: base, blocks, and what running tasks make."""
        making = sum(
            each.task.rows * ROW_BYTES * (DECODE if each.task.level == 0 else 1.0)
            for each in self._running.values()
        )
        return BASE_BYTES + self._scheduler.ledger.held + making

    def stats(self) -> PipelineStats:
        """Counters, as a loader's."""
        self._scheduler.tick(self.now)
        ledger = self._scheduler.ledger
        return PipelineStats(
            stages=self._scheduler.read(),
            elapsed_s=self.now,
            epoch=0,
            batch=self.rows // BATCH,
            batches=self.rows // BATCH,
            rows=self.rows,
            step_s=self.step_s,
            wait_s=self.wait_s,
            memory_held=ledger.held,
            memory_peak=ledger.peak,
            memory_limit=self._scheduler.limit,
            memory_resident=int(self.resident),
            allocation=self._scheduler.allocation,
        )

    def _start(self, task: Task) -> None:
        stage = self.plan.levels[task.level].stage
        factor = math.exp(self._rng.normal(0.0, self._noise))
        cpu = self.spec.cpu.get(stage, 0.0) * task.rows * factor + TASK_S
        self._running[task.key] = _Running(
            task=task,
            stage=stage,
            wait=self.spec.wait.get(stage, 0.0) * task.rows * factor,
            cpu=cpu,
            cost=cpu,
            decodes=task.level == 0,
        )

    def _take(self) -> int:
        """Hand a batch to the trainer if there is one; its rows."""
        if not self._batches:
            if self._output is not None:
                self._scheduler.consumed(self._output, self.now)
                self._output = None
            self._output = self._scheduler.deliver()
            if self._output is None:
                self.over = self._scheduler.exhausted
                return 0
            last = self.plan.levels[-1]
            self._batches = int(last.stop[self._output] - last.start[self._output])
        self._batches -= 1
        self.wait_s += self.now - self._asked
        self.rows += BATCH
        self._busy_until = self.now + self.spec.step + HAND_OVER_S
        return BATCH

    def _shares(self) -> tuple[float, float]:
        """Processors that each computing task has: those without the lock, those that share it."""
        computing = [each for each in self._running.values() if each.computes]
        locked = sum(each.stage in self.spec.lock for each in computing)
        entities = len(computing) - locked + (locked > 0)
        there = self.spec.cpus * (self.spec.together if entities > 1 else 1.0)
        each = min(1.0, there / max(entities, 1))
        return each, each / max(locked, 1)

    def _next_event(self) -> float:
        free, locked = self._shares()
        times = [] if self._busy_until is None else [self._busy_until - self.now]
        for each in self._running.values():
            if each.wait > DONE:
                times.append(each.wait)
            elif each.computes:
                times.append(each.cpu / (locked if each.stage in self.spec.lock else free))
        # Nothing runs and nobody computes only if an output has just been let go: look again.
        return max(min(times, default=0.0), 0.0)

    def _pass(self, seconds: float) -> None:
        free, locked = self._shares()
        for each in self._running.values():
            if each.wait > DONE:
                each.wait -= seconds
            elif each.computes:
                each.cpu -= seconds * (locked if each.stage in self.spec.lock else free)
        self.now += seconds
        if self._busy_until is not None:
            self.step_s += seconds
            if self.now >= self._busy_until - DONE:
                self._busy_until, self._asked = None, self.now
        for each in [each for each in self._running.values() if each.computes and each.cpu <= DONE]:
            self._finish(each)
        decoding = sum(each.admitted for each in self._running.values())
        for each in self._running.values():
            if each.decodes and not each.admitted and each.wait <= DONE and decoding < self.spec.cpus:
                each.admitted = True
                decoding += 1

    def _finish(self, done: _Running) -> None:
        task = done.task
        del self._running[task.key]
        if self.plan.levels[task.level].operation in ("load", "merge", "map"):
            roots = {task.key: task.rows * ROW_BYTES}
        else:
            roots = {key: size for taken in task.inputs for key, size in self._roots[taken].items()}
        self._roots[task.key] = roots
        for key in self._scheduler.finish(task, self.now, roots, cpu_s=done.cost):
            self._roots.pop(key, None)


def plan_of(spec: VirtualSpec) -> tuple[Plan, tuple[str, ...]]:
    """An epoch's tasks and the stages' names."""
    steps: list[Any] = [("batch", "batch"), ("transform", "map"), ("transfer", "transfer")]
    if spec.shuffle:
        steps.insert(0, ("shuffle", "shuffle"))
    groups = RowGroups(
        file=np.arange(GROUPS),
        group=np.zeros(GROUPS, dtype=np.int64),
        rows=np.full(GROUPS, GROUP_ROWS),
        row_bytes=float(ROW_BYTES),
    )
    order = Order(
        steps=tuple(steps),
        batch_size=BATCH,
        drop_last=False,
        shuffle=ShuffleSpec(row_groups=spec.shuffle, seed=0) if spec.shuffle else None,
    )
    return make_plan(groups, order, chunk_rows=32_768), ("load", *(name for name, _ in steps))


def run(
    spec: VirtualSpec, allocation: Allocation, *, settle: float = 0.5, seconds: float = 1.3, seed: int = 0
) -> tuple[Measurement, tuple[float, ...]]:
    """What is measured of an allocation once it has settled, and rows of a task of each stage."""
    pipeline = VirtualPipeline(spec, allocation, seed=seed)
    before: PipelineStats | None = None
    began = gap = most = 0.0
    arrivals: list[tuple[float, int]] = []
    while not pipeline.over:
        rows = pipeline.advance()
        if not rows or pipeline.now < settle:
            continue
        if before is None:
            before, began = pipeline.stats(), pipeline.now
        if arrivals:
            gap = max(gap, pipeline.now - arrivals[-1][0])
        arrivals.append((pipeline.now, rows))
        most = max(most, pipeline.resident)
        gone = pipeline.now - began
        if gone >= seconds and (gap <= GAP * gone or gone >= LONGER * seconds):
            break
    assert before is not None
    measured = replace(
        pipeline.measurement(before),
        delivered=np.array([steady_rate(arrivals)]),
        memory_used=np.array([most]),
    )
    return measured, tuple(stage.rows / max(stage.tasks, 1) for stage in pipeline.stats().stages)
