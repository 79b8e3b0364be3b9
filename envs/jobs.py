"""`Jobs`: the parameters of N simulated jobs as arrays. What a scenario draws, a calibration fits and `model.py` uses.

Nothing here moves; an agent never sees these numbers, only what is measured (`measurement.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intune.pipelines.errors import ConfigError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

STAGE_FIELDS = (
    "cpu", "wait", "contention", "coherence", "slot_bytes", "row_bytes", "block_rows", "queue_blocks",
    "storage_bytes", "storage_requests", "traffic", "drift", "most_slots", "crowding",
)  # fmt: skip
JOB_FIELDS = (
    "step", "step_cpu", "base_bytes", "queue_bytes", "storage_bandwidth", "storage_rate", "memory_bandwidth",
    "oversubscription", "resize_delay", "noise", "measurement_noise", "memory_noise", "hiccup_rate",
    "hiccup_factor", "loss_rate", "loss_seconds", "slots_per_cpu", "interval", "switching", "knee",
)  # fmt: skip
NODE_FIELDS = ("cpus", "memory", "nic")
EVENT_FIELDS = ("event_time", "event_cpus", "event_memory")

ABSENT_WAIT = 1e-60
"""Seconds per row of a stage that a job does not have: so few that rows pass even without a slot (`model.TINY`)."""


@dataclass(frozen=True, kw_only=True)
class Jobs:
    """N jobs of at most S stages on at most M nodes, whose machines are resized at most E times.

    Absent stages stand last and have ``present`` False. Zero means "does not use", ``inf`` "no limit".

    Attributes:
        present: ``[N, S]`` whether the job has the stage.
        cpu: ``[N, S]`` processor seconds per row.
        wait: ``[N, S]`` seconds per row that a slot waits without a processor (storage, a remote service).
        contention: ``[N, S]`` sigma of the Universal Scalability Law: share of the work that is done one at a
            time (a lock, Python's above all); the others wait for it.
        coherence: ``[N, S]`` kappa of the same law: processor time spent on keeping n slots in agreement.
        slot_bytes: ``[N, S]`` resident bytes that a slot adds: its working set, most of which no queue shows.
        row_bytes: ``[N, S]`` bytes of a row of the stage's output while it waits in a queue.
        block_rows: ``[N, S]`` rows that a task makes.
        queue_blocks: ``[N, S]`` blocks per slot that may wait behind the stage.
        storage_bytes, storage_requests: ``[N, S]`` per row, against the storage's shared limits.
        traffic: ``[N, S]`` bytes per row to and from memory, against its bandwidth.
        drift: ``[N, S]`` growth of the cost per row, 1/s (0.001: e times as dear after 1,000 s), up to e^3 times
            either way.
        most_slots: ``[N, S]`` slots that the stage can use at all (a source with few files).
        crowding: ``[N, S]`` growth of the processor seconds per row with every further slot of the stage at work, as
            a share: what is spent on waiting for the kernel's locks (pages of large working sets) or on misses of a
            cache that slots share.
        step: ``[N]`` seconds per row that the trainer computes: its rate is the pipeline's upper limit.
        step_cpu: ``[N]`` processor seconds per row that the trainer takes from the same CPUs.
        base_bytes: ``[N]`` resident bytes without any slot: trainer, runtime, libraries. On the first node.
        queue_bytes: ``[N]`` bytes that all queues may hold (admission by bytes).
        storage_bandwidth: ``[N]`` bytes/s; storage_rate: requests/s; memory_bandwidth: bytes/s.
        oversubscription: ``[N]`` processor time lost, as a share, for each time that the demand for processors
            exceeds them once more (context switches, cold caches).
        resize_delay: ``[N]`` seconds before added slots work.
        noise: ``[N]`` standard deviation of the logarithm of a stage's service time from interval to interval.
        measurement_noise: ``[N]`` the same of what is measured of one task; falls with the tasks' number.
        memory_noise: ``[N]`` the same of working sets (skewed data).
        hiccup_rate: ``[N]`` 1/s, how often one stage stumbles for an interval (slow disk, noisy neighbour);
            hiccup_factor: how many times slower it is then.
        loss_rate: ``[N]`` 1/s, how often a worker dies; loss_seconds: how long its slots are missing.
        slots_per_cpu: ``[N]`` slots that may be given out altogether, per CPU.
        interval: ``[N]`` seconds between two decisions.
        switching: ``[N]`` share of the time lost for each slot that would be at work beyond the processors there are:
            it is switched to and from, finds the caches cold and holds locks while it is not running.
        knee: ``[N]`` how gradually the rate passes from what slots allow to what processors allow: 0 at once; the
            larger, the more of the time bursts of tasks queue for processors while at others there are too few.
        cpus: ``[N, M]`` CPUs of every node (0: no such node); memory: bytes; nic: bytes/s of its network.
        event_time: ``[N, E]`` seconds after the start at which the machine is resized (``inf``: no event),
            ascending; event_cpus, event_memory: CPUs and memory from then on, as multiples of those at first.
    """

    present: Bools
    cpu: Floats
    wait: Floats
    contention: Floats
    coherence: Floats
    slot_bytes: Floats
    row_bytes: Floats
    block_rows: Floats
    queue_blocks: Floats
    storage_bytes: Floats
    storage_requests: Floats
    traffic: Floats
    drift: Floats
    most_slots: Floats
    step: Floats
    step_cpu: Floats
    base_bytes: Floats
    queue_bytes: Floats
    storage_bandwidth: Floats
    storage_rate: Floats
    memory_bandwidth: Floats
    oversubscription: Floats
    resize_delay: Floats
    noise: Floats
    measurement_noise: Floats
    memory_noise: Floats
    hiccup_rate: Floats
    hiccup_factor: Floats
    loss_rate: Floats
    loss_seconds: Floats
    slots_per_cpu: Floats
    interval: Floats
    cpus: Floats
    memory: Floats
    nic: Floats
    event_time: Floats
    event_cpus: Floats
    event_memory: Floats
    crowding: Floats
    switching: Floats
    knee: Floats

    def __len__(self) -> int:
        return len(self.present)

    @property
    def stages(self) -> int:
        """Stages at most, S."""
        return int(self.present.shape[1])

    @property
    def limit(self) -> Ints:
        """Slots that may be given out altogether at the first size of the machine, ``[N]``."""
        return slot_limit(self.cpus.sum(axis=1), self.slots_per_cpu, self.present.sum(axis=1))

    @classmethod
    def of(cls, *, stages: Sequence[int] | int, jobs: int = 1, **values: Any) -> Jobs:
        """Jobs from the values given (broadcast to their shapes) and mild defaults for the others.

        Args:
            stages: how many stages each job has, or all have.
            jobs: N.
            **values: any field of this class.

        Raises:
            ConfigError: an unknown field, a value of the wrong shape, or one out of range (see `check`).
        """
        given = np.asarray(stages)
        if jobs < 1 or given.shape not in ((), (jobs,)) or given.dtype.kind not in "iu" or given.min() < 1:
            raise ConfigError(
                f"`stages`={stages!r} must be 1 or more, or a list of such, one for each of `jobs`={jobs}, 1 or more"
            )
        counts = np.broadcast_to(given.astype(np.int64), (jobs,))
        width = int(counts.max())
        present = np.arange(width) < counts[:, None]
        arrays: dict[str, Any] = {"present": present}
        known = {field.name for field in fields(cls)} - {"present"}
        for name in values:
            if name not in known:
                raise ConfigError(f"unknown field `{name}` of a job; known are {', '.join(sorted(known))}")
        nodes = max(
            [int(np.shape(values[name])[-1]) for name in NODE_FIELDS if np.ndim(values.get(name, 0.0))] or [1]
        )
        events = max(
            [int(np.shape(values[name])[-1]) for name in EVENT_FIELDS if np.ndim(values.get(name, 0.0))]
            or [0]
        )
        for name in known:
            shape: tuple[int, ...] = (jobs,)
            if name in STAGE_FIELDS:
                shape = (jobs, width)
            elif name in NODE_FIELDS:
                shape = (jobs, nodes)
            elif name in EVENT_FIELDS:
                shape = (jobs, events)
            try:
                value = np.asarray(values.get(name, _DEFAULTS.get(name, 0.0)), dtype=np.float64)
            except (TypeError, ValueError):
                raise ConfigError(f"`{name}`={values[name]!r} must be numbers") from None
            if value.ndim == 1 and len(shape) == 2 and value.shape[0] == jobs != shape[1]:
                value = value[:, None]
            try:
                arrays[name] = np.array(np.broadcast_to(value, shape))
            except ValueError:
                raise ConfigError(f"`{name}` has shape {value.shape}, but {shape} is needed") from None
        made = cls(**arrays)
        made._clear_absent()
        made.check()
        return made

    def check(self) -> None:
        """Look whether every number makes sense.

        Raises:
            ConfigError: NaN, a value out of range; field, job and value are named.
        """
        for field in fields(self):
            if field.name == "present":
                continue
            value: Floats = getattr(self, field.name)
            low = _LEAST.get(field.name, 0.0)
            most = _MOST.get(field.name, np.inf)
            wrong = ~((value >= low) & (value <= most))
            if field.name not in _LIMITS:
                wrong |= ~np.isfinite(value)
            if wrong.any():
                at = tuple(int(i) for i in np.argwhere(wrong)[0])
                limits = f"from {low:g} to {most:g}" if np.isfinite(most) else f"{low:g} or more"
                if value[at] == np.inf:
                    limits = f"finite, {limits}"
                raise ConfigError(
                    f"`{field.name}`={float(value[at])} of job {at[0]} (at {at}) must be {limits}"
                )
        if (self.cpus[:, 0] < 1).any():
            raise ConfigError("`cpus` of the first node must be 1 or more")
        for name, unit in (("memory", "bytes"), ("nic", "bytes/s")):
            # Nodes that a job does not have have neither.
            without = (getattr(self, name) <= 0) & (self.cpus > 0)
            if without.any():
                job, node = np.argwhere(without)[0]
                raise ConfigError(
                    f"`{name}`=0 of job {job} (node {node}) must be above 0 {unit}; inf is no limit"
                )
        late = self.event_time[:, 1:] < self.event_time[:, :-1]
        if late.any():
            job = int(np.argwhere(late)[0, 0])
            raise ConfigError(
                f"`event_time`={self.event_time[job].tolist()} of job {job} must be ascending, inf (no event) last"
            )
        if not self.present[:, 0].all():
            raise ConfigError("a job needs one stage at least")
        if ((self.cpu + self.wait)[self.present] <= 0).any():
            raise ConfigError("`cpu` + `wait` of a stage must be above 0 seconds per row")

    def take(self, rows: Any) -> Jobs:
        """The jobs at `rows` (an index array or slice)."""
        return Jobs(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def with_(self, **changes: Any) -> Jobs:
        """A copy with fields replaced by arrays of the same shape."""
        return replace(self, **changes)

    def widened(self, *, stages: int, nodes: int, events: int) -> Jobs:
        """The same jobs in wider arrays, so that jobs of several families can stand in one.

        Raises:
            ConfigError: narrower than the jobs are.
        """
        widths = {
            "stages": (stages, self.stages),
            "nodes": (nodes, self.cpus.shape[1]),
            "events": (events, self.event_time.shape[1]),
        }
        for name, (wanted, had) in widths.items():
            if wanted < had:
                raise ConfigError(f"`{name}`={wanted} is less than the {had} that these jobs have")
        arrays: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            name = field.name
            if name in JOB_FIELDS:
                arrays[name] = value
                continue
            width, filler = stages, _DEFAULTS.get(name, 0.0)
            if name in NODE_FIELDS:
                width, filler = nodes, 0.0
            elif name in EVENT_FIELDS:
                width, filler = events, np.inf if name == "event_time" else 1.0
            elif name == "present":
                filler = False
            wide = np.full((len(self), width), filler, dtype=value.dtype)
            wide[:, : value.shape[1]] = value
            arrays[name] = wide
        made = Jobs(**arrays)
        made._clear_absent()
        return made

    @classmethod
    def joined(cls, parts: Sequence[Jobs]) -> Jobs:
        """Jobs of several families one after another, as wide as the widest."""
        stages = max(part.stages for part in parts)
        nodes = max(part.cpus.shape[1] for part in parts)
        events = max(part.event_time.shape[1] for part in parts)
        wide = [part.widened(stages=stages, nodes=nodes, events=events) for part in parts]
        return cls(**{f.name: np.concatenate([getattr(part, f.name) for part in wide]) for f in fields(cls)})

    def _clear_absent(self) -> None:
        gone = ~self.present
        for name in STAGE_FIELDS:
            getattr(self, name)[gone] = 0.0
        self.wait[gone] = ABSENT_WAIT
        self.most_slots[gone] = 1.0


def slot_limit(cpus: Floats, slots_per_cpu: Floats, stages: Any) -> Ints:
    """Slots that may be given out altogether on `cpus` CPUs: never less than one a stage."""
    # 45 x 1.4 is a touch less than 63.
    whole = np.floor(cpus * slots_per_cpu + 1e-9)
    limit: Ints = np.maximum(whole, np.maximum(stages, 1)).astype(np.int64)
    return limit


_LIMITS = (
    "memory", "nic", "queue_bytes", "storage_bandwidth", "storage_rate", "memory_bandwidth", "most_slots", "event_time",
)  # fmt: skip
"""Fields that may be infinite: no limit, or never."""

_DEFAULTS: dict[str, Any] = {
    "cpu": 1e-6, "row_bytes": 160.0, "block_rows": 65_536.0, "queue_blocks": 1.0, "most_slots": 4096.0,
    "step": 1e-9, "queue_bytes": np.inf, "storage_bandwidth": np.inf, "storage_rate": np.inf,
    "memory_bandwidth": np.inf, "hiccup_factor": 1.0, "slots_per_cpu": 4.0, "interval": 5.0, "cpus": 8.0,
    "memory": np.inf, "nic": np.inf, "event_time": np.inf, "event_cpus": 1.0, "event_memory": 1.0,
}  # fmt: skip
_LEAST: dict[str, float] = {
    "drift": -1e300,
    "step": 1e-15, "queue_bytes": 1.0, "storage_bandwidth": 1.0, "storage_rate": 1e-9, "memory_bandwidth": 1.0,
    "hiccup_factor": 1.0, "slots_per_cpu": 1.0, "interval": 1e-6, "event_cpus": 1e-3, "event_memory": 1e-3,
    "nic": 0.0,
}  # fmt: skip
_MOST: dict[str, float] = {
    "contention": 1.0,
    "crowding": 10.0,
    "switching": 10.0,
    "knee": 1.0,
    "coherence": 1.0,
    "noise": 2.0,
    "memory_noise": 2.0,
    "measurement_noise": 10.0,
}
