"""Threads or processes for a DataLoader's code: measured on its first batches, and said in a sentence.

Threads share the dataset and hand batches over for nothing, but only one of them at a time runs Python code;
processes each hold a copy of the dataset and hand batches over through shared memory. So: threads where the code
waits or computes outside Python's lock, processes where it holds it, and one thread at a time where the dataset
cannot be copied nor be trusted to two threads.
"""

from __future__ import annotations

import io
import pickle
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

import cloudpickle
import numpy as np
import torch

from intune.adapters.dataloader_settings import LoaderSettings
from intune.pipelines.budget import Budget, format_bytes

WAITING_SHARE = 0.5
"""Of a batch's time without using a processor, from which on it is storage that counts, which threads wait for as
well as processes do."""

WORTH_SENDING_S = 0.003
"""Seconds of a batch below which processes are not worth it: a call of one costs some 0.3 ms besides the copy."""

LONG_S = 0.1
"""Seconds of a batch from which on the first one tells by itself that it waits: a second would cost as much, while
what is only needed the first time is mostly computing."""

SPEED_UP = 1.5
"""Of two threads over one: halfway between code that holds the lock (1) and code that does not (2). Seen on
two processors with some five busy processes beside: 1.2 to 1.4 and 1.7 to 2."""

SWITCH_S = 0.05
"""Seconds after which Python takes its lock from a thread, while two are watched. At the usual 5 ms the one that
waits keeps waking up to ask, which on a busy machine looks like work."""

_watching = threading.Lock()

MOST_COPIED = 64 << 20
"""Bytes of a dataset up to which it is pickled before anything is known, lest it open files meanwhile."""

Kind = Literal["thread", "serial", "process"]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Where the user's code runs, and why.

    Attributes:
        kind: ``"thread"``, ``"serial"`` (one thread at a time) or ``"process"``.
        reason: a sentence.
        worker: what to send to processes, where it had to be pickled before the code ran.
    """

    kind: Kind
    reason: str
    worker: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Of the first batches.

    Attributes:
        wall_s: seconds that one batch took alone.
        active_s: of those, seconds in which its thread ran or only lacked a processor; the others it waited.
        speed_up: how much faster two threads make batches than one, where there are processors for them; None
            if it was not tried.
        random: whether the code drew from the process's own random generators.
    """

    wall_s: float
    active_s: float
    random: bool = False
    speed_up: float | None = None

    @property
    def waits(self) -> bool:
        """Whether it waits for most of its time."""
        return self.active_s <= (1.0 - WAITING_SHARE) * self.wall_s


def choose_before(settings: LoaderSettings) -> Choice | None:
    """What needs no measurement; None if it does."""
    if settings.iterable and settings.num_workers:
        return Choice(
            kind="process",
            reason=f"each of the {settings.num_workers} iterators needs a process to know its number in",
        )
    if settings.iterable:
        return Choice(kind="thread", reason="there is one iterator, over the dataset in this process")
    if structure_bytes(settings.dataset) is None:
        return Choice(
            kind="serial",
            reason="the dataset holds what cannot be copied (an open file, a connection or a lock), so that only "
            "one thread at a time may use it; workers='thread' says that several may",
        )
    if structure_bytes((settings.collate_fn, settings.worker_init_fn)) is None:
        return Choice(kind="thread", reason="`collate_fn` or `worker_init_fn` cannot be sent to a process")
    if settings.worker_init_fn is not None and settings.num_workers:
        return Choice(kind="process", reason="`worker_init_fn` is made for processes")
    return None


def choose(measured: Measurement, size: int, budget: Budget) -> Choice:
    """What a measurement says.

    Args:
        size: bytes of the dataset, about.
    """
    wall_ms, waited = 1e3 * measured.wall_s, 1.0 - measured.active_s / max(measured.wall_s, 1e-9)
    if size * budget.cpus > budget.memory:
        return Choice(
            kind="thread",
            reason=f"{budget.cpus} copies of the dataset of {format_bytes(size)} are more than the budget's "
            f"{format_bytes(budget.memory)}",
        )
    if measured.random:
        return Choice(
            kind="process",
            reason="the code draws from the process's random generators, which in threads it would share with "
            "the training",
        )
    if budget.cpus == 1:
        return Choice(kind="thread", reason="there is one CPU, of which processes make no more")
    if measured.waits:
        return Choice(
            kind="thread", reason=f"a batch takes {wall_ms:.3g} ms, of which it waits {100 * waited:.0f} %"
        )
    if measured.wall_s < WORTH_SENDING_S:
        return Choice(
            kind="thread", reason=f"a batch takes {wall_ms:.3g} ms, too little to be sent to a process for"
        )
    if measured.speed_up is None:
        return Choice(kind="thread", reason="there were too few batches to tell more")
    holds = measured.speed_up < SPEED_UP
    return Choice(
        kind="process" if holds else "thread",
        reason=f"a batch takes {wall_ms:.3g} ms of computing and two threads are {measured.speed_up:.2f} times as "
        f"fast as one, so the code {'holds' if holds else 'lets go of'} Python's lock",
    )


def choose_after(settings: LoaderSettings, worker: bytes | None) -> Choice | None:
    """What the code did to the dataset decides, where it opened files when it was first used; None if it did not.

    Args:
        worker: the dataset as it was before, pickled.
    """
    if structure_bytes(settings.dataset) is not None:
        return None
    opened = "the dataset opens what cannot be shared by threads when it is first used"
    if worker is not None:
        return Choice(kind="process", reason=f"{opened}: every process opens its own", worker=worker)
    return Choice(
        kind="serial",
        reason=f"{opened}, so that only one thread at a time may use it; workers='thread' says that several may",
    )


class Probe:
    """Makes the first batches in the trainer's thread and watches them.

    Args:
        make: makes the batch of an item, without an exception.
        clock: seconds.
        active_clock: seconds in which the calling thread ran, or could have but for lack of a processor.
    """

    ALONE, TOGETHER = 2, 2
    """Batches made one after the other, the first of which warms up, and at once."""

    def __init__(
        self,
        make: Callable[[Any], None],
        *,
        clock: Callable[[], float] = time.perf_counter,
        active_clock: Callable[[], float] | None = None,
    ) -> None:
        self._make = make
        self._clock = clock
        self._active_clock = active_seconds if active_clock is None else active_clock

    def measure(self, items: Iterator[Any]) -> Measurement:
        """Make items, as few as tell enough."""
        before = _random_states()
        measured = Measurement(wall_s=0.0, active_s=0.0)
        for item in islice(items, self.ALONE):
            began = self._clock()
            active_s = self._watched(item)
            drew = _random_states() != before
            measured = Measurement(wall_s=self._clock() - began, active_s=active_s, random=drew)
            if drew or (measured.waits and measured.wall_s >= LONG_S):
                return measured
        if measured.waits or measured.wall_s < WORTH_SENDING_S:
            return measured
        last = list(islice(items, self.TOGETHER))
        if len(last) < self.TOGETHER:
            return measured
        waiting_share = max(0.0, 1.0 - measured.active_s / measured.wall_s)
        return replace(measured, speed_up=speed_up_of(self._at_once(last), waiting_share))

    def _watched(self, item: Any) -> float:
        """Seconds in which this thread was active while it made an item."""
        began = self._active_clock()
        self._make(item)
        return self._active_clock() - began

    def _at_once(self, items: Sequence[Any]) -> list[tuple[float, float, float]]:
        """Make items in as many threads; when each began and ended, and for how long it was active."""
        spans: list[tuple[float, float, float]] = []
        ready = threading.Barrier(len(items))

        def work(item: Any) -> None:
            ready.wait()
            began = self._clock()
            active_s = self._watched(item)
            spans.append((began, self._clock(), active_s))

        threads = [
            threading.Thread(target=work, args=(item,), name="intune-probe", daemon=True) for item in items
        ]
        with _watching:
            usual = sys.getswitchinterval()
            sys.setswitchinterval(SWITCH_S)
            try:
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
            finally:
                sys.setswitchinterval(usual)
        return spans


def speed_up_of(spans: Sequence[tuple[float, float, float]], waiting_share: float) -> float:
    """How many times as fast as one thread two are, from what each did: 1 to 2.

    While both are at it, code that holds Python's lock has one of them wait at any time. Looking at that
    instead of at the time they take leaves out of it what others do on the processors meanwhile.

    Args:
        spans: when each began and ended, and for how long it was active.
        waiting_share: of its time that the code waits anyway.
    """
    overlap = min(end for _, end, _ in spans) - max(began for began, _, _ in spans)
    waited = sum((end - began) * (1.0 - waiting_share) - active_s for began, end, active_s in spans)
    if overlap <= 0:
        return 1.0  # one had ended before the other could begin, with two processors at hand
    return min(2.0, max(1.0, 2.0 - waited / overlap))


def active_seconds() -> float:
    """Seconds in which the calling thread ran or waited for nothing but a processor.

    What a thread waits for a processor is known to Linux alone; elsewhere it counts as waiting.
    """
    try:
        with open("/proc/thread-self/schedstat", encoding="ascii") as file:
            _, delayed, _ = file.read().split()  # what it ran is out of date by up to a tick
    except (OSError, ValueError):
        return time.thread_time()
    return time.thread_time() + int(delayed) * 1e-9


def structure_bytes(value: Any) -> int | None:
    """About how many bytes something would be when pickled; None if it cannot be.

    The bytes of arrays and tensors are counted and not copied.
    """
    sink = _Sink()
    pickler = _Structure(sink)
    try:
        pickler.dump(value)
    except Exception:  # pickling runs the code of whatever it refers to
        return None
    return sink.size + pickler.arrays


class _Sink(io.RawIOBase):
    """Counts what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        written = memoryview(data).nbytes
        self.size += written
        return written


class _Structure(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    def __init__(self, file: io.RawIOBase) -> None:
        super().__init__(file, protocol=5)
        self.arrays = 0

    def persistent_id(self, value: Any) -> int | None:
        if isinstance(value, io.IOBase) and not isinstance(value, io.BytesIO | io.StringIO):
            # Some are pickled as what they hold, which is not what a dataset has them for.
            raise pickle.PicklingError("an open file")
        if isinstance(value, torch.Tensor | np.ndarray) and not (
            isinstance(value, np.ndarray) and value.dtype.hasobject
        ):
            self.arrays += value.nbytes
            return 0
        return None


def _random_states() -> tuple[Any, ...]:
    numbers: Any = np.random.get_state(legacy=True)  # noqa: NPY002
    kind, keys, position, *rest = numbers
    return (
        bytes(torch.get_rng_state().numpy()),
        random.getstate(),
        (kind, keys.tobytes(), position, *rest),
    )
