"""`Observer`: measures one running pipeline, interval by interval. What the live environment and the tuner share."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

from intune.envs.measure import SLOTS_PER_CPU, counters, fault, measure
from intune.envs.measurement import Measurement
from intune.envs.resources import ResourceReader, Resources
from intune.envs.tunable import Tunable, check_tunable, give, reads_resident
from intune.pipelines.allocation import Allocation
from intune.pipelines.errors import ConfigError
from intune.pipelines.metrics import PipelineStats


class Observer:
    """Reads the counters of `tunable`; each call of `measure` tells what happened since the one before.

    Make it before the trainer has built its model if that can be, or give `memory_base`.

    Args:
        tunable: the pipeline.
        resources: reads what the machine says; by default a `ResourceReader`.
        memory_base: resident bytes before the pipeline had any slot; by default what is resident now, without the
            blocks that the pipeline holds.
        slots_per_cpu: slots that may be given out, per CPU.
        memory_bandwidth: bytes/s between processors and memory at most; NaN if unknown.
        clock: seconds, monotonic.

    Attributes:
        fault: counter that makes the last interval none, as `measure.fault` tells it; empty where none does.

    Raises:
        ConfigError: something that is not tunable, tells of other stages than it has, or numbers that make no sense.
    """

    def __init__(
        self,
        tunable: Tunable,
        *,
        resources: Callable[[], Resources] | None = None,
        memory_base: float | None = None,
        slots_per_cpu: float = SLOTS_PER_CPU,
        memory_bandwidth: float = math.nan,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not isinstance(slots_per_cpu, int | float) or not 1.0 <= slots_per_cpu < math.inf:
            raise ConfigError(f"`slots_per_cpu`={slots_per_cpu!r} must be 1 or more and finite")
        if memory_base is not None and not memory_base >= 0:
            raise ConfigError(f"`memory_base`={memory_base!r} must be bytes, 0 or more")
        self.tunable = check_tunable(tunable)
        self.slots_per_cpu = float(slots_per_cpu)
        self._resident = reads_resident(tunable)
        self._elsewhere = getattr(tunable, "executor", None) == "ray"
        if resources is None:
            resources = ResourceReader(tunable.budget, children=not self._elsewhere)
        self._read_resources = resources
        self._names = tuple(tunable.stages)
        self._bandwidth = memory_bandwidth
        self._clock = clock
        self._before = self._stats()
        self.fault = ""
        self._resources = self._look()
        self._changed_at = self._read_at = clock()
        self._took: dict[str, float] = {}
        if memory_base is None:
            resident = self._before.memory_resident or self._resources.resident
            memory_base = max(0.0, resident - self._before.memory_held)
        self._base = float(memory_base)

    @property
    def memory_base(self) -> float:
        """Resident bytes without the pipeline's blocks."""
        return self._base

    @property
    def allocation(self) -> Allocation:
        """Slots in force when counters were last read."""
        return self._before.allocation

    def skip(self) -> None:
        """Begin an interval now; what happened before it is left out."""
        self._before, self._resources = self._stats(), self._look()
        self._read_at = self._clock()

    def measure(self) -> Measurement:
        """What happened since the last call (or `skip`). One job, N = 1.

        Raises:
            IntuneError: the pipeline is over, tells of other stages than at first, or of resources that cannot be.
        """
        stats, resources = self._stats(), self._look()
        if stats.allocation != self._before.allocation:
            self._changed_at = self._clock()  # somebody else gave other slots, some time in this interval
        now = self._clock()
        measured = measure(
            stats,
            self._before,
            resources=resources,
            resources_before=self._resources,
            memory_base=self._base,
            memory_left=self._least_left(now - self._read_at),
            since_change=max(0.0, self._clock() - self._changed_at),
            slots_per_cpu=self.slots_per_cpu,
            elsewhere=self._elsewhere,
            memory_bandwidth=self._bandwidth,
        )
        self.fault = fault(stats, self._before)
        self._note_tasks(stats)
        self._before, self._resources, self._read_at = stats, resources, now
        return measured

    def _least_left(self, seconds: float) -> float:
        """Of a pipeline that looks at memory while it runs."""
        look = getattr(self.tunable, "least_left", None)
        left = look(seconds) if callable(look) else None
        return math.nan if left is None else float(left)

    def _note_tasks(self, stats: PipelineStats) -> None:
        before = {stage.name: stage for stage in self._before.stages}
        for stage in stats.stages:
            ended = stage.tasks - before[stage.name].tasks if stage.name in before else 0
            if ended > 0:
                # A pipeline that does not tell how long its tasks took tells how long it was at them.
                counter = "done_s" if stage.done_s > 0 else "busy_s"
                self._took[stage.name] = (
                    getattr(stage, counter) - getattr(before[stage.name], counter)
                ) / ended

    def tasks(self) -> int:
        """Tasks that the busiest stage finished since the last reading; 0 while another one that does any finished
        none. (Stages whose work is part of another's do none.)"""
        before = {stage.name: stage for stage in self._before.stages}
        counts = {
            stage.busy_s - before[stage.name].busy_s: stage.tasks - before[stage.name].tasks
            for stage in self._stats().stages
            if stage.tasks > 0 and stage.name in before
        }
        return counts[max(counts)] if counts and min(counts.values()) > 0 else 0

    def elapsed(self) -> float:
        """Seconds that lay within epochs since the last reading; negative where the pipeline counts anew."""
        return self.tunable.stats().elapsed_s - self._before.elapsed_s

    def begun(self) -> bool:
        """Whether anything was handed over so far."""
        stats = self.tunable.stats()
        return stats.rows > 0 or stats.batches > 0

    def passage(self) -> float:
        """Seconds that tasks took lately on average, summed over the stages: what is under way is through by then."""
        return sum(self._took.values())

    def resident(self) -> float:
        """Bytes resident now."""
        return float(self._stats().memory_resident or self._look().resident)

    def resize(self, allocation: Allocation | Mapping[str, int]) -> None:
        """Give slots through the pipeline's own `resize`, and note when.

        Raises:
            IntuneError: the pipeline is over, or the allocation makes no sense.
        """
        give(self.tunable, allocation)
        self.skip()
        self._changed_at = self._clock()

    def _stats(self) -> PipelineStats:
        stats: Any = self.tunable.stats
        read: Any = stats(resident=True) if self._resident else stats()
        if not isinstance(read, PipelineStats):
            raise ConfigError(
                f"`stats()` of a {type(self.tunable).__name__} gave {type(read).__name__}; it must give "
                "intune.pipelines.metrics.PipelineStats"
            )
        told = tuple(stage.name for stage in read.stages)
        if told != self._names:
            raise ConfigError(
                f"`stats()` of a {type(self.tunable).__name__} tells of the stages {list(told)}, but its `stages` are "
                f"{list(self._names)}; give the same in the same order, as long as it is tuned"
            )
        for what, value in counters(read):
            if not isinstance(value, Real):
                raise ConfigError(
                    f"`stats()` of a {type(self.tunable).__name__} gave {what}={value!r}; it must give a number there"
                )
        return read

    def _look(self) -> Resources:
        read = self._read_resources()
        for name in ("cpus", "memory_limit"):
            value = getattr(read, name, None)
            most = math.inf if name == "memory_limit" else sys.float_info.max  # memory may have no limit
            if not isinstance(value, Real) or not -math.inf < float(value) <= most:
                raise ConfigError(
                    f"`resources()` gave `{name}`={value!r}; it must give intune.envs.resources.Resources with a "
                    "number there (`memory_limit`: inf where there is no limit)"
                )
        return read
