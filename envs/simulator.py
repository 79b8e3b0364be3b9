"""`Simulator`: N simulated jobs that run side by side, each at its own time. The acting part around `model.py`.

The Gymnasium environments, the benchmarks of agents and the calibration all use this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from intune.envs.actions import feasible
from intune.envs.conditions import Tape, quiet
from intune.envs.jobs import Bools, Floats, Ints, Jobs, slot_limit
from intune.envs.measurement import Measurement
from intune.envs.model import Flow, Prepared, State, advance, prepare
from intune.pipelines.errors import ConfigError


class Simulator:
    """N jobs.

    Args:
        jobs: their parameters. Copied.
        tape: the world around them; by default without chance.
        steps: intervals of the tape where none is given.
        restart_seconds: how long a job that ran out of memory stands still before it starts again, with the
            allocation it started from.
    """

    def __init__(
        self, jobs: Jobs, tape: Tape | None = None, *, steps: int = 64, restart_seconds: float = 60.0
    ) -> None:
        self.jobs = jobs.take(np.arange(len(jobs)))
        self.tape = tape if tape is not None else quiet(jobs, steps)
        self.restart_seconds = restart_seconds
        count = len(jobs)
        self._prepared: Prepared = prepare(self.jobs)
        self._all = np.arange(count)
        self.state = State.empty(self.jobs)
        self.slots: Floats = np.where(self.jobs.present, 1.0, 0.0)
        self.pool: Floats = np.zeros(count)
        self.steps: Ints = np.zeros(count, dtype=np.int64)
        self.since_change: Floats = np.zeros(count)
        self._down: Floats = np.zeros(count)
        self.flow: Flow | None = None

    def __len__(self) -> int:
        return len(self.jobs)

    @property
    def limit(self) -> Ints:
        """``[N]`` slots that may be given out now."""
        steps = np.minimum(self.steps, self.tape.steps - 1)
        return slot_limit(
            self.tape.cpus[self._all, steps], self.jobs.slots_per_cpu, self.jobs.present.sum(axis=1)
        )

    def adopt(self, rows: Any, other: Simulator) -> None:
        """Put the jobs of `other` at `rows`, where and how they stand."""
        # Measurements hold arrays of the jobs, the slots and the pool: those are not changed in place.
        jobs = self.jobs
        self.jobs = jobs.with_(
            present=jobs.present.copy(), step=jobs.step.copy(), interval=jobs.interval.copy()
        )
        self.jobs.put(rows, other.jobs)
        self.tape.put(rows, other.tape)
        self._prepared = replace(self._prepared, jobs=self.jobs)
        self._prepared.put(rows, other._prepared)
        self.state.queue[rows] = other.state.queue
        self.state.slots[rows] = other.state.slots
        self.state.running[rows] = other.state.running
        self.slots, self.pool = self.slots.copy(), self.pool.copy()
        self.slots[rows], self.pool[rows] = other.slots, other.pool
        self.steps[rows] = other.steps
        self.since_change[rows] = other.since_change
        self._down[rows] = other._down

    def replace(self, rows: Any, jobs: Jobs, tape: Tape) -> None:
        """Put new jobs at `rows`, at their beginning, one slot a stage."""
        self.adopt(rows, Simulator(jobs, tape))

    def begin_with(self, slots: Any) -> None:
        """Begin all jobs with other slots than one a stage; they work at once. See `allocate`."""
        self.allocate(slots)
        self.state.slots[:] = self.slots

    def restart(self, rows: Any) -> None:
        """Empty the queues of the jobs at `rows`; one slot a stage. Their clock goes on."""
        self.state.queue[rows] = 0.0
        self.state.running[rows] = 1.0
        # Measurements hold the arrays of these two: they are not changed in place.
        self.slots, self.pool = self.slots.copy(), self.pool.copy()
        self.slots[rows] = np.where(self.jobs.present[rows], 1.0, 0.0)
        self.pool[rows] = 0.0
        self.state.slots[rows] = self.slots[rows]
        self.since_change[rows] = 0.0
        self._down[rows] = 0.0

    def allocate(self, slots: Any, pool: Any = None) -> Floats:
        """Give slots; what is infeasible is cut as `actions.feasible` says.

        Args:
            slots: ``[N, S]`` wanted for every stage.
            pool: ``[N]`` slots to be shared instead; 0 or None for slots per stage.

        Returns:
            ``[N]`` slots added plus slots taken away.

        Raises:
            ConfigError: a wrong shape, or NaN.
        """
        jobs = self.jobs
        wanted = np.asarray(slots, dtype=np.float64)
        if wanted.shape != jobs.present.shape:
            raise ConfigError(f"`slots` has shape {wanted.shape}, but {jobs.present.shape} is needed")
        if np.isnan(wanted).any():
            raise ConfigError("`slots` holds NaN; give a number of slots for every stage")
        limit = self.limit
        given = feasible(jobs.present, self.slots, wanted, limit)
        shared = np.zeros(len(jobs))
        if pool is not None:
            shared = np.minimum(np.maximum(np.rint(np.asarray(pool, dtype=np.float64)), 0.0), limit)
            given = np.where((shared > 0)[:, None] & jobs.present, shared[:, None], given)
        change = np.where(
            (shared > 0) & (self.pool > 0),
            np.abs(shared - self.pool),
            np.abs(given - self.slots).sum(axis=1),
        )
        self.since_change[change > 0] = 0.0
        self.slots, self.pool = given, shared
        return np.asarray(change)

    def run(self) -> Measurement:
        """One interval of every job, and what was measured of it.

        A job that runs out of memory delivers nothing for the rest of the interval it dies in and until
        `restart_seconds` are over; its next interval begins from one slot a stage.
        """
        steps = np.minimum(self.steps, self.tape.steps - 1)
        now, misjudged = self.tape.at(self._all, steps)
        interval = self.jobs.interval
        standing = np.minimum(self._down, interval)
        self.state, flow = advance(
            self._prepared, self.state, now, self.slots, self.pool, interval - standing
        )
        self.flow = flow
        self.since_change += interval
        self._down -= standing
        self.steps += 1
        # What there is of CPUs and memory is read when the decision is made: it is that of the interval to come.
        # Cluster managers announce a lower limit before they enforce it (cgroup v2: memory.high, then memory.max).
        ahead = np.minimum(self.steps, self.tape.steps - 1)
        limit = self.jobs.memory * self.tape.memory[self._all, ahead][:, None]
        measured = self._measure(flow, self.tape.cpus[self._all, ahead], limit, misjudged)
        if flow.killed.any():
            rows = np.flatnonzero(flow.killed)
            self.restart(rows)
            self._down[rows] = self.restart_seconds
        return measured

    def _measure(self, flow: Flow, cpus: Floats, limit: Floats, misjudged: Floats) -> Measurement:
        jobs = self.jobs
        width = jobs.stages
        interval = jobs.interval[:, None]
        rows = flow.rows[:, :width]
        alive = ~flow.killed
        share = flow.seconds / jobs.interval
        # A mean over many tasks is judged better than one of a few.
        tasks = np.maximum(rows / np.maximum(jobs.block_rows, 1.0), 1.0)
        misjudge = np.exp(misjudged / np.sqrt(tasks))
        delivered = flow.rows[:, width] / jobs.interval * alive
        present = jobs.present
        used, bound = self._as_one_node(flow, limit)
        return Measurement(
            present=present,
            slots=self.slots,
            pool=self.pool,
            rate=np.where(present, rows / interval, 0.0),
            busy=np.where(present, np.minimum(flow.busy * misjudge * share[:, None], self.slots), 0.0),
            cpu=np.where(present, flow.cpu * misjudge * share[:, None], 0.0),
            starved=np.where(present, flow.starved, 0.0),
            blocked=np.where(present, flow.blocked, 0.0),
            block_bytes=jobs.row_bytes * jobs.block_rows,
            queued_bytes=self.state.queue * jobs.row_bytes,
            queue_fill=np.where(
                present, np.minimum(self.state.queue / np.maximum(flow.room, 1e-9), 1.0), 0.0
            ),
            delivered=delivered,
            step=jobs.step,
            waiting=np.maximum(1.0 - delivered * jobs.step, 0.0),
            cpus=cpus,
            cpus_used=flow.cpu.sum(axis=1) * share + delivered * jobs.step_cpu,
            memory_used=used,
            memory_base=jobs.base_bytes,
            memory_queued=flow.queued_bytes,
            memory_limit=bound,
            slot_limit=self.limit.astype(np.float64),
            clock=np.full(len(jobs), np.nan),
            bandwidth=np.where(np.isfinite(jobs.memory_bandwidth), flow.traffic, np.nan),
            since_change=self.since_change.copy(),
            interval=jobs.interval,
            killed=np.array(flow.killed),
        )


    def _as_one_node(self, flow: Flow, limit: Floats) -> tuple[Floats, Floats]:
        """Bytes in use and allowed, ``[N]`` each, as if all of it were on the trainer's node.

        What the pipeline takes is spread over the nodes in fixed proportions; the node that would be full first
        as it grows says how much it may take altogether. So use stays linear in the slots.
        """
        jobs = self.jobs
        share = self._prepared.share
        total = (flow.memory[:, 0] - jobs.base_bytes) / share[:, 0]
        room = np.where(jobs.cpus > 0, limit, np.inf)
        room[:, 0] -= jobs.base_bytes
        allowed = (room / np.maximum(share, 1e-30)).min(axis=1)
        return total + jobs.base_bytes, np.maximum(allowed, 0.0) + jobs.base_bytes


def rate_of(jobs: Jobs, slots: Any, *, steps: int = 24, pool: Any = None) -> Floats:
    """Rows/s that an allocation settles at, without chance: ``[N]``. Simulated, not solved."""
    simulator = Simulator(jobs, steps=1)
    simulator.allocate(slots, pool)
    measured: Sequence[Measurement] = [simulator.run() for _ in range(steps)]
    return measured[-1].delivered


def survives(jobs: Jobs, slots: Any, *, pool: Any = None) -> Bools:
    """Whether an allocation fits the nodes' memory on average, ``[N]``."""
    simulator = Simulator(jobs, steps=1)
    simulator.allocate(slots, pool)
    killed: Bools = np.any([simulator.run().killed for _ in range(8)], axis=0)
    return ~killed
