"""`Simulator`: N simulated jobs that run side by side, each at its own time. The acting part around `model.py`.

The Gymnasium environments, the benchmarks of agents and the calibration all use this one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from intune.envs.actions import feasible
from intune.envs.columns import Columns
from intune.envs.conditions import Coming, Tape, World, quiet
from intune.envs.course import Course
from intune.envs.jobs import Bools, Floats, Ints, Jobs
from intune.envs.measurement import UNLIMITED, Measurement
from intune.envs.model import Flow, State, advance
from intune.pipelines.errors import ConfigError


class Simulator:
    """N jobs.

    Args:
        jobs: their parameters. Copied.
        tape: the world around them; by default without chance.
        steps: intervals after which that default stands still; None for never.
        restart_seconds: how long a job that ran out of memory stands still before it starts again, with one slot a
            stage.
    """

    def __init__(
        self,
        jobs: Jobs,
        tape: World | None = None,
        *,
        steps: int | None = None,
        restart_seconds: float = 60.0,
    ) -> None:
        self._columns = Columns(jobs)
        if tape is None:
            tape = Course.without_chance(jobs) if steps is None else quiet(jobs, steps)
        self.tape: World = tape
        self.restart_seconds = restart_seconds
        count = len(jobs)
        self._all = np.arange(count)
        self._unknown: Floats = np.full(count, np.nan)
        self._unwatched: Bools = np.zeros(count, dtype=bool)
        self._held = _held_by_measurements(self.jobs)
        self.state = State.empty(self.jobs)
        self.slots: Floats = self.state.slots
        self.pool: Floats = np.zeros(count)
        self.steps: Ints = np.zeros(count, dtype=np.int64)
        self.since_change: Floats = np.zeros(count)
        self._down: Floats = np.zeros(count)
        self._coming: Coming = self.tape.at(self.steps)
        self._any_down = False
        self._pooling = False
        self._misjudges = bool(jobs.measurement_noise.any())
        self._ragged = not jobs.present.all()
        self.flow: Flow | None = None

    def __len__(self) -> int:
        return len(self.jobs)

    @property
    def jobs(self) -> Jobs:
        """Those that run now; changed in place by `adopt`."""
        return self._columns.jobs

    @property
    def limit(self) -> Floats:
        """``[N]`` slots that may be given out now."""
        return self._coming.slot_limit

    def adopt(self, rows: Any, other: Simulator, chosen: Any = slice(None)) -> None:
        """Put the jobs of `other` at `chosen` into `rows`, where and how they stand."""
        self._columns.put(rows, other._columns, chosen)
        self.tape.put(rows, other.tape, chosen)
        # Measurements hold arrays of the jobs, the slots and the pool: those are not changed in place.
        self._held = _held_by_measurements(self.jobs)
        state = self.state
        self.slots, self.pool = self.slots.copy("K"), self.pool.copy()
        self.since_change = self.since_change.copy()
        self.state = replace(state, slots=state.slots.copy("K"), pool=state.pool.copy())
        for mine, new in (
            (self.state.queue, other.state.queue),
            (self.state.coming, other.state.coming),
            (self.state.due, other.state.due),
            (self.state.slots, other.state.slots),
            (self.state.pool, other.state.pool),
            (self.state.running, other.state.running),
            (self.slots, other.slots),
            (self.pool, other.pool),
            (self.steps, other.steps),
            (self.since_change, other.since_change),
            (self._down, other._down),
        ):
            mine[rows] = new[chosen]
        self._coming = self._coming.replaced(rows, other._coming, chosen)
        self._any_down = bool((self._down > 0).any())
        self._pooling = bool(self.pool.any())
        self._misjudges |= other._misjudges
        self._ragged |= other._ragged

    def replace(self, rows: Any, jobs: Jobs, tape: Tape) -> None:
        """Put new jobs at `rows`, at their beginning, one slot a stage."""
        self.adopt(rows, Simulator(jobs, tape))

    def begin_with(self, slots: Any) -> None:
        """Begin all jobs with other slots than one a stage; they work at once. See `allocate`."""
        self.allocate(slots)
        self.state = replace(self.state, slots=self.slots, pool=self.pool)

    def restart(self, rows: Any) -> None:
        """Empty the queues of the jobs at `rows`; one slot a stage. Their clock goes on."""
        self.state.queue[rows] = 0.0
        self.state.running[rows] = 1.0
        self.state.coming[rows] = 0.0
        self.state.due[rows] = 0.0
        # Measurements and the state hold the arrays of these two: they are not changed in place.
        self.slots, self.pool = self.slots.copy("K"), self.pool.copy()
        self.slots[rows] = self.jobs.present[rows]
        self.pool[rows] = 0.0
        slots, pool = self.state.slots.copy("K"), self.state.pool.copy()
        slots[rows], pool[rows] = self.slots[rows], 0.0
        self.state = replace(self.state, slots=slots, pool=pool)
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
        wanted = np.asarray(slots, dtype=np.float64, order="F")
        if wanted.shape != jobs.present.shape:
            raise ConfigError(f"`slots` has shape {wanted.shape}, but {jobs.present.shape} is needed")
        if np.isnan(wanted).any():
            raise ConfigError("`slots` holds NaN; give a number of slots for every stage")
        limit = self.limit
        given = feasible(jobs.present, self.slots, wanted, limit)
        change = np.add.reduce(np.abs(given - self.slots), axis=1)
        shared = self.pool
        if pool is not None or self._pooling:
            shared = np.zeros(len(jobs)) if pool is None else self._pool_of(pool, limit)
            given = np.where((shared > 0)[:, None] & jobs.present, shared[:, None], given)
            change = np.add.reduce(np.abs(given - self.slots), axis=1)
            change = np.where((shared > 0) & (self.pool > 0), np.abs(shared - self.pool), change)
            self._pooling = bool(shared.any())
        self.since_change = self.since_change * (change == 0)
        self.slots, self.pool = given, shared
        return np.asarray(change)

    def _pool_of(self, pool: Any, limit: Floats) -> Floats:
        wanted = np.asarray(pool, dtype=np.float64)
        if wanted.shape != self.pool.shape:
            raise ConfigError(f"`pool` has shape {wanted.shape}, but {self.pool.shape} is needed")
        if np.isnan(wanted).any():
            raise ConfigError("`pool` holds NaN; give a number of slots for every job, 0 for slots per stage")
        return np.minimum(np.maximum(np.rint(wanted), 0.0), limit)

    def run(self) -> Measurement:
        """One interval of every job, and what was measured of it.

        A job that runs out of memory delivers nothing for the rest of the interval it dies in and until
        `restart_seconds` are over; its next interval begins from one slot a stage.
        """
        now, misjudged = self._coming.conditions, self._coming.measured
        interval = self.jobs.interval
        standing = np.minimum(self._down, interval) if self._any_down else None
        seconds = interval if standing is None else interval - standing
        self.state, flow = advance(self._columns.prepared, self.state, now, self.slots, self.pool, seconds)
        self.flow = flow
        self.since_change = self.since_change + interval
        self.steps += 1
        self._coming = self.tape.at(self.steps)
        killed = flow.killed
        if standing is not None:
            # A job that stands still has no worker that could need memory.
            killed = killed & (seconds > 0)
            self._down -= standing
        measured = self._measure(flow, killed, misjudged, None if standing is None else seconds / interval)
        if killed.any():
            rows = np.flatnonzero(killed)
            self.restart(rows)
            self._down[rows] = self.restart_seconds
            self._any_down = True
            # What is in force is what the job starts again with.
            measured = replace(measured, slots=self.slots, pool=self.pool)
        elif standing is not None:
            self._any_down = bool((self._down > 0).any())
        return measured

    def _measure(self, flow: Flow, killed: Bools, misjudged: Floats, share: Floats | None) -> Measurement:
        """What is measured of an interval of which the jobs ran only a `share` (None: all of it)."""
        jobs, held = self.jobs, self._held
        present = held["present"]
        # What there is of CPUs and memory is read when the decision is made: it is that of the interval to come.
        # Cluster managers announce a lower limit before they enforce it (cgroup v2: memory.high, then memory.max).
        ahead = self._coming.conditions
        limit = jobs.memory * ahead.memory[:, None]
        rate, busy, cpu, starved, blocked = flow.rate, flow.busy, flow.cpu, flow.starved, flow.blocked
        delivered = flow.rows[:, -1] / jobs.interval
        if share is not None:
            delivered = delivered * (share > 0)
            rate, busy, cpu = rate * share[:, None], busy * share[:, None], cpu * share[:, None]
        cpus_used = np.add.reduce(cpu, axis=1)
        if self._misjudges:
            misjudge = self._misjudge(flow, misjudged)
            busy, cpu = np.minimum(busy * misjudge, self.slots), cpu * misjudge
        fill = np.minimum(self.state.queue / np.maximum(flow.room, 1e-9), 1.0)
        if self._ragged:
            rate, busy, cpu, starved = rate * present, busy * present, cpu * present, starved * present
            blocked, fill = blocked * present, fill * present
        if killed.any():
            delivered = delivered * ~killed
        if self._columns.prepared.parts.trainer_cpu:
            cpus_used = cpus_used + delivered * jobs.step_cpu
        used, there = flow.memory[:, 0], limit[:, 0]
        if self._columns.prepared.parts.nodes:
            used, there = self._as_one_node(flow, limit)
        return Measurement(
            **held,
            slots=self.slots,
            pool=self.pool,
            rate=rate,
            busy=busy,
            cpu=cpu,
            starved=starved,
            blocked=blocked,
            block_bytes=jobs.row_bytes * jobs.block_rows,
            queued_bytes=flow.waiting_bytes,
            queue_fill=fill,
            delivered=delivered,
            waiting=np.maximum(1.0 - delivered * jobs.step, 0.0),
            cpus=ahead.cpus,
            cpus_used=cpus_used,
            memory_used=used,
            memory_queued=flow.queued_bytes,
            memory_limit=np.minimum(there, UNLIMITED),
            slot_limit=self.limit,
            clock=self._unknown,
            bandwidth=self._unknown.copy()
            if flow.traffic is None
            else np.where(np.isfinite(jobs.memory_bandwidth), flow.traffic, np.nan),
            since_change=self.since_change,
            killed=killed,
            watched=self._unwatched,
        )

    def _misjudge(self, flow: Flow, misjudged: Floats) -> Floats:
        """``[N, S]`` factor by which times are measured wrongly: a mean over many tasks is judged better than one of a
        few."""
        tasks = np.maximum(flow.rows[:, :-1] / np.maximum(self.jobs.block_rows, 1.0), 1.0)
        return np.asarray(np.exp(misjudged / np.sqrt(tasks)))

    def _as_one_node(self, flow: Flow, limit: Floats) -> tuple[Floats, Floats]:
        """Bytes in use and allowed, ``[N]`` each, as if all of it were on the trainer's node.

        What the pipeline takes is spread over the nodes in fixed proportions; the node that would be full first as
        it grows says how much it may take altogether. So use stays linear in the slots, which a bound needs.
        """
        share, base = self._columns.prepared.share, self.jobs.base_bytes
        total = (flow.memory[:, 0] - base) / share[:, 0]
        room = np.where(share > 0, limit, np.inf)
        room[:, 0] -= base
        allowed = (room / np.maximum(share, 1e-30)).min(axis=1)
        return total + base, np.maximum(allowed, 0.0) + base


def _held_by_measurements(jobs: Jobs) -> dict[str, Any]:
    """Copies of those arrays of the jobs that stand in measurements as they are."""
    return {
        "present": jobs.present.copy("K"),
        "step": jobs.step.copy(),
        "memory_base": jobs.base_bytes.copy(),
        "interval": jobs.interval.copy(),
    }
