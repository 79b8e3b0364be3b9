"""How many batches a function that works row by row is given at once: all that lie together, or one at a time.

Joined, a function of many quick steps pays for a step once instead of for every batch. One whose temporaries are
large takes them for all of the batches: new pages from the system at every call, and no cache. Which of the two a
function is cannot be seen from outside, so that one which takes long is measured both ways.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from intune.pipelines.payloads import Piece
from intune.pipelines.schema import Block, block_rows, same_bits, slice_block, take_block

LONG = 0.02
"""Seconds of a processor's time that a joined call must take for the other way to be tried: in less, a function
cannot fill temporaries that matter."""

TRIALS = 4
"""Calls that are timed each way. The quickest counts, since whatever disturbs a call makes it slower."""

GAIN = 0.9
"""Of a joined row's time, what a row may take at most with one batch a call for that way to be chosen."""

Apply = Callable[[Block], "Block | None"]


class Joining:
    """What is known of one function in this process; shared by its threads.

    The rows come out the same either way, for a function may say that it works row by row only if they do. Since the
    last bit of a sum may yet depend on how many rows were summed at once (matrix products of BLAS), one batch is made
    both ways first; a function that makes other bits of it is given its batches joined always. So what is delivered
    does not depend on what was measured.

    A copy in another process measures for itself, and all copies that a process gets of one are one.

    Args:
        clock: seconds that the calling thread has used of a processor.
    """

    def __init__(self, clock: Callable[[], float] = time.thread_time, *, key: str | None = None) -> None:
        self._clock = clock
        self._key = uuid.uuid4().hex if key is None else key
        self._lock = threading.Lock()
        self._returned = False
        # Batches that lie together, at most so far: an epoch's first tasks are small, and tell nothing of the others.
        self._most = 0
        self._times: dict[bool, list[float]] = {True: [], False: []}  # of a row, joined or not
        self._way: bool | None = None
        self._compared = False

    def __reduce__(self) -> tuple[Any, ...]:
        return _here, (self._key,)

    def results(self, piece: Piece, apply: Apply) -> Iterator[Piece]:
        """What `apply` makes of the batches of a piece: of all at once, or of one after another."""
        alike = len(piece) > 1 and len(set(np.diff(piece.edges).tolist())) == 1
        # Where one batch has other rows than the rest, as an epoch's last has, the comparison would not hold for it.
        if piece.block is None:
            yield piece
        elif not alike or self._joined(len(piece)):
            yield Piece(self._call(apply, piece.block, len(piece) if alike else 0, joined=True), piece.edges)
        elif not self._compared:
            yield Piece(self._compare(apply, piece.block, piece.edges[1]), piece.edges)
        else:
            for single in piece.singles():
                assert single.block is not None
                yield Piece(self._call(apply, single.block, len(piece), joined=False), single.edges)

    def _joined(self, batches: int) -> bool:
        """Whether the next batches, so many that lie together, are joined."""
        with self._lock:
            if self._way is not None:
                return self._way
            if batches > self._most:
                self._most, self._times = batches, {True: [], False: []}
            joined, single = self._times[True], self._times[False]
            if batches < self._most or len(joined) < TRIALS:
                return True
            if len(single) < TRIALS:
                return False
            self._way = min(single) > GAIN * min(joined)
            return self._way

    def _call(self, apply: Apply, block: Block, batches: int, *, joined: bool) -> Block | None:
        """Call the function, and note what it took out of `batches` that lie together."""
        timed = self._returned  # the first calls may compile or import something
        began = self._clock()
        made = apply(block)
        taken = self._clock() - began
        rows = block_rows(block)
        with self._lock:
            self._returned = True
            times = self._times[joined]
            most = 0 < batches == self._most  # 0: nothing that could be joined
            if timed and self._way is None and most and len(times) < TRIALS:
                times.append(taken / rows)
                if joined and len(times) == TRIALS and min(times) * rows < LONG:
                    self._way = True
        return made

    def _compare(self, apply: Apply, block: Block, rows: int) -> Block | None:
        """All batches joined; and whether the first one, of `rows` rows, alone comes out with the same bits."""
        # The function may change what it is given: what it gets the second time must be another.
        again = take_block(slice_block(block, 0, rows), np.arange(rows))
        made = apply(block)
        alone = apply(again)
        same = made is not None and alone is not None and same_bits(slice_block(made, 0, rows), alone)
        with self._lock:
            self._compared = True
            if not same and self._way is None:
                self._way = True
        return made


_known: WeakValueDictionary[str, Joining] = WeakValueDictionary()
_lock = threading.Lock()


def _here(key: str) -> Joining:
    """This process's own of a `Joining` that came from another."""
    with _lock:
        known = _known.get(key)
        if known is None:
            known = _known[key] = Joining(key=key)
        return known
