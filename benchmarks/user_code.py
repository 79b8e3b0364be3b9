"""What users do to their batches, as `live` has it: NumPy that is heavy, Python that holds the lock, a service with one
door, temporaries that are large. Every function works row by row, so that a loader may cut the rows as it likes.

Plain NumPy on a dict of columns, so that every loader can call these very functions.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.transform import MULTIPLIER, TABLE_ROWS, Array, identity, transform

ROUNDS = 10
"""Of `heavy`: some 2 us of NumPy a row, several times what reading the row takes."""

LOOKUP_S = 1.5e-6
"""Seconds a row that `locked` spends behind its lock: at most 670,000 rows/s, whatever there is of workers."""

WIDTH = 1024
"""Numbers that `hungry` makes of every row, twice: 8 KiB."""

HELD = 8
"""Columns whose ids `python` mixes one by one."""


def heavy(columns: Mapping[str, Array]) -> dict[str, Array]:
    """The transform of the other benchmarks, and a chain of functions over the dense columns."""
    result = transform(columns)
    for name, values in result.items():
        if name.startswith("I"):
            x = values.astype(np.float64)
            for _ in range(ROUNDS):
                x = np.tanh(0.7 * x + 0.1) + np.sin(x)
            result[name] = x.astype(np.float32)
    return result


def python(columns: Mapping[str, Array]) -> dict[str, Array]:
    """Ids mixed one by one in Python, which holds its lock all the while."""
    result = dict(columns)
    mask = 2**64 - 1
    for name in [name for name in columns if name.startswith("C")][:HELD]:
        mixed = []
        for value in columns[name].tolist():
            x = (value * MULTIPLIER) & mask
            x ^= x >> 31
            mixed.append((x * MULTIPLIER & mask) % TABLE_ROWS)
        result[name] = np.array(mixed, dtype=np.int64)
    return result


def locked(columns: Mapping[str, Array]) -> dict[str, Array]:
    """The transform, and a look-up in a service that serves one caller at a time, threads and processes alike."""
    result = transform(columns)
    rows = len(next(iter(columns.values())))
    with _one_door():
        time.sleep(rows * LOOKUP_S)
    return result


def hungry(columns: Mapping[str, Array]) -> dict[str, Array]:
    """One column through temporaries of 8 KiB a row."""
    result = transform(columns)
    first = next(name for name in columns if name.startswith("I"))
    wide = result[first][:, None] * np.linspace(0.5, 1.5, WIDTH, dtype=np.float32)[None, :]
    result[first] = np.sqrt(np.abs(wide)).mean(axis=1)
    return result


MOST_SPREAD = 1.6
"""Times its average that a call of `drawn` takes at most."""


def drawn(
    columns: Mapping[str, Array],
    *,
    temporary: int,
    spread: float = 0.0,
    wait_s: float = 0.0,
    rows: int = 8192,
) -> dict[str, Array]:
    """The transform, holding memory meanwhile and waiting.

    Args:
        columns: a batch.
        temporary: bytes held for `rows` rows, on average; spread: standard deviation of its logarithm over calls.
        wait_s: seconds waited for `rows` rows, as for a service.
    """
    result = transform(columns)
    part = len(next(iter(columns.values()))) / rows
    chance = np.random.default_rng([abs(int(columns["C1"][0])), abs(int(columns["C2"][0]))])
    factor = float(np.clip(np.exp(spread * chance.standard_normal()), 1 / MOST_SPREAD, MOST_SPREAD))
    # Every page is written to, and half of it is what the other half is made of.
    held = np.full(int(part * factor * temporary / 16), 1.0)
    more = np.sqrt(held)
    if wait_s:
        time.sleep(part * wait_s)
    result["label"] = result["label"] + np.float32(more[-1] - held[0])
    return result


FUNCTIONS: dict[str, Callable[..., dict[str, Array]]] = {
    "transform": transform,
    "identity": identity,
    "heavy": heavy,
    "python": python,
    "locked": locked,
    "hungry": hungry,
    "drawn": drawn,
}
"""By the name that a job has for them."""


@contextmanager
def _one_door() -> Iterator[None]:
    """Held by one thread of one process at a time, of all that were started by the same benchmark."""
    door = os.environ.get("INTUNE_BENCHMARK_DOOR") or str(Path(tempfile.gettempdir()) / "intune-bench-door")
    handle = os.open(
        door, os.O_RDWR | os.O_CREAT, 0o600
    )  # a lock belongs to an opening: every thread has its own
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)  # which lets go of the lock
