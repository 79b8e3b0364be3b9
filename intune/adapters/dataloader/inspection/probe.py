"""How a dataset's code runs, measured on its first batches: does it wait, draw random numbers, hold Python's lock?"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from intune.adapters.dataloader.generators import random_states

WAITING_SHARE = 0.5
"""Of a batch's time without using a processor, from which on it is storage that counts, which threads wait for as
well as processes do."""

WORTH_SENDING_S = 0.003
"""Seconds of a batch below which processes are not worth it: a call of one costs some 0.3 ms besides the copy."""

LONG_S = 0.1
"""Seconds of a batch from which on the first one tells by itself that it waits: a second would cost as much, while
what is only needed the first time is mostly computing."""

SWITCH_S = 0.05
"""Seconds after which Python takes its lock from a thread, while two are watched. At the usual 5 ms the one that
waits keeps waking up to ask, which on a busy machine looks like work."""

_watching = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Of the first batches.

    Attributes:
        wall_s: seconds that one batch took alone, without those in which its thread lacked a processor: on a busy
            machine they may be many times the others.
        active_s: of those, seconds in which its thread ran; the others it waited.
        speed_up: how much faster two threads make batches than one, where there are processors for them; None
            if it was not tried.
        random: whether the code drew from the process's own random generators.
        changes: whether the code changed what it keeps (a counter, a buffer, a place in a file), and not only when it
            was first used.
    """

    wall_s: float
    active_s: float
    random: bool = False
    changes: bool = False
    speed_up: float | None = None

    @property
    def waits(self) -> bool:
        """Whether it waits for most of its time."""
        return self.active_s <= (1.0 - WAITING_SHARE) * self.wall_s


@dataclass(frozen=True, kw_only=True, slots=True)
class _Spell:
    """Of a thread that made a batch: when it began and ended, for how long it ran, and lacked a processor."""

    began: float
    ended: float
    ran_s: float
    lacked_s: float

    @property
    def alone_s(self) -> float:
        """Seconds that it would have taken with a processor for itself."""
        return max(self.ran_s, self.ended - self.began - self.lacked_s)


class Probe:
    """Makes the first batches in the trainer's thread and watches them.

    Args:
        make: makes the batch of an item, without an exception; says whether it drew random numbers, where what
            it drew from is as before again.
        together: the same in other threads than the trainer's.
        before, after: what is to be done with an item that is made alone; that takes none of the time that counts.
        state: something that is equal as long as what the code keeps is as it was.
        clock: seconds.
        thread_clock: seconds in which the calling thread ran, and in which it lacked a processor.
    """

    ALONE, TOGETHER = 2, 2
    """Batches made one after the other, of which the one that took less counts, and at once."""

    def __init__(
        self,
        make: Callable[[Any], bool | None],
        *,
        together: Callable[[Any], None] | None = None,
        before: Callable[[Any], None] = lambda item: None,
        after: Callable[[Any], None] = lambda item: None,
        state: Callable[[], Any] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
        thread_clock: Callable[[], tuple[float, float]] | None = None,
    ) -> None:
        self._make = make
        self._together = make if together is None else together
        self._before = before
        self._after = after
        self._state = state
        self._clock = clock
        self._thread_clock = thread_seconds if thread_clock is None else thread_clock

    def measure(self, items: Iterator[Any]) -> Measurement:
        """Make items, as few as tell enough."""
        before = random_states()
        measured = Measurement(wall_s=0.0, active_s=0.0)
        kept = self._state()
        for number, item in enumerate(islice(items, self.ALONE)):
            self._before(item)
            spell, drew = self._watched(self._make, item)
            drew = drew or random_states() != before
            found = Measurement(wall_s=spell.alone_s, active_s=spell.ran_s, random=drew)
            self._after(item)
            kept, changed = (now := self._state()), now != kept
            if drew:
                again = not changed and number == 0 and WORTH_SENDING_S <= found.wall_s < LONG_S
                return self._less(found, items) if again else found
            if found.waits and found.wall_s >= LONG_S and not changed:
                return found
            # The first warms up, and any may be delayed.
            less = found if number == 0 or found.wall_s < measured.wall_s else measured
            # What the first batch changes may be set once and for all.
            measured = replace(less, changes=changed and number > 0)
        if measured.changes or measured.waits or measured.wall_s < WORTH_SENDING_S:
            return measured
        last = list(islice(items, self.TOGETHER))
        if len(last) < self.TOGETHER:
            return measured
        waiting_share = max(0.0, 1.0 - measured.active_s / measured.wall_s)
        return replace(measured, speed_up=speed_up_of(self._at_once(last), waiting_share))

    def _less(self, first: Measurement, items: Iterator[Any]) -> Measurement:
        """Of the first batch and one more, the one that took less: the first warms up, and any may be delayed, while
        what is decided from it is whose random numbers the training sees."""
        for item in islice(items, 1):
            self._before(item)
            spell, _ = self._watched(self._make, item)
            self._after(item)
            if spell.alone_s < first.wall_s:
                return replace(first, wall_s=spell.alone_s, active_s=spell.ran_s)
        return first

    def _watched(self, make: Callable[[Any], bool | None], item: Any) -> tuple[_Spell, bool]:
        """How this thread made an item, and whether that drew random numbers."""
        ran_s, lacked_s = self._thread_clock()
        began = self._clock()
        drew = make(item)
        ended = self._clock()
        ran, lacked = self._thread_clock()
        return _Spell(began=began, ended=ended, ran_s=ran - ran_s, lacked_s=lacked - lacked_s), bool(drew)

    def _at_once(self, items: Sequence[Any]) -> list[tuple[float, float, float]]:
        """Make items in as many threads; when each began and ended, and for how long it ran or lacked a processor."""
        spans: list[tuple[float, float, float]] = []
        ready = threading.Barrier(len(items))

        def work(item: Any) -> None:
            ready.wait()
            spell, _ = self._watched(self._together, item)
            spans.append((spell.began, spell.ended, spell.ran_s + spell.lacked_s))

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
        spans: when each began and ended, and for how long it ran or only lacked a processor.
        waiting_share: of its time that the code waits anyway.
    """
    overlap = min(end for _, end, _ in spans) - max(began for began, _, _ in spans)
    waited = sum((end - began) * (1.0 - waiting_share) - active_s for began, end, active_s in spans)
    if overlap <= 0:
        return 1.0  # one had ended before the other could begin, with two processors at hand
    return min(2.0, max(1.0, 2.0 - waited / overlap))


def thread_seconds() -> tuple[float, float]:
    """Seconds in which the calling thread ran, and in which it waited for nothing but a processor.

    The second are known to Linux alone; elsewhere they count as waiting.
    """
    try:
        with open("/proc/thread-self/schedstat", encoding="ascii") as file:
            _, delayed, _ = file.read().split()  # what it ran is out of date by up to a tick
    except (OSError, ValueError):
        return time.thread_time(), 0.0
    return time.thread_time(), int(delayed) * 1e-9
