"""What the adapters of this folder share: it counts for `stats()` and remembers what `resize()` was given.

An adapter is `Tunable` with four names: `stages`, `budget`, `stats`, `resize`. This has them; what is left to the
adapter is to do the work with as many slots as it was given, and to say what it did.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

from intune.pipelines import Allocation, Budget
from intune.pipelines.metrics import PipelineStats, StageMeter


class Counting:
    """See the module."""

    pools = False
    """Every stage has slots of its own: the engines here cannot share them."""

    def __init__(self, stages: tuple[str, ...], budget: Budget) -> None:
        self.stages = stages
        self.budget = budget
        self.allocation = Allocation.per_stage(dict.fromkeys(stages, 1))
        self._meters = {name: StageMeter(name) for name in stages}
        self._lock = threading.Lock()
        self._elapsed = self._step = self._wait = 0.0
        self._batches = self._rows = 0
        self._since: float | None = None

    def resize(self, allocation: Allocation | Mapping[str, int]) -> None:
        """Other slots from the next piece of work on."""
        with self._lock:
            self._pass_time()
            self.allocation = self.allocation.merged(allocation, self.stages)

    def stats(self) -> PipelineStats:
        """What was counted so far."""
        with self._lock:
            self._pass_time()
            return PipelineStats(
                stages=tuple(
                    self._meters[name].read(slots=self.allocation.of(name), running=0, queue=0)
                    for name in self.stages
                ),
                elapsed_s=self._elapsed, epoch=0, batch=self._batches, batches=self._batches, rows=self._rows,
                step_s=self._step, wait_s=self._wait, memory_held=0, memory_peak=0, memory_limit=self.budget.memory,
                allocation=self.allocation,
            )  # fmt: skip

    def running(self, is_running: bool) -> None:
        """From now on there is (or is no) work under way."""
        with self._lock:
            self._pass_time()
            self._since = time.monotonic() if is_running else None

    def did(self, stage: str, *, rows: int, busy: float, cpu: float) -> None:
        """A task of a stage ended that took so many seconds, and so many of a processor."""
        with self._lock:
            meter = self._meters[stage]
            meter.tasks += 1
            meter.rows += rows
            meter.busy_s += busy
            meter.cpu_s += cpu

    def delivered(self, rows: int, *, waited: float, step: float) -> None:
        """The trainer took so many rows, waited so long for them, and worked so long on those before."""
        with self._lock:
            self._batches += 1
            self._rows += rows
            self._wait += waited
            self._step += step

    def _pass_time(self) -> None:
        if self._since is not None:
            now = time.monotonic()
            seconds, self._since = now - self._since, now
            self._elapsed += seconds
            for name, meter in self._meters.items():
                meter.slot_s += seconds * self.allocation.of(name)
                meter.starved_s = max(0.0, meter.slot_s - meter.busy_s)
