"""One loop over a wrapped DataLoader, as the trainer's thread sees it: batches in turn, where it is, its end."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from intune.adapters.dataloader.feed import Feed, Reading
from intune.adapters.dataloader.sources import Sources
from intune.adapters.dataloader.tasks import Made
from intune.pipelines.errors import LoaderError, StageTimeout
from intune.pipelines.executors.threads import ThreadFleet
from intune.pipelines.operations import LOOKS

if TYPE_CHECKING:
    from intune.adapters.dataloader.tunable import TunableDataLoader

_OVER = "this loop over the loader is over: it was closed; begin a new one"


class Epoch(Iterator[Any]):
    """One loop over the loader.

    Args:
        loader: whose loop this is.
        reading: where the items come from.
        fleet: the threads that work on it; given back at the end.
        began: the random generators as they were before.
        done, ahead: batches handed over before, as in `TunableDataLoader.state_dict`.
    """

    def __init__(
        self,
        loader: TunableDataLoader,
        reading: Reading,
        fleet: ThreadFleet,
        *,
        began: Mapping[str, Any],
        done: int = 0,
        ahead: frozenset[int] = frozenset(),
    ) -> None:
        self._loader = loader
        self.workshop = loader.workshop
        self._settings = loader.settings
        self._before = began
        self.epoch = loader.epoch
        self._next = done
        self._ahead = set(ahead)
        self._over = False
        self._asked: float | None = None
        self.began = time.monotonic()
        self.closed = False
        self.feed = Feed(loader, reading, fleet, resumed=bool(done or ahead))
        self.in_flight = self.feed.in_flight
        # With workers the DataLoader reads ahead from here on; without, not before it is asked for a batch.
        if self._settings.num_workers:
            self.feed.read_ahead()
            if self.workshop.choice is not None and not self.workshop.here:
                self.feed.offer()

    # ---- batches ---------------------------------------------------------------------------------------------

    def __next__(self) -> Any:
        now = time.monotonic()
        counts = self._loader.counts
        if self._asked is not None:
            counts.step_s += now - self._asked
            self._asked = None
        self._loader.check_process()
        if self.closed:
            if self.complete:
                raise StopIteration
            raise LoaderError(_OVER)
        try:
            made = self._wait()
        except BaseException:
            self.close()
            raise
        counts.wait_s += (asked := time.monotonic()) - now
        if made is None:
            self._over = True
            self.close()
            raise StopIteration
        self._asked = asked
        self._advance(made)
        if made.error is not None:
            # The error's traceback will hold this frame and so the loop, which must not hold the error: it would
            # end when the garbage collector comes by, in whatever thread, and not when it is dropped.
            self.in_flight.let_go()
            try:
                raise made.error
            finally:
                del made
        counts.batches += 1
        counts.rows += made.rows
        return made.data

    def _wait(self) -> Made | None:
        """The next batch, waiting for it; None at the end of the epoch."""
        feed = self.feed
        while True:
            self.in_flight.let_go()
            feed.begin_batch()
            feed.read_ahead()
            if self.workshop.choice is None:
                feed.decide()
            made = self._made()
            if made is None:
                feed.raise_failure()
                return None
            if feed.reconsider(made):
                continue
            feed.look(made)
            if not made.ended:
                return made
            assert isinstance(feed.reading, Sources)
            feed.reading.ended(made.item.source)

    def _made(self) -> Made | None:
        """What comes next; None where there is nothing more."""
        feed = self.feed
        if self.workshop.here and not self.in_flight.count:
            return feed.make()
        feed.offer()
        return self._take() if self.in_flight.count else None

    def _take(self) -> Made:
        timeout = self._settings.timeout if self._settings.num_workers else None
        made = self.in_flight.take(None) if timeout is None else self._take_within(timeout)
        if made is None:
            raise LoaderError(_OVER)
        return made

    def _take_within(self, timeout: float) -> Made | None:
        """The next batch. Time in which processes start does not count: the DataLoader's own are forks, which are
        there at once, while the first of ours has to import torch, and each of them the user's modules."""
        processes = self.workshop.processes
        counted = 0
        while True:
            starting = processes.starting
            try:
                return self.in_flight.take(timeout / LOOKS)
            except TimeoutError:
                counted += not (starting or processes.starting)
                if counted == LOOKS:
                    raise StageTimeout(
                        f"no batch came within `timeout`={timeout:g} s of the DataLoader; allow more"
                    ) from None

    def _advance(self, made: Made) -> None:
        if self._settings.in_order:
            self._next += 1
        else:
            self._ahead.add(made.item.ordinal)
            while self._next in self._ahead:
                self._ahead.discard(self._next)
                self._next += 1
        self.feed.reading.handed_over(made.item, self.delivered)

    def __len__(self) -> int:
        """Batches of the epoch, as the DataLoader's own iterator says."""
        return len(self._loader.dataloader._index_sampler)

    # ---- where it is -----------------------------------------------------------------------------------------

    @property
    def batch(self) -> int:
        """Batches handed over without a gap."""
        return self._next

    @property
    def delivered(self) -> int:
        """Batches handed over."""
        return self._next + len(self._ahead)

    @property
    def complete(self) -> bool:
        """Whether every batch has been handed over, though the trainer may not have asked for another."""
        return self._over or self.feed.spent

    def state(self) -> dict[str, Any]:
        """Where the loop is, and how it began."""
        if self.complete:
            return {"epoch": self.epoch + 1, "batch": 0, "counted": self.epoch}
        here = {"epoch": self.epoch, "batch": self._next, "ahead": sorted(self._ahead)}
        return {**self._before, **here, **self.feed.reading.state()}

    # ---- the end ---------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop the workers' work on this loop."""
        if self.closed or os.getpid() != self._loader.pid:
            return  # in a fork the workers' locks may be held for ever
        self.closed = True
        self.feed.reading.leave(self.delivered, finished=self._over)
        self.in_flight.stop()
        self._loader.leave(self)

    def __del__(self) -> None:
        # A loop left early drops its iterator: the workers need not go on for nobody.
        if hasattr(self, "in_flight"):
            self.in_flight.close_dropped(self.close)
