"""`SimulatedTunable`: one simulated job behind the `Tunable` protocol, for tests of what tunes live pipelines.

Its time is the injected clock's; there are no threads, no files and nothing to wait for.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from intune.envs.conditions import Tape
from intune.envs.jobs import Floats, Jobs
from intune.envs.measurement import UNLIMITED, Measurement
from intune.envs.resources import Resources
from intune.envs.simulator import Simulator
from intune.pipelines.allocation import Allocation
from intune.pipelines.budget import LEAST_MEMORY, Budget
from intune.pipelines.errors import ConfigError, LoaderError
from intune.pipelines.metrics import PipelineStats, StageStats

COUNTED = ("rows", "busy", "cpu", "slot", "starved", "blocked")


class SimulatedTunable:
    """One job that runs while its clock runs, in steps of its own interval.

    Readings and new slots take effect between two steps. A job that runs out of memory starts again with one slot
    a stage, as the simulator says, and counts a worker lost.

    Args:
        jobs: of which the one at `row` is taken.
        stages: names of its stages; ``"stage 1"``, … by default.
        row: which job.
        allocation: slots to begin with; by default one a stage.
        tape: the world around the job; by default without chance.
        tick: seconds of a step; by default the job's interval.
        clock: seconds, monotonic. A wait function that moves it makes time pass.

    Raises:
        ConfigError: names that do not fit the stages.
    """

    def __init__(
        self,
        jobs: Jobs,
        *,
        stages: Sequence[str] | None = None,
        row: int = 0,
        allocation: Allocation | Mapping[str, int] | None = None,
        tape: Tape | None = None,
        tick: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        job = jobs.take(slice(row, row + 1))
        count = int(job.present.sum())
        names = tuple(f"stage {at + 1}" for at in range(count)) if stages is None else tuple(stages)
        if len(names) != count:
            raise ConfigError(f"`stages`={names!r} are {len(names)} names, but the job has {count} stages")
        if tick is not None:
            if not 0 < tick < math.inf:
                raise ConfigError(f"`tick`={tick!r} must be seconds above 0")
            job = job.with_(interval=np.array([float(tick)]))
        self.stages: tuple[str, ...] = names
        memory = float(job.memory.sum())
        self.budget = Budget(
            cpus=max(1, int(job.cpus.sum())), memory=int(max(min(memory, UNLIMITED), LEAST_MEMORY))
        )
        self._job = job
        self._tick = float(job.interval[0])
        self._simulator = Simulator(job, tape)
        self._clock = clock
        self._lock = threading.Lock()
        self._began = clock()
        self._done = 0
        self._closed = False
        self._counts = {name: np.zeros(count) for name in COUNTED}
        self._rows = self._step_s = self._wait_s = self._cpu_s = 0.0
        self._lost = 0
        self._peak = 0.0
        self._last: Measurement | None = None
        self._allocation = Allocation.per_stage(dict.fromkeys(names, 1))
        if allocation is not None:
            self._allocate(self._allocation.merged(allocation, names))

    def stats(self) -> PipelineStats:
        """Counters up to the last full step.

        Raises:
            LoaderError: closed.
        """
        with self._lock:
            self._advance()
            last = self._last
            queued = 0.0 if last is None else float(last.memory_queued[0])
            resident = float(self._job.base_bytes[0]) if last is None else float(last.memory_used[0])
            return PipelineStats(
                stages=tuple(self._stage(at, name) for at, name in enumerate(self.stages)),
                elapsed_s=self._done * self._tick,
                epoch=0,
                batch=int(self._rows),
                batches=int(self._rows),
                rows=int(self._rows),
                step_s=self._step_s,
                wait_s=self._wait_s,
                memory_held=int(queued),
                memory_peak=int(self._peak),
                memory_limit=self.budget.memory,
                memory_resident=int(resident),
                workers_lost=self._lost,
                allocation=self._allocation,
            )

    def resize(self, allocation: Allocation | Mapping[str, int]) -> None:
        """Other slots from the next step on.

        Raises:
            LoaderError: closed.
            ConfigError: an unknown stage, or numbers that are none.
        """
        with self._lock:
            self._advance()
            self._allocate(self._allocation.merged(allocation, self.stages))

    def resources(self) -> Resources:
        """What the simulated machine says: for `Observer` and the live environment."""
        with self._lock:
            self._advance()
            last = self._last
            memory = float(self._job.memory[0, 0])
            return Resources(
                cpu_s=self._cpu_s,
                resident=float(self._job.base_bytes[0] if last is None else last.memory_used[0]),
                cpus=float(self._job.cpus.sum() if last is None else last.cpus[0]),
                memory_limit=min(memory if last is None else float(last.memory_limit[0]), UNLIMITED),
            )

    def close(self) -> None:
        """End the job: `stats` and `resize` raise from now on."""
        self._closed = True

    def _advance(self) -> None:
        if self._closed:
            raise LoaderError("the simulated job is closed; make a new one")
        # A step ends a touch early rather than being missed by rounding.
        due = math.floor((self._clock() - self._began) / self._tick + 1e-6)
        while self._done < due:
            measured = self._simulator.run()
            self._done += 1
            self._count(measured)
            if measured.killed[0]:
                self._lost += 1
                self._read_back()

    def _count(self, measured: Measurement) -> None:
        seconds = self._tick
        count = len(self.stages)
        pooled = measured.pool[0] > 0
        slots = measured.slots[0, :count]
        there = measured.busy[0, :count] if pooled else slots
        shares: dict[str, Any] = {
            "rows": measured.rate,
            "busy": measured.busy,
            "cpu": measured.cpu,
        }
        for name, values in shares.items():
            self._counts[name] += values[0, :count] * seconds
        self._counts["slot"] += there * seconds
        if not pooled:
            self._counts["starved"] += measured.starved[0, :count] * slots * seconds
            self._counts["blocked"] += measured.blocked[0, :count] * slots * seconds
        rows = float(measured.delivered[0]) * seconds
        step = min(rows * float(measured.step[0]), seconds)
        self._rows += rows
        self._step_s += step
        self._wait_s += seconds - step
        self._cpu_s += float(measured.cpus_used[0]) * seconds
        self._peak = max(self._peak, float(measured.memory_queued[0]))
        self._last = measured

    def _stage(self, at: int, name: str) -> StageStats:
        counts = {key: float(values[at]) for key, values in self._counts.items()}
        block = max(float(self._job.block_rows[0, at]), 1.0)
        row = float(self._job.row_bytes[0, at])
        queued = 0.0 if self._last is None else float(self._last.queued_bytes[0, at])
        running = 0.0 if self._last is None else float(self._last.busy[0, at])
        return StageStats(
            name=name,
            slots=self._allocation.of(name),
            running=round(running),
            tasks=int(counts["rows"] / block),
            rows=int(counts["rows"]),
            bytes_out=int(counts["rows"] * row),
            busy_s=counts["busy"],
            cpu_s=counts["cpu"],
            slot_s=counts["slot"],
            starved_s=counts["starved"],
            blocked_s=counts["blocked"],
            queue=round(queued / max(block * row, 1.0)),
        )

    def _allocate(self, wanted: Allocation) -> None:
        width = self._job.stages
        slots: Floats = np.ones((1, width))
        slots[0, : len(self.stages)] = [wanted.of(name) for name in self.stages]
        self._simulator.allocate(slots, np.array([float(wanted.pool if wanted.is_shared else 0)]))
        self._allocation = wanted
        self._read_back()

    def _read_back(self) -> None:
        """The allocation as the simulator has it: cut to what is feasible, or that of a new start."""
        pool = int(self._simulator.pool[0])
        memory = self._allocation.memory
        if pool:
            self._allocation = Allocation.shared(pool, memory=memory)
        else:
            slots = self._simulator.slots[0].astype(int)
            counts = {name: max(1, int(slots[at])) for at, name in enumerate(self.stages)}
            self._allocation = Allocation.per_stage(counts, memory=memory)
