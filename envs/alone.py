"""One simulated job in plain Python: the physics of `model.py` for a single environment, where calls of NumPy on
arrays of five numbers would cost more than all arithmetic.

Nothing is decided here: formulas, names and their order are those of `model.advance`, `Simulator` and `actions`, and
`tests/envs/test_alone.py` proves that both agree. Pools of slots are not known here.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, floor, inf, isfinite, nan, sqrt

from intune.envs.capacity import ROUNDS
from intune.envs.conditions import Tape
from intune.envs.jobs import STAGE_FIELDS, Jobs
from intune.envs.measurement import UNLIMITED, Measurement
from intune.envs.model import ALL
from intune.envs.prepared import LEAST_KNEE, TINY, prepare
from intune.envs.reading import Reading, Row, measurement_of


@dataclass(slots=True)
class Able:
    """What stages could do if nothing but their slots limited them: `capacity.Able`."""

    capacity: Row
    at_once: Row
    cpu: Row
    took: Row
    rate: Row
    room: Row
    eased: float = 1.0
    processors: float = 1.0


@dataclass(slots=True)
class Flow:
    """What happened in the interval: `model.Flow`."""

    rows: Row
    rate: Row
    busy: Row
    cpu: Row
    starved: Row
    blocked: Row
    queue_fill: Row
    waiting_bytes: Row
    queued_bytes: float
    traffic: float


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
        self._share = prepared.share[0].tolist()
        self._stage = {name: getattr(jobs, name)[0, : self.count].tolist() for name in STAGE_FIELDS}
        self._queue_rows = prepared.queue_rows[0, : self.count].tolist()
        self._storage_rate: Row = prepared.storage_rate[0, : self.count].tolist()
        self._uses_traffic = prepared.uses_traffic[0, : self.count].tolist()
        self._knee = float(jobs.knee[0])
        self._crowds, self._switching = prepared.parts.crowding, float(jobs.switching[0])
        self._scaling, self._delay = prepared.parts.scaling, float(jobs.resize_delay[0])
        self.interval, self.step_seconds = float(jobs.interval[0]), float(jobs.step[0])
        self._step_rate, self._step_cpu = float(prepared.step_rate[0]), float(jobs.step_cpu[0])
        self._queue_bytes = float(jobs.queue_bytes[0])
        self._memory_bandwidth = float(jobs.memory_bandwidth[0])
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
        self._given: Row = [1.0] * self.count
        self._on_the_way()
        self._queue: Row = [0.0] * self.count
        self._queued = 0.0
        self._step, self._since_change, self._down = 0, 0.0, 0.0

    def measurement(self, reading: Reading) -> Measurement:
        """What `run` returned as arrays, N = 1."""
        return measurement_of(reading, self.jobs, self.block_bytes)

    @property
    def limit(self) -> float:
        """Slots that may be given out now."""
        return self._tape[min(self._step, len(self._tape) - 1)][-1]

    def begin_with(self, wanted: Row) -> None:
        """See `Simulator.begin_with`."""
        self.allocate(wanted)
        self._given = self.slots

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
        flow = self._advance(now, max(seconds, TINY))
        reading = self._measured(flow, now, seconds / self.interval)
        self._down -= standing
        if reading.killed:
            self.slots = self._given = reading.slots = [1.0] * self.count
            self._on_the_way()
            self._queue, self._queued = [0.0] * self.count, 0.0
            self._since_change, self._down = 0.0, self.restart_seconds
            reading.since_change = 0.0
        return reading

    def _advance(self, now: Row, seconds: float) -> Flow:
        """`model.advance`."""
        stages, width = range(self.count), self._width
        able = self._able(now, seconds)
        rows, held_up = _passed(able, self._queue, self._step_rate, seconds)
        if self._scaling:
            for i in stages:
                able.cpu[i], able.took[i] = self._as_few(now, able, i, rows[i] / seconds, able.eased)
        full = [rows[i] >= self._storage_rate[i] * (seconds * ALL) for i in stages]
        through = [rows[i] / seconds for i in stages]
        delivered = rows[-1] / seconds
        moved, slower = 0.0, 1.0
        if isfinite(self._memory_bandwidth):
            moved = sum([through[i] * self._stage["traffic"][i] for i in stages])
            slower = ratio(self._memory_bandwidth, moved)
        cpus = now[4 * width + 1]
        demand = sum([through[i] * able.cpu[i] for i in stages]) + delivered * self._step_cpu
        lost = 1.0 + self._switching * max(demand - cpus, 0.0) if self._switching else 1.0
        load = slower * demand / (cpus * able.processors)
        processor = 1.0 / (max(load, 1.0) * (1.0 + self._oversubscription * max(load - 1.0, 0.0)))
        factor = slower * processor / lost
        rows = [each * factor for each in rows]
        through = [each * factor for each in through]
        queue = [max(self._queue[i] + rows[i] - rows[i + 1], 0.0) for i in stages]
        cpu, waited = self._at_work(now, able, through, lost / processor, slower)
        if self._switching:
            cpu = [each * lost for each in cpu]
        share_of_one = processor * able.eased
        busy = [min(cpu[i] / share_of_one + waited[i], able.capacity[i]) for i in stages]
        busy = [busy[i] + (able.capacity[i] - busy[i]) * factor if full[i] else busy[i] for i in stages]
        if isfinite(self._memory_bandwidth):
            rest = ratio(max(cpus - delivered * factor * self._step_cpu, 0.0), sum(cpu))
            cpu = [each * rest for each in cpu]
        idle = [1.0 - busy[i] / able.capacity[i] for i in stages]
        row_bytes = self._stage["row_bytes"]
        waiting_bytes = [queue[i] * row_bytes[i] for i in stages]
        before, self._queued = self._queued, sum(waiting_bytes)
        self._queue, self._given = queue, self.slots
        return Flow(
            rows=rows,
            rate=through,
            busy=busy,
            cpu=cpu,
            starved=[0.0 if held_up[i] else idle[i] for i in stages],
            blocked=[idle[i] if held_up[i] else 0.0 for i in stages],
            queue_fill=[min(queue[i] / max(able.room[i], 1e-9), 1.0) for i in stages],
            waiting_bytes=waiting_bytes,
            queued_bytes=max(self._queued, before),
            traffic=moved * factor / self._memory_bandwidth if isfinite(self._memory_bandwidth) else nan,
        )

    def _measured(self, flow: Flow, now: Row, share: float) -> Reading:
        """`Simulator._measure`; the job ran for `share` of the interval."""
        width = self._width
        self._step += 1
        self._since_change += self.interval
        ahead = self._tape[min(self._step, len(self._tape) - 1)]
        held = sum([self.slots[i] * now[2 * width + i] for i in range(self.count)]) + flow.queued_bytes
        used, allowed, killed = self._memory(held, now[4 * width + 2], ahead[4 * width + 2])
        killed = killed and share > 0
        busy, cpu = self._misjudged(now, flow, share)
        delivered = 0.0 if killed or share <= 0 else flow.rows[-1] / self.interval
        return Reading(
            slots=self.slots,
            rate=flow.rate if share == 1.0 else [each * share for each in flow.rate],
            busy=busy,
            cpu=cpu,
            starved=flow.starved,
            blocked=flow.blocked,
            queued_bytes=flow.waiting_bytes,
            queue_fill=flow.queue_fill,
            delivered=delivered,
            waiting=max(1.0 - delivered * self.step_seconds, 0.0),
            cpus=ahead[4 * width + 1],
            cpus_used=sum(flow.cpu) * share + delivered * self._step_cpu,
            memory_used=used,
            memory_base=self._base,
            memory_queued=flow.queued_bytes,
            memory_limit=min(allowed, UNLIMITED),
            slot_limit=ahead[4 * width + 3],
            bandwidth=flow.traffic,
            since_change=self._since_change,
            killed=killed,
        )

    def _able(self, now: Row, seconds: float) -> Able:
        stage, width = self._stage, self._width
        most_slots, row_bytes = stage["most_slots"], stage["row_bytes"]
        works = 1.0 - now[4 * width]
        able = Able([], [], [], [], [], [])
        for i, slots in enumerate(self._joined(seconds) if self._delay else self.slots):
            slots *= works
            capacity = max(min(slots, most_slots[i]), TINY)
            once = max(capacity, 1.0)
            work, wait = self._service(now, i, once)
            able.capacity.append(capacity)
            able.at_once.append(once)
            able.cpu.append(work)
            able.took.append(work + wait)
            able.rate.append(capacity / (work + wait))
            able.room.append(self._queue_rows[i] * once)
        if self._knee:
            needed = able.cpu
            if self._scaling:
                least = min(able.rate)
                needed = [self._as_few(now, able, i, least)[0] for i in range(self.count)]
            load = min(able.rate) * (sum(needed) + self._step_cpu) / now[4 * width + 1]
            if load <= 1.0:
                able.eased = _knee(load, self._knee)
                able.rate = [rate * able.eased for rate in able.rate]
                able.took = [took / able.eased for took in able.took]
            else:
                able.processors = _knee(load, self._knee)
        able.rate = [min(rate, most) for rate, most in zip(able.rate, self._storage_rate, strict=True)]
        if isfinite(self._queue_bytes):
            asked = sum([room * each for room, each in zip(able.room, row_bytes, strict=True)])
            part = min(1.0, self._queue_bytes / max(asked, TINY))
            able.room = [room * part for room in able.room]
        return able

    def _as_few(
        self, now: Row, able: Able, stage: int, rate: float, eased: float = 1.0
    ) -> tuple[float, float]:
        """`capacity.as_few`."""
        work, took, most = able.cpu[stage], able.took[stage], able.at_once[stage]
        for _ in range(ROUNDS):
            running = rate * took
            if running >= most:
                break
            work, wait = self._service(now, stage, max(running, 1.0))
            took = (work + wait) / eased
        return work, took

    def _on_the_way(self) -> None:
        """No slot is."""
        self._coming: Row = [0.0] * self.count
        self._due: Row = [0.0] * self.count

    def _joined(self, seconds: float) -> Row:
        """Slots that worked on average: `model.joining`."""
        working = []
        for i, slots in enumerate(self.slots):
            added = max(slots - self._given[i], 0.0)
            before = max(self._coming[i] - max(self._given[i] - slots, 0.0), 0.0)
            coming = before + added
            due = (before * self._due[i] + added * self._delay) / max(coming, TINY)
            working.append(slots - coming * min(due / seconds, 1.0))
            self._due[i] = max(due - seconds, 0.0)
            self._coming[i] = coming if self._due[i] > 0 else 0.0
        return working

    def _service(self, now: Row, stage: int, slots: float) -> tuple[float, float]:
        """`capacity.service`: processor and waiting seconds per row of a stage with `slots` at work at once."""
        work, wait = now[stage], now[self._width + stage]
        if not self._scaling:
            return work, wait
        law, others, alone = self._stage, slots - 1.0, work + wait
        more = alone * (law["coherence"][stage] * slots * others)
        if self._crowds:
            more += work * (law["crowding"][stage] * others)
        return work + more, wait + alone * (law["contention"][stage] * others)

    def _at_work(self, now: Row, able: Able, through: Row, works: float, slower: float) -> tuple[Row, Row]:
        """`model._at_work`: processors used, and slots that wait, on average; work takes `works` times as long."""
        used, waited = [], []
        for i in range(self.count):
            stalled = slower if self._uses_traffic[i] else 1.0
            longer = able.took[i] + able.cpu[i] * (works / stalled - 1.0)
            work, wait = self._service(now, i, min(max(through[i] * longer, 1.0), able.at_once[i]))
            used.append(through[i] * work / stalled)
            waited.append(through[i] * wait)
        return used, waited

    def _misjudged(self, now: Row, flow: Flow, share: float) -> tuple[Row, Row]:
        """Slots at work and processors used as they are measured; see `Simulator`."""
        rows, busy, cpu = flow.rows, flow.busy, flow.cpu
        if not self._misjudges:
            return (
                (busy, cpu)
                if share == 1.0
                else ([each * share for each in busy], [each * share for each in cpu])
            )
        block_rows, first = self._stage["block_rows"], 3 * self._width
        seen_busy, seen_cpu = [], []
        for i in range(self.count):
            tasks = max(rows[i] / max(block_rows[i], 1.0), 1.0)
            misjudge = exp(now[first + i] / sqrt(tasks)) * share
            seen_busy.append(min(busy[i] * misjudge, self.slots[i]))
            seen_cpu.append(cpu[i] * misjudge)
        return seen_busy, seen_cpu

    def _memory(self, held: float, now: float, ahead: float) -> tuple[float, float, bool]:
        """Bytes in use and allowed, and whether a node ran out of memory; see `Simulator._as_one_node`."""
        allowed, killed = inf, False
        for at, (memory, share) in enumerate(self._nodes):
            base = self._base if at == 0 else 0.0
            killed = killed or share * held + base > memory * now
            allowed = min(allowed, (memory * ahead - base) / max(share, 1e-30))
        return held + self._base, max(allowed, 0.0) + self._base, killed


def _passed(able: Able, queue: Row, step_rate: float, seconds: float) -> tuple[Row, list[bool]]:
    """`model.passed`."""
    room = able.room
    rows = [rate * seconds for rate in able.rate]
    rows.append(step_rate * seconds)
    allowed = list(rows)
    count = len(queue)
    for i in range(count):
        rows[i + 1] = min(rows[i] + queue[i], rows[i + 1])
    for i in range(count - 1, -1, -1):
        allowed[i] = min(allowed[i + 1] + max(room[i] - queue[i], 0.0), allowed[i])
    held_up = [ours < theirs for ours, theirs in zip(allowed, rows, strict=True)]
    return [min(ours, theirs) for ours, theirs in zip(allowed, rows, strict=True)], held_up


def _knee(load: float, width: float) -> float:
    """`capacity.knee`."""
    low = min(load, 1.0 / max(load, TINY))
    return float((1.0 + low ** (1.0 / max(width, LEAST_KNEE))) ** -width)


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


def ratio(there: float, wanted: float) -> float:
    """``there / wanted``, at most 1."""
    return min(there / max(wanted, TINY), 1.0)
