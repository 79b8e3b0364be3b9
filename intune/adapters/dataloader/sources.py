"""An iterable-style dataset cannot be split by index: its iterators, one for each worker of the DataLoader.

As the DataLoader has it, every worker has a copy of the dataset and their batches take turns, those that have
come to their end being passed over. An iterator makes one batch at a time, so that more slots for fetching than
there are iterators would only wait.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from intune.adapters.dataloader.indices import Item
from intune.adapters.dataloader.inspection.copies import copied
from intune.adapters.dataloader.sending.worker import SampleReader
from intune.adapters.dataloader.settings import LoaderSettings
from intune.adapters.dataloader.surroundings import Surroundings
from intune.adapters.dataloader.tasks import Made
from intune.pipelines.errors import LoaderError


class Link(Protocol):
    """One iterator, here or in a process."""

    def take(self, item: Item) -> Made:
        """Its next batch, or that there is none."""


class ThreadLink:
    """An iterator over the dataset itself, in this process; made in the trainer's thread as the DataLoader does.

    Args:
        lock: held while the dataset's code runs, which otherwise another iterator over it may meet: that of a
            loop around this one, or of one that was left while a batch was being made.
        skip: batches at its start that were handed over before.
        ahead: says whether more is read while a batch is in use. Where the dataset makes the batches, they may lie in
            memory that it uses again for the next, and are copied then.
    """

    def __init__(
        self, settings: LoaderSettings, lock: threading.Lock, *, skip: int = 0, ahead: Callable[[], bool]
    ) -> None:
        self._lock = lock
        with lock:
            self._reader = SampleReader(iter(settings.dataset), settings.batch_size, settings.drop_last)
        self._skip = skip
        self._batched = settings.batched
        self._ahead = ahead
        # The same for all batches: an iterator may set a context variable and set it back batches later.
        self._surroundings = Surroundings()

    def take(self, item: Item) -> Made:
        """As `Link.take`; the samples, not yet a batch."""
        with self._lock:
            taken = self._surroundings.run(self._next)
            if taken is not None and not self._batched and self._ahead():
                taken = taken[0], copied(taken[1])
        if taken is None:
            return Made(item, 0, None, collated=True, ended=True)
        return Made(item, taken[0], taken[1])

    def _next(self) -> tuple[int, Any] | None:
        while self._skip:
            self._reader.next()
            self._skip -= 1
        return self._reader.next()


class Sources:
    """One epoch of all iterators: whose turn it is, for the trainer's thread; their batches, for the workers'.

    Args:
        links: the iterators.
        rows: samples of a batch.
        counts: batches that were handed over before, of each.
        turn: whose batch is next.
        on_leave: called once, when nobody wants more.
        again: makes the link of the only iterator anew, without so many batches at its start.
    """

    def __init__(
        self,
        links: Sequence[Link],
        rows: int,
        *,
        counts: Sequence[int],
        turn: int = 0,
        on_leave: Callable[[], None] | None = None,
        again: Callable[[int], Link] | None = None,
    ) -> None:
        self._links = list(links)
        self._again = again
        self._rows = rows
        self._asked = [0] * len(links)
        self._served = [0] * len(links)
        self._ended = [False] * len(links)
        self._turn = turn
        self._ordinal = sum(counts)
        self._changed = threading.Condition()
        self._left = False
        self._on_leave = on_leave
        self._delivered = list(counts)
        self._next_turn = turn

    # ---- the trainer's thread --------------------------------------------------------------------------------

    def pull(self) -> Item | None:
        """Which iterator's batch comes next; None when all have ended."""
        for _ in self._links:
            source, self._turn = self._turn, (self._turn + 1) % len(self._links)
            if not self._ended[source]:
                item = Item(
                    self._ordinal,
                    self._rows,
                    source=source,
                    turn=self._asked[source],
                    surroundings=Surroundings(),
                )
                self._asked[source] += 1
                self._ordinal += 1
                return item
        return None

    @property
    def exhausted(self) -> bool:
        """Whether all iterators were seen to have come to their end."""
        return all(self._ended)

    def ended(self, source: int) -> None:
        """An iterator was seen to have come to its end."""
        self._ended[source] = True

    def begin_anew(self, item: Item) -> None:
        """Make the only iterator anew, for its batch `item` and those after it."""
        assert self._again is not None
        self._links = [self._again(self._delivered[item.source])]
        with self._changed:
            self._served[item.source] = item.turn

    def handed_over(self, item: Item, delivered: int) -> None:
        """A batch has gone to the trainer."""
        self._delivered[item.source] += 1
        self._next_turn = (item.source + 1) % len(self._links)

    def state(self) -> dict[str, Any]:
        """How many batches of each iterator have gone to the trainer, and whose is next."""
        return {"counts": list(self._delivered), "turn": self._next_turn}

    def leave(self, delivered: int = 0, *, finished: bool = False) -> None:
        """Nobody wants more: let those go that wait for their turn."""
        with self._changed:
            left, self._left = self._left, True
            self._changed.notify_all()
        if not left and self._on_leave is not None:
            self._on_leave()

    # ---- workers' threads ------------------------------------------------------------------------------------

    def fetch(self, item: Item) -> Made:
        """The batch of an item, after those of the same iterator that come before it."""
        with self._changed:
            self._changed.wait_for(lambda: self._left or self._served[item.source] == item.turn)
            if self._left:
                raise LoaderError("the loop was left while this ran")
        try:
            return self._links[item.source].take(item)
        finally:
            with self._changed:
                self._served[item.source] += 1
                self._changed.notify_all()
