"""Outputs on their way from a worker to the trainer's process of the same machine: shared memory, used again.

Ray's object store frees what was delivered once a second, in batches, so at full speed it walks through gigabytes:
every worker has each page cleared and mapped in anew, and none is still in a cache. Here a segment whose
batches the trainer has let go of takes the next output, so a few warm ones do. Where a worker cannot reach them
(another machine, another system than Linux), its outputs go through the object store.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from intune.pipelines.executors.packing import Packed
from intune.pipelines.executors.segments import Segment
from intune.pipelines.schema import Array

KEPT = 8
"""Free segments kept for the next outputs; more only wait where a slow trainer was ahead by many for once."""

MOST_LENT = 128
"""Outputs in segments that are in use at once, by a trainer that keeps its batches, or labels of them; more are copied
out, since a segment costs two of the 1,024 file descriptors that a process may usually have."""

MOST_OPEN = 64
"""Segments a worker keeps mapped; the trainer's process has few, but a large budget may have many under way."""


@dataclass(frozen=True, slots=True)
class Place:
    """A segment of another process: by number, which is never given twice, and descriptor there."""

    pid: int
    number: int
    descriptor: int


@dataclass(frozen=True, slots=True)
class Probe:
    """Something to find in a segment: whether a process of this number is the one that is meant."""

    place: Place
    token: bytes


class Landings:
    """The trainer's side: segments that workers lay outputs into."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # the garbage collector may close a loader from under it
        self._segments: dict[int, Segment] = {}
        self._reserved: set[int] = set()
        self._next = 0

    def probe(self) -> tuple[Probe, Segment]:
        """What a worker is asked to find, and the segment to close afterwards."""
        segment = Segment.create()
        token = secrets.token_bytes(16)
        segment.lend(len(token))[:] = bytearray(token)
        return Probe(Place(os.getpid(), -1, segment.descriptor), token), segment

    def reserve(self) -> Place:
        """A segment that nobody uses, for one output; the one used longest, whose pages are warm, first."""
        with self._lock:
            free = [
                number
                for number, segment in self._segments.items()
                if number not in self._reserved and segment.free
            ]
            for number in free[KEPT:]:
                segment = self._segments.pop(number)
                os.ftruncate(segment.descriptor, 0)  # workers have it mapped: closing it would keep its pages
                segment.close()
            if free:
                number = free[0]
            else:
                number, self._next = self._next, self._next + 1
                self._segments[number] = Segment.create()
            self._reserved.add(number)
            return Place(os.getpid(), number, self._segments[number].descriptor)

    def take(self, place: Place, size: int) -> Array:
        """What a worker laid there (uint8, shape ``(size,)``); the segment is free again when the last view goes."""
        with self._lock:
            memory = self._segments[place.number].lend(size)
            self._reserved.discard(place.number)
            return memory

    @property
    def crowded(self) -> bool:
        """Whether so many are in use that what lies in one is to be copied out of it."""
        with self._lock:
            return sum(not segment.free for segment in self._segments.values()) > MOST_LENT

    def release(self, place: Place) -> None:
        """Nothing was laid there, and nobody will any more."""
        with self._lock:
            self._reserved.discard(place.number)

    def abandon(self, place: Place) -> None:
        """Somebody may still lay something there: it is not used again."""
        with self._lock:
            self._reserved.discard(place.number)
            segment = self._segments.pop(place.number, None)
            if segment is not None:
                segment.close()

    def close(self) -> None:
        """Let go of all; what was taken stays good."""
        with self._lock:
            for segment in self._segments.values():
                segment.close()
            self._segments.clear()
            self._reserved.clear()


class Reached:
    """A worker's side: segments of the trainer's process, opened once each."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # the garbage collector may close a loader from under it
        self._open: OrderedDict[Place, Segment] = OrderedDict()

    def finds(self, probe: Probe) -> bool:
        """Whether segments of that process can be had here."""
        try:
            segment = _open(probe.place)
            try:
                return os.pread(segment.descriptor, len(probe.token), 0) == probe.token
            finally:
                segment.close()
        except OSError:
            # No such process or descriptor here, or one of another kind: a pipe has no places to read at.
            return False

    def lay(self, place: Place, packed: Packed, lay: Callable[[Array], None]) -> None:
        """Lay an output there."""
        with self._lock:
            segment = self._open.get(place)
            if segment is None:
                segment = self._open[place] = _open(place)
                while len(self._open) > MOST_OPEN:
                    self._open.popitem(last=False)[1].close()
            self._open.move_to_end(place)
            memory = segment.lend(packed.size)
        lay(memory)


def _open(place: Place) -> Segment:
    return Segment(os.open(f"/proc/{place.pid}/fd/{place.descriptor}", os.O_RDWR | os.O_CLOEXEC))
