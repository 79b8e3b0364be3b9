"""The real pipelines of `fidelity.py`: what is read from where, what is done to it, who trains."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from benchmarks import transform as transforms

Columns = dict[str, Any]

LOOPED = ("I1", "I2", "I3", "I4", "I5", "I6")
"""Columns of `lock_bound`: at some 0.14 us a value the loop is slower than two processors are at all the rest."""

SCRATCH = 48 << 20
"""Bytes that `memory_heavy` holds while it works, beside what it is given."""


def light(columns: Columns) -> Columns:
    """Logarithms and hashes."""
    return transforms.transform(columns)


def lock_bound(columns: Columns) -> Columns:
    """A Python loop over some columns: holds Python's lock all the time, and is what the pipeline waits for."""
    made = dict(columns)
    for name in LOOPED:
        if name in columns:
            values = np.asarray(columns[name]).tolist()
            made[name] = np.array([math.log1p(value) * 0.5 + value % 7 for value in values], dtype=np.float32)
    return made


def half_lock_bound(columns: Columns) -> Columns:
    """NumPy, and the same Python loop."""
    return lock_bound(transforms.transform(transforms.transform(columns)))


def memory_heavy(columns: Columns) -> Columns:
    """A working set that no queue shows."""
    scratch = np.zeros(SCRATCH // 8)
    scratch += 1.0
    made = transforms.transform(columns)
    made["I1"] = made["I1"] + np.float32(scratch[-1] - 1.0)
    return made


def remote_service(columns: Columns) -> Columns:
    """A call that waits 30 ms for an answer from elsewhere."""
    time.sleep(0.03)
    return dict(columns)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A pipeline.

    Attributes:
        kind: what it is an example of.
        work: the transform.
        executor: where it runs.
        shuffle: row groups of its window, 0 for none.
        delay_ms: to the first byte, of storage that speaks S3; None for local files.
        step: seconds per batch that the trainer takes.
        most: slots of the main stages at most.
    """

    kind: Literal["cpu", "lock", "memory", "wait", "storage", "trainer"]
    work: str = "light"
    executor: Literal["threads", "ray"] = "threads"
    shuffle: int = 0
    delay_ms: int | None = None
    step: float = 0.0
    most: int = 4


CASES: Mapping[str, Case] = {
    "arithmetic": Case(kind="cpu"),
    "arithmetic, shuffled": Case(kind="cpu", shuffle=8),
    "Python loop": Case(kind="lock", work="lock_bound"),
    "large working set": Case(kind="memory", work="memory_heavy"),
    "remote service": Case(kind="wait", work="remote_service", most=16),
    "trainer 12 ms a batch": Case(kind="trainer", step=0.012),
    "trainer 40 ms, shuffled": Case(kind="trainer", step=0.04, shuffle=4, work="half_lock_bound"),
    "S3 at 5 ms": Case(kind="storage", delay_ms=5, most=8),
    "S3 at 40 ms": Case(kind="storage", delay_ms=40, most=12),
    "S3 at 150 ms": Case(kind="storage", delay_ms=150, most=16),
    "S3 at 150 ms, shuffled": Case(kind="storage", delay_ms=150, shuffle=4, most=16),
    "arithmetic on Ray": Case(kind="cpu", executor="ray"),
    "Python loop on Ray": Case(kind="lock", work="lock_bound", executor="ray"),
    "S3 at 40 ms on Ray": Case(kind="storage", executor="ray", delay_ms=40, most=12),
}


def allocations(most: int, stages: tuple[str, ...], seed: int) -> tuple[list[Any], list[Any]]:
    """Those to calibrate on, and those to predict.

    The former change one thing at a time, from one slot a stage on; the latter are drawn at random, and none is
    among the former.

    Args:
        most: slots of the main stages at most.
        stages: names.
        seed: of the drawn ones.
    """
    from intune.pipelines import Allocation

    busy = [name for name in stages if name in ("load", "shuffle", "transform")]

    def own(**slots: int) -> Allocation:
        return Allocation.per_stage({name: slots.get(name, 1) for name in stages})

    known = [own(), Allocation.shared(1), Allocation.shared(3)]
    known += [own(load=max(2, most // 4)), own(load=most), own(transform=2), own(transform=most)]
    known += [own(**dict.fromkeys(busy, 2)), own(**dict.fromkeys(busy, most))]
    if most > 4:
        known += [Allocation.shared(most)]
    draw = np.random.default_rng([seed, most])
    unknown: list[Any] = []
    while len(unknown) < 7:
        if len(unknown) in (2, 5):
            drawn = Allocation.shared(int(draw.integers(2, most + 2)))
        else:
            drawn = own(**{name: int(np.rint(np.exp(draw.uniform(0, np.log(most))))) for name in busy})
        if drawn not in known and drawn not in unknown:
            unknown.append(drawn)
    return known, unknown
