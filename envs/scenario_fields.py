"""Every value that a scenario file may give: where, in which unit, from what to what. One table, no code that acts.

`jobs.py` says what each field of a job means; the others here are ways to state one relative to something else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf


@dataclass(frozen=True, slots=True)
class Field:
    """One value of a file: its range, both ends included, unit, meaning and what it is if not given."""

    low: float
    high: float
    default: float
    unit: str
    text: str
    whole: bool = False


STAGE: Mapping[str, Field] = {
    "cpu": Field(0.0, 1e3, 0.0, "s/row", "processor time"),
    "wait": Field(0.0, 1e3, 0.0, "s/row", "time waited without a processor"),
    "contention": Field(0.0, 1.0, 0.0, "share", "sigma of the Universal Scalability Law: done one at a time"),
    "coherence": Field(0.0, 1.0, 0.0, "share", "kappa of the same law: work to keep slots in agreement"),
    "slot_bytes": Field(0.0, 1e15, 0.0, "bytes", "working set that each slot adds"),
    "row_bytes": Field(0.0, 1e12, 160.0, "bytes", "a row of the output while it waits in a queue"),
    "block_rows": Field(1.0, 1e12, 65_536.0, "rows", "what a task makes"),
    "queue_blocks": Field(0.0, 1e6, 1.0, "blocks", "per slot that may wait behind the stage"),
    "storage_bytes": Field(0.0, 1e12, 0.0, "bytes/row", "read from storage"),
    "storage_requests": Field(0.0, 1e6, 0.0, "1/row", "requests to storage"),
    "traffic": Field(0.0, 1e12, 0.0, "bytes/row", "to and from memory"),
    "drift": Field(-1.0, 1.0, 0.0, "1/s", "growth of the cost per row"),
    "most_slots": Field(1.0, 1e6, 4096.0, "slots", "that the stage can use at all", whole=True),
    "crowding": Field(0.0, 10.0, 0.0, "share", "growth of `cpu` with every further slot at work"),
    "wait_per_block": Field(0.0, 1e6, 0.0, "s/block", "added to `wait`: latency of the requests for a block"),
    "requests_per_block": Field(0.0, 1e6, 0.0, "1/block", "added to `storage_requests`"),
    "slot_blocks": Field(0.0, 1e6, 0.0, "blocks", "of `block_rows` x `row_bytes`, added to `slot_bytes`"),
}
"""Of ``[[stage]]``; `name` and `optional` beside them."""

JOB: Mapping[str, Field] = {
    "step": Field(1e-15, 1e6, 1e-9, "s/row", "that the trainer computes"),
    "step_cpu": Field(0.0, 1e3, 0.0, "s/row", "processor time that the trainer takes"),
    "base_bytes": Field(0.0, 1e15, 0.0, "bytes", "resident without any slot"),
    "queue_bytes": Field(1.0, inf, inf, "bytes", "that all queues may hold"),
    "storage_bandwidth": Field(1.0, inf, inf, "bytes/s", "of the storage"),
    "storage_rate": Field(1e-9, inf, inf, "1/s", "requests that the storage answers"),
    "memory_bandwidth": Field(1.0, inf, inf, "bytes/s", "of the memory"),
    "oversubscription": Field(0.0, 10.0, 0.0, "share", "processor time lost per excess of demand"),
    "resize_delay": Field(0.0, 1e6, 0.0, "s", "before added slots work"),
    "noise": Field(0.0, 2.0, 0.0, "log", "of service times from interval to interval"),
    "measurement_noise": Field(0.0, 10.0, 0.0, "log", "of what is measured of one task"),
    "memory_noise": Field(0.0, 2.0, 0.0, "log", "of working sets"),
    "hiccup_rate": Field(0.0, 1e3, 0.0, "1/s", "how often a stage stumbles for an interval"),
    "hiccup_factor": Field(1.0, 1e6, 1.0, "times", "slower in a hiccup"),
    "loss_rate": Field(0.0, 1e3, 0.0, "1/s", "how often a worker dies"),
    "loss_seconds": Field(0.0, 1e6, 0.0, "s", "its slots are missing then"),
    "slots_per_cpu": Field(1.0, 1e4, 4.0, "slots", "that may be given out, per CPU"),
    "interval": Field(1e-6, 1e6, 5.0, "s", "between two decisions"),
    "switching": Field(0.0, 10.0, 0.0, "share", "time lost per slot at work beyond the processors"),
    "knee": Field(0.0, 1.0, 0.0, "share", "how gradually slots' rate passes into processors'"),
    "speed": Field(1e-3, 1e3, 1.0, "times", "how fast the CPUs are: every `cpu` is divided by it"),
    "step_relative": Field(
        1e-9, 1e9, 0.0, "times", "`step` as a multiple of the pipeline's time per row at best"
    ),
    "storage_bandwidth_relative": Field(1e-6, 1e9, 0.0, "times", "of what the best rate takes"),
    "storage_rate_relative": Field(1e-6, 1e9, 0.0, "times", "of what the best rate takes"),
    "memory_bandwidth_relative": Field(1e-6, 1e9, 0.0, "times", "of what the best rate takes"),
    "nic_relative": Field(1e-6, 1e9, 0.0, "times", "of what the best rate sends to the first node"),
    "memory_relative": Field(1e-6, 1e9, 0.0, "times", "memory of all nodes, of what the best rate takes"),
    "memory_floor": Field(1.0, 1e3, 0.0, "times", "least memory, of what one slot a stage takes"),
    "stages": Field(1.0, 64.0, 0.0, "stages", "how many of the ``[[stage]]``s a job has", whole=True),
    "nodes": Field(1.0, 1024.0, 0.0, "nodes", "how many of the ``[[nodes]]`` a job has", whole=True),
}
"""Of ``[job]``. A default of 0 of those from `step_relative` on: not used."""

NODE: Mapping[str, Field] = {
    "cpus": Field(1.0, 1e6, 8.0, "CPUs", "of the node", whole=True),
    "memory": Field(1.0, inf, inf, "bytes", "of the node"),
    "memory_per_cpu": Field(1.0, 1e15, 0.0, "bytes", "instead of `memory`"),
    "nic": Field(1.0, inf, inf, "bytes/s", "of its network"),
}
"""Of ``[[nodes]]``."""

EVENT: Mapping[str, Field] = {
    "time": Field(0.0, inf, inf, "s", "after the start"),
    "cpus": Field(1e-3, 1e3, 1.0, "times", "CPUs from then on, of those at first"),
    "memory": Field(1e-3, 1e3, 0.0, "times", "memory from then on; without it, as `cpus`"),
}
"""Of ``[[events]]``, each given in its place."""

EVENTS: Mapping[str, Field] = {
    "count": Field(0.0, 64.0, 0.0, "events", "how many there are", whole=True),
    "first": Field(0.0, 1e9, 0.0, "s", "when the first is"),
    "gap": Field(0.0, 1e9, 0.0, "s", "from one to the next"),
    "cpus": EVENT["cpus"],
    "memory": EVENT["memory"],
}
"""Of ``[events]``, drawn at random."""

EITHER: tuple[tuple[str, str], ...] = (
    ("step", "step_relative"),
    ("storage_bandwidth", "storage_bandwidth_relative"),
    ("storage_rate", "storage_rate_relative"),
    ("memory_bandwidth", "memory_bandwidth_relative"),
    ("nodes.nic", "nic_relative"),
    ("nodes.memory", "memory_relative"),
    ("nodes.memory_per_cpu", "memory_relative"),
)
"""Fields that say the same in two ways: one of each pair may be given."""
