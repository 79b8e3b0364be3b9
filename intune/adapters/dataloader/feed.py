"""What one loop reads, and where it has it made: by workers ahead of the trainer, or in the trainer's own thread."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from intune.adapters.dataloader.generators import EpochSeed, global_states, restore
from intune.adapters.dataloader.in_flight import InFlight
from intune.adapters.dataloader.indices import Indices, Item
from intune.adapters.dataloader.inspection.caution import Caution
from intune.adapters.dataloader.inspection.choice import DRAWS
from intune.adapters.dataloader.sources import Sources
from intune.adapters.dataloader.tasks import Fetcher, Made, MapFetcher, pinned_here
from intune.pipelines.executors.threads import ThreadFleet

if TYPE_CHECKING:
    from intune.adapters.dataloader.tunable import TunableDataLoader


Reading = Indices | Sources
"""What an epoch is read from: a sampler, or an iterable-style dataset."""


class Feed:
    """Of one loop, for the trainer's thread.

    Args:
        loader: whose loop it is.
        reading: where items come from.
        fleet: the threads that work on it.
        resumed: whether the loop goes on with what was read already.

    Attributes:
        in_flight: what they are at.
    """

    def __init__(
        self, loader: TunableDataLoader, reading: Reading, fleet: ThreadFleet, *, resumed: bool = False
    ) -> None:
        self._loader = loader
        self._workshop = loader.workshop
        self._settings = loader.settings
        self.reading = reading
        self.in_flight = InFlight(loader, fleet)
        self._fetcher: Fetcher | None = None
        self._items: deque[Item] = deque()
        self._failure: Exception | None = None
        self._caution = Caution(
            loader.settings,
            self._workshop.verdict,
            code=self._workshop.auto or loader.settings.iterable,
            resumed=resumed,
        )

    @property
    def spent(self) -> bool:
        """Whether everything that was read has been taken, and there is no more to read."""
        return self.reading.exhausted and not self._items and not self.in_flight.count

    # ---- reading and offering --------------------------------------------------------------------------------

    def _lookahead(self) -> int:
        """Batches to have read beyond those handed over: two for every slot, as the scheduler may want."""
        allocation = self._loader.allocation
        slots = sum(allocation.of(stage) + 1 for stage in self._loader.stages)
        return max(2 * slots, self._settings.prefetch)

    def _pull(self) -> bool:
        """Read one item more; False at the end, or after what could not be read."""
        if self._failure is not None:
            return False
        try:
            item = self.reading.pull()
        except Exception as error:
            self._failure = error
            return False
        if item is not None:
            self._items.append(item)
        return item is not None

    def raise_failure(self) -> None:
        """Everything before it has been handed over: raise what the sampler raised, if it did."""
        if self._failure is not None:
            raise self._failure

    def _first_items(self) -> Iterator[Item]:
        """The items to come, to be looked at; they stay to be offered. No more than the trainer has asked for, while
        nobody knows whether there may be."""
        number = 0
        while number < len(self._items) or self._pull():
            yield self._items[number]
            number += 1
            if not self._caution.look(self._items[0]):
                return

    def _holds(self) -> bool:
        return bool(self._items) and not self._caution.look(self._items[0])

    def begin_batch(self) -> None:
        """The trainer asks for a batch."""
        if not self._workshop.here:
            self._caution.begin()

    def decide(self) -> None:
        """Choose where batches are made; not yet while it is not known whether more may be read for that."""
        if self._failure is not None and not self._items:
            return
        with self._workshop.deciding:
            if self._workshop.choice is None:  # else a loop in another thread has chosen meanwhile
                self._workshop.decide(self._first_items(), self.seed or EpochSeed(0), held=self._holds)
        self._heed()
        self._loader.recap()

    def look(self, made: Made) -> None:
        """A batch was made while it was not known whether more may be read."""
        if not made.ended and not self._workshop.here:
            self._caution.look(made.item)
            self._heed()

    def _heed(self) -> None:
        workshop = self._workshop
        if workshop.auto and workshop.verdict.reason and not workshop.here:
            workshop.go_here(workshop.verdict.reason, warn=False)
            self._loader.recap()

    def read_ahead(self) -> None:
        """Read as far as the slots may want; as the DataLoader does without workers, one item at first."""
        workshop = self._workshop
        ahead = self._settings.num_workers or (
            workshop.sized and not workshop.here and workshop.verdict.ahead
        )
        wanted = self._lookahead() if ahead else 1
        while len(self._items) + self.in_flight.count < wanted and self._pull():
            pass

    def make(self) -> Made | None:
        """The next batch, made in the trainer's thread; None at the end. No task of it: handing a batch from thread to
        thread takes some 0.2 ms, more than many take to be made."""
        if not self._items:
            return None
        workshop, item = self._workshop, self._items.popleft()
        began, ran_s = time.monotonic(), time.thread_time()
        if now := item.made is None:
            workshop.make(item, self._the_fetcher(), self.seed)
        made: Made = item.made
        item.made = None  # the two would keep each other until the garbage collector comes by
        if self._settings.pin and made.error is None and not made.ended:
            made = pinned_here(made, self._settings)
        seconds, cpu_s = time.monotonic() - began, time.thread_time() - ran_s
        if not made.ended:
            self._book(made, seconds, cpu_s)
            # A loop's first batch warms up.
            if now and item.ordinal and workshop.took(seconds, cpu_s):
                self._loader.recap()
        return made

    def _book(self, made: Made, seconds: float, cpu_s: float) -> None:
        """Count a batch that was made in the trainer's thread: all the work is that of the first stage."""
        first, *_ = meters = list(self.in_flight.meters.values())
        for meter in meters:
            meter.tasks += 1
            meter.rows += made.rows
        first.bytes_out += sum(self._workshop.sizes.measure(made).values())
        first.done_s += seconds
        first.cpu_s += cpu_s
        first.pass_time(seconds, 1, 1, shared=False, ready=False)

    def offer(self) -> None:
        """Have workers make the items at hand. Until the first batch has told how large one is, only one at a time,
        beside those that are made already."""
        while self._items and not self._workshop.here:
            item = self._items[0]
            if item.made is None:
                if not self._workshop.sized and self.in_flight.count:
                    return
                self._workshop.send_changes()
            if not self.in_flight.offer(item, self._the_fetcher()):
                return
            self._items.popleft()

    def _the_fetcher(self) -> Fetcher:
        if self._workshop.choice is None:
            return MapFetcher(self._settings)  # until then all that is offered is made already
        if self._fetcher is None:
            self._fetcher = self._workshop.fetcher(self.reading)
        return self._fetcher

    @property
    def seed(self) -> EpochSeed | None:
        """Of the epoch's workers; None for an iterable-style dataset, whose iterators know it."""
        return self.reading.seed if isinstance(self.reading, Indices) else None

    def reconsider(self, made: Made) -> bool:
        """Whether what was taken has to be made again, and what comes after it, in the trainer's own thread: there its
        code fails not, or draws the random numbers it should."""
        workshop, states = self._workshop, None
        if not self.in_flight.holding:
            return False  # it was made there
        if made.error is not None and self.seed is not None:
            workshop.mend(made, self.seed)
        reason = workshop.objects(made)
        if reason and self.seed is not None:
            again = replace(made.item, made=None)
            workshop.make(again, self._the_fetcher(), self.seed)
            if again.made.error is not None:
                return False  # here too
            made.item.made = again.made
        if not reason and made.error is None and workshop.watch.suspects(made.item.ordinal):
            states = global_states()
            if workshop.make(replace(made.item, made=None), self._the_fetcher(), self.seed):
                reason = f"{DRAWS}, though not for the first batches"
        if not reason:
            return False
        workshop.go_here(reason)
        self._begin_anew(made.item)
        if states is not None:
            restore(states)
        self._loader.recap()
        return True

    def _begin_anew(self, item: Item) -> None:
        """Take back what is under way, from `item` on, which was taken last."""
        self._items.extendleft(reversed(self.in_flight.take_back()))
        self._fetcher = None
        if isinstance(self.reading, Sources):
            self.reading.begin_anew(item)
