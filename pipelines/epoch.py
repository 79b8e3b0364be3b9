"""`Epoch`: one loop over a loader, which hands what the workers made to the trainer and keeps count of it."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from intune.pipelines.allocation import Allocation
from intune.pipelines.errors import LoaderError, SkipLimitError
from intune.pipelines.executors.choice import Fleet
from intune.pipelines.position import Position
from intune.pipelines.run import Run, check_process, close_dropped
from intune.pipelines.schema import block_rows

if TYPE_CHECKING:  # it imports torch
    from intune.pipelines.transfer import Device


@dataclass(slots=True)
class Counts:
    """What a loader counts over all epochs; the names are those of `PipelineStats`."""

    elapsed_s: float = 0.0
    step_s: float = 0.0
    wait_s: float = 0.0
    batches: int = 0
    rows: int = 0
    redone: int = 0
    skipped: int = 0


class Epoch(Iterator[dict[str, Any]]):
    """Several threads may share it: each batch goes to one of them, the end to all.

    Args:
        run: the epoch's work, under way.
        start: the first batch.
        fleet: works on it.
        counts: of the loader.
        device: to which batches move; None for the CPU.
        left: told once where the loop ended, and whether that is the end of the epoch.
        at_exit: whether it was the end of the program that closed the loader.
    """

    def __init__(
        self,
        run: Run,
        start: Position,
        *,
        fleet: Fleet,
        counts: Counts,
        device: Device | None,
        left: Callable[[Position, bool], None],
        at_exit: Callable[[], bool],
    ) -> None:
        self._run = run
        self._plan = run.scheduler.plan
        self._fleet = fleet
        self._counts = counts
        self._device = device
        self._left = left
        self._at_exit = at_exit
        self._clock = run.clock
        self._pid = os.getpid()
        self._epoch = start.epoch
        self._next = start.batch
        self._ahead = set(start.ahead)
        self._given = start.batch > 0 or bool(start.ahead)
        self._queue: deque[tuple[int, Any]] = deque()
        self._output: int | None = None
        self._asked: float | None = None
        self.closed = False
        self._ended = False
        # Whoever waits for a batch has the turn. The position is apart, so that another thread can close the loop
        # meanwhile. Both are reentrant: the garbage collector may run code that uses a loop within another use.
        self._turn = threading.RLock()
        self._place = threading.RLock()

    def __next__(self) -> dict[str, Any]:
        check_process(self._pid)  # in a fork the turn may be held for ever
        with self._turn:
            return self._take()

    def _take(self) -> dict[str, Any]:
        now = self._clock()
        if self._ended:
            raise StopIteration
        if self._asked is not None:
            self._counts.step_s += now - self._asked
        if self.closed:
            self._refuse()
        try:
            while not self._queue:
                if not self._fetch():
                    self._end()
        except BaseException:
            self.close()
            # Told now; its frames hold this loop, and so the loader, which would go round.
            self._run.error = None
            raise
        with self._place:
            if self.closed:  # by another thread
                self._refuse()
            index, batch = self._queue.popleft()
            self._given = True
            self._advance(index)
        self._counts.batches += 1
        self._counts.rows += block_rows(batch)
        made: dict[str, Any] = batch if self._device is None else self._device.hand_over(batch)
        self._asked = self._clock()
        self._counts.wait_s += self._asked - now
        return made

    def _end(self) -> NoReturn:
        self._ended = True
        if not self._given:  # an epoch without a batch would look like training
            raise SkipLimitError(
                f"all {self._plan.batches} batches of the epoch were skipped, each with a warning that says why; mend "
                "the data or the function"
            )
        raise StopIteration

    def _refuse(self) -> NoReturn:
        if self._at_exit() and threading.current_thread().daemon:
            threading.Event().wait()  # the program ends, and this thread with it: nobody is to see an error for that
        raise LoaderError(
            "this loop over the loader is over: it was closed, an error has ended it, or another loop has begun; "
            "begin a new one"
        )

    def _fetch(self) -> bool:
        """Get the next output of the workers; False at the end of the epoch."""
        if self._output is not None:
            self._run.consumed(self._output)
            self._output = None
        found = self._run.next_output()
        if found is None:
            # By another thread, perhaps before the loader knew of this loop: that is no end of the epoch.
            if self.closed or self._run.closed:
                self._refuse()
            return False
        self._output, batches = found
        start = int(self._plan.levels[-1].start[self._output])
        with self._place:
            if self.closed:
                self._refuse()
            for index, batch in enumerate(batches, start):
                if index < self._next or index in self._ahead:
                    continue  # handed over before the state was saved that this loop continues
                if batch is None:
                    self._advance(index)
                else:
                    self._queue.append((index, batch))
        return True

    def _advance(self, index: int) -> None:
        self._ahead.add(index)
        while self._next in self._ahead:
            self._ahead.discard(self._next)
            self._next += 1

    def position(self) -> Position:
        """Where the trainer is."""
        with self._place:
            return Position(epoch=self._epoch, batch=self._next, ahead=tuple(sorted(self._ahead)))

    def resize(self, allocation: Allocation) -> None:
        """Other slots for the run under way."""
        with self._run.lock:
            self._run.scheduler.resize(allocation, self._clock())
            self._run.work.notify_all()

    def read(self) -> tuple[tuple[Any, ...], int, float, int]:
        """Stages, bytes allowed, and, of all epochs so far, seconds under way and outputs made again."""
        scheduler, counts = self._run.scheduler, self._counts
        with self._run.lock:
            scheduler.tick(self._clock())
            stages, limit = scheduler.read(), scheduler.limit
        with self._place:  # else this epoch, ended just now, would count twice
            if self.closed:
                return stages, limit, counts.elapsed_s, counts.redone
            elapsed = counts.elapsed_s + self._clock() - self._run.began
            return stages, limit, elapsed, counts.redone + scheduler.redone

    def in_use_here(self) -> bool:
        """Whether this thread is in the middle of something that a close must not change under it."""
        placed: bool = self._place._is_owned()  # type: ignore[attr-defined]
        return placed or self._run.held_here()

    def close(self) -> None:
        """Stop the workers' work on this epoch."""
        if os.getpid() != self._pid:
            return  # in a fork the workers' locks may be held for ever
        with self._place:
            if self.closed:
                return
            self.closed = True
            self._counts.elapsed_s += self._clock() - self._run.began
            self._counts.redone += self._run.scheduler.redone
            # By what was taken: a loop that counts its batches does not ask for one more.
            self._left(self.position(), self._next >= self._plan.batches)
            self._queue.clear()
        self._fleet.stop(self._run)

    def __del__(self) -> None:
        # A loop left early drops its iterator: the workers need not go on for nobody.
        close_dropped(self._run, self.close)
