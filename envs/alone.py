"""One simulated job in plain Python: the physics of `model.py` for a single environment, where calls of NumPy on
arrays of five numbers would cost more than all arithmetic.

Nothing is decided here: formulas, names and their order are those of `model.advance`, `Simulator` and `actions`, and
`tests/envs/test_alone.py` proves that both agree. Pools of slots are not known here.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, floor, isfinite, nan, sqrt

import numpy as np

from intune.envs.conditions import Tape
from intune.envs.jobs import STAGE_FIELDS, Jobs
from intune.envs.measurement import Measurement
from intune.envs.prepared import TINY, prepare

Row = list[float]


@dataclass(slots=True)
class Reading:
    """What was measured of the interval: see `Measurement`; of the stages that the job has."""

    slots: Row
    rate: Row
    busy: Row
    cpu: Row
    starved: Row
    blocked: Row
    queued_bytes: Row
    queue_fill: Row
    delivered: float
    waiting: float
    cpus: float
    cpus_used: float
    memory_used: float
    memory_base: float
    memory_queued: float
    memory_limit: float
    slot_limit: float
    bandwidth: float
    since_change: float
    killed: bool


class JobAlone:
    """One job.

    Args:
        jobs: of which row 0 is the job.
        tape: the world around it.
        restart_seconds: see `Simulator`.
    """

    def __init__(self, jobs: Jobs, tape: Tape, *, restart_seconds: float) -> None:
        self.jobs, self.restart_seconds = jobs, restart_seconds
        self.count = int(jobs.present[0].sum())
        self._width = jobs.stages
        self._tape: list[Row] = tape.data[0].tolist()
        prepared = prepare(jobs)
        self._remote, self._share = float(prepared.remote[0]), prepared.share[0].tolist()
        self._stage = {name: getattr(jobs, name)[0, : self.count].tolist() for name in STAGE_FIELDS}
        self._queue_rows = prepared.queue_rows[0, : self.count].tolist()
        self._scaling, self._delay = prepared.parts.scaling, float(jobs.resize_delay[0])
        self.interval, self.step_seconds = float(jobs.interval[0]), float(jobs.step[0])
        self._step_rate, self._step_cpu = float(prepared.step_rate[0]), float(jobs.step_cpu[0])
        self._queue_bytes = float(jobs.queue_bytes[0])
        self._limits = [
            float(each[0])
            for each in (jobs.storage_bandwidth, jobs.storage_rate, jobs.memory_bandwidth, jobs.nic[:, 0])
        ]
        self._oversubscription = float(jobs.oversubscription[0])
        self._misjudges = bool(jobs.measurement_noise[0] > 0)
        self._base = float(jobs.base_bytes[0])
        self._nodes = [
            (memory, share)
            for memory, share, cpus in zip(
                jobs.memory[0].tolist(), self._share, jobs.cpus[0].tolist(), strict=True
            )
            if cpus > 0
        ]
        self.block_bytes = [
            each * rows
            for each, rows in zip(self._stage["row_bytes"], self._stage["block_rows"], strict=True)
        ]
        self.slots: Row = [1.0] * self.count
        self._working: Row = [1.0] * self.count
        self._queue: Row = [0.0] * self.count
        self._queued = 0.0
        self._step, self._since_change, self._down = 0, 0.0, 0.0

    @property
    def limit(self) -> float:
        """Slots that may be given out now."""
        return self._tape[min(self._step, len(self._tape) - 1)][-1]

    def begin_with(self, wanted: Row) -> None:
        """See `Simulator.begin_with`."""
        self.allocate(wanted)
        self._working = self.slots

    def allocate(self, wanted: Row) -> float:
        """Give slots, cut as `actions.feasible` says; slots added plus slots taken away are returned."""
        limit = self.limit
        given = [max(float(round(each)), 1.0) for each in wanted]
        if sum(given) > limit:
            given = _cut(self.slots, given, limit)
        change = sum([abs(new - old) for new, old in zip(given, self.slots, strict=True)])
        if change:
            self._since_change = 0.0
        self.slots = given
        return change

    def run(self) -> Reading:
        """One interval, and what was measured of it: see `Simulator.run`."""
        now = self._tape[min(self._step, len(self._tape) - 1)]
        standing = min(self._down, self.interval)
        seconds = self.interval - standing
        reading = self._advance(now, max(seconds, TINY), seconds / self.interval)
        self._down -= standing
        if reading.killed:
            self.slots = self._working = reading.slots = [1.0] * self.count
            self._queue, self._queued = [0.0] * self.count, 0.0
            self._since_change, self._down = 0.0, self.restart_seconds
            reading.since_change = 0.0
        return reading

    def _advance(self, now: Row, seconds: float, share: float) -> Reading:
        """`model.advance` and what is measured of it."""
        stage, width, stages = self._stage, self._width, range(self.count)
        sigma, kappa, traffic = stage["contention"], stage["coherence"], stage["traffic"]
        storage_bytes, storage_requests = stage["storage_bytes"], stage["storage_requests"]
        row_bytes, most_slots, queue = stage["row_bytes"], stage["most_slots"], self._queue
        cpus = now[4 * width + 1]
        works = 1.0 - now[4 * width]
        late = min(self._delay / seconds, 1.0)

        capacity, at_once, cpu, took, room = [], [], [], [], []
        for i in stages:
            slots = self.slots[i]
            slots = (slots - max(slots - self._working[i], 0.0) * late) * works
            most = max(min(slots, most_slots[i]), TINY)
            once = max(most, 1.0)
            work, wait = now[i], now[width + i]
            if self._scaling:
                alone = work + wait
                work += alone * (kappa[i] * once * (once - 1.0))
                wait += alone * (sigma[i] * (once - 1.0))
            capacity.append(most)
            at_once.append(once)
            cpu.append(work)
            took.append(work + wait)
            room.append(self._queue_rows[i] * once)
        if isfinite(self._queue_bytes):
            asked = sum([room[i] * row_bytes[i] for i in stages])
            share_of_room = min(1.0, self._queue_bytes / max(asked, TINY))
            room = [each * share_of_room for each in room]
        rows, held_up = _passed(capacity, took, queue, room, self._step_rate, seconds)

        through = [rows[i] / seconds for i in stages]
        delivered = rows[-1] / seconds
        storage = memory = 1.0
        bandwidth, requests, memory_bandwidth, nic = self._limits
        if isfinite(bandwidth):
            storage = _ratio(bandwidth, sum([through[i] * storage_bytes[i] for i in stages]))
        if isfinite(requests):
            storage = min(storage, _ratio(requests, sum([through[i] * storage_requests[i] for i in stages])))
        moved = 0.0
        if isfinite(memory_bandwidth):
            moved = sum([through[i] * traffic[i] for i in stages])
            memory = _ratio(memory_bandwidth, moved)
        slower = min(storage, memory, _ratio(nic, delivered * self._remote))
        demand = sum([through[i] * cpu[i] for i in stages]) + delivered * self._step_cpu
        load = slower * demand / cpus
        processor = 1.0 / (max(load, 1.0) * (1.0 + self._oversubscription * max(load - 1.0, 0.0)))
        factor = slower * processor
        rows = [each * factor for each in rows]
        through = [each * factor for each in through]
        queue = [max(queue[i] + rows[i] - rows[i + 1], 0.0) for i in stages]

        cpu_used, waited = [], []
        for i in stages:
            work, wait = now[i], now[width + i]
            if self._scaling:
                running = min(max(through[i] * took[i], 1.0), at_once[i])
                alone = work + wait
                work += alone * (kappa[i] * running * (running - 1.0))
                wait += alone * (sigma[i] * (running - 1.0))
            cpu_used.append(through[i] * work / (memory if traffic[i] > 0 else 1.0))
            uses_storage = storage_bytes[i] > 0 or storage_requests[i] > 0
            waited.append(through[i] * wait / (storage if uses_storage else 1.0))
        if isfinite(memory_bandwidth):
            rest = _ratio(max(cpus - delivered * factor * self._step_cpu, 0.0), sum(cpu_used))
            cpu_used = [each * rest for each in cpu_used]
        busy = [min(cpu_used[i] / processor + waited[i], capacity[i]) for i in stages]
        idle = [1.0 - busy[i] / capacity[i] for i in stages]
        blocked = [idle[i] if held_up[i] else 0.0 for i in stages]
        starved = [0.0 if held_up[i] else idle[i] for i in stages]

        waiting_bytes = [queue[i] * row_bytes[i] for i in stages]
        total = sum(waiting_bytes)
        queued, self._queued = max(total, self._queued), total
        held = sum([self.slots[i] * now[2 * width + i] for i in stages]) + queued
        self._queue, self._working = queue, self.slots
        self._step += 1
        self._since_change += self.interval
        ahead = self._tape[min(self._step, len(self._tape) - 1)]
        used, allowed, base, killed = self._memory(held, now[4 * width + 2], ahead[4 * width + 2])
        killed = killed and share > 0

        cpus_used = sum(cpu_used) * share
        if self._misjudges:
            for i in stages:
                tasks = max(rows[i] / max(stage["block_rows"][i], 1.0), 1.0)
                misjudge = exp(now[3 * width + i] / sqrt(tasks))
                busy[i] = min(busy[i] * share * misjudge, self.slots[i])
                cpu_used[i] *= share * misjudge
        elif share < 1.0:
            busy, cpu_used = [each * share for each in busy], [each * share for each in cpu_used]
        delivered = 0.0 if killed or share <= 0 else rows[-1] / self.interval
        return Reading(
            slots=self.slots,
            rate=through if share == 1.0 else [each * share for each in through],
            busy=busy,
            cpu=cpu_used,
            starved=starved,
            blocked=blocked,
            queued_bytes=waiting_bytes,
            queue_fill=[min(queue[i] / max(room[i], 1e-9), 1.0) for i in stages],
            delivered=delivered,
            waiting=max(1.0 - delivered * self.step_seconds, 0.0),
            cpus=ahead[4 * width + 1],
            cpus_used=cpus_used + delivered * self._step_cpu,
            memory_used=used,
            memory_base=base,
            memory_queued=queued,
            memory_limit=allowed,
            slot_limit=ahead[4 * width + 3],
            bandwidth=moved * factor / memory_bandwidth if isfinite(memory_bandwidth) else nan,
            since_change=self._since_change,
            killed=killed,
        )

    def _memory(self, held: float, now: float, ahead: float) -> tuple[float, float, float, bool]:
        """Bytes in use and allowed on the tightest node, the base there, and whether a node ran out of memory."""
        tightest, found, killed = -1.0, (0.0, 0.0, 0.0), False
        for at, (memory, share) in enumerate(self._nodes):
            base = self._base if at == 0 else 0.0
            used = share * held + base
            killed = killed or used > memory * now
            tightness = used / max(memory * ahead, 1.0)
            if tightness > tightest:
                tightest, found = tightness, (used, memory * ahead, base)
        return (*found, killed)


def measurement_of(job: JobAlone, reading: Reading) -> Measurement:
    """The same as arrays, N = 1."""
    width, jobs = job.jobs.stages, job.jobs

    def wide(values: Row) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        return np.array([values + [0.0] * (width - len(values))])

    def one(value: float) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        return np.array([value])

    stages = ("slots", "rate", "busy", "cpu", "starved", "blocked", "queued_bytes", "queue_fill")
    single = (
        "delivered", "waiting", "cpus", "cpus_used", "memory_used", "memory_base", "memory_queued", "memory_limit",
        "slot_limit", "bandwidth", "since_change",
    )  # fmt: skip
    return Measurement(
        present=jobs.present.copy(),
        pool=np.zeros(1),
        block_bytes=wide(job.block_bytes),
        step=jobs.step.copy(),
        clock=one(nan),
        interval=jobs.interval.copy(),
        killed=np.array([reading.killed]),
        **{name: wide(getattr(reading, name)) for name in stages},
        **{name: one(getattr(reading, name)) for name in single},
    )


def _passed(
    capacity: Row, took: Row, queue: Row, room: Row, step_rate: float, seconds: float
) -> tuple[Row, list[bool]]:
    """`model.passed`."""
    rows = [most / each * seconds for most, each in zip(capacity, took, strict=True)]
    rows.append(step_rate * seconds)
    allowed = list(rows)
    count = len(queue)
    for i in range(count):
        rows[i + 1] = min(rows[i] + queue[i], rows[i + 1])
    for i in range(count - 1, -1, -1):
        allowed[i] = min(allowed[i + 1] + max(room[i] - queue[i], 0.0), allowed[i])
    held_up = [ours < theirs for ours, theirs in zip(allowed, rows, strict=True)]
    return [min(ours, theirs) for ours, theirs in zip(allowed, rows, strict=True)], held_up


def _cut(slots: Row, wanted: Row, limit: float) -> Row:
    """`actions.feasible` where all together would exceed `limit`."""
    raises = [max(new - max(old, 1.0), 0.0) for new, old in zip(wanted, slots, strict=True)]
    kept = [new - more for new, more in zip(wanted, raises, strict=True)]
    share = min(max(limit - sum(kept), 0.0) / max(sum(raises), 1e-9), 1.0)
    given = [had + floor(more * share + 1e-9) for had, more in zip(kept, raises, strict=True)]
    if sum(given) > limit:
        above = [max(each - 1.0, 0.0) for each in given]
        keep = min(max((limit - len(given)) / max(sum(above), 1e-9), 0.0), 1.0)
        given = [1.0 + floor(each * keep + 1e-9) for each in above]
    return given


def _ratio(there: float, wanted: float) -> float:
    return min(there / max(wanted, TINY), 1.0)
