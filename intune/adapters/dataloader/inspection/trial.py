"""The first batches of a wrapped DataLoader: made here, in the trainer's process, and then remade in a worker's.

What a process makes is only trusted where it made the same of the same indices: a fresh interpreter imports the
user's modules, but does not know what the script has set in them since.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from torch.utils.data import default_collate

from intune.adapters.dataloader.generators import EpochSeed, as_of, global_states, random_states, restore
from intune.adapters.dataloader.indices import Item
from intune.adapters.dataloader.inspection.copies import copied, difference
from intune.adapters.dataloader.inspection.probe import Measurement, Probe
from intune.adapters.dataloader.sending.pickled_size import fingerprint, structure_bytes
from intune.adapters.dataloader.sending.sendable import keeps_back_open
from intune.adapters.dataloader.sending.worker import FetchRequest, like_a_worker
from intune.adapters.dataloader.settings import LoaderSettings
from intune.adapters.dataloader.tasks import in_a_line, make_here


@dataclass(slots=True)
class _Case:
    """A batch made here alone.

    Attributes:
        item: what it is made of, and it.
        random: the random generators before it was made, where the DataLoader has no workers with their own.
    """

    item: Item
    random: dict[str, Any] | None


class Trial:
    """The first batches of an epoch, in the trainer's thread.

    Args:
        seed: of the epoch.
        alone: whether two threads at once must not make any.

    Attributes:
        reuses: whether the code gives out the same memory again, so that one batch overwrites another.
    """

    def __init__(self, settings: LoaderSettings, seed: EpochSeed, *, alone: bool = False) -> None:
        self._settings = settings
        self._alone = alone
        self._seed = seed
        self._cases: list[_Case] = []
        self._together: list[Item] = []
        self._last: tuple[Item, Any, Any] | None = None
        self._before: dict[str, Any] | None = None
        self._after: dict[str, Any] = {}
        self._left: tuple[Any, ...] = ()
        self.reuses = False

    @property
    def made(self) -> list[Any]:
        """The batches, without those that failed."""
        return [case.item.made.data for case in self._cases if case.item.made.error is None]

    def measure(self, items: Iterator[Item]) -> Measurement:
        """Make some and watch them. The trainer's random generators are as the DataLoader leaves them: as they were
        where it has workers, and with the draws of the first batch where it has none."""
        self._after, self._left = global_states(), random_states()
        probe = Probe(
            self._make, together=self._make_together, before=self._note, after=self._own, state=self._state
        )
        measured = probe.measure(self._watchable(items))
        if measured.random:
            return measured
        if self._together and random_states() != self._left:
            restore(self._after)
            for item in self._together:
                item.made = None  # each may have had the other's numbers
            return replace(measured, random=True)
        return measured

    def _watchable(self, items: Iterator[Item]) -> Iterator[Item]:
        """No more than are made alone where two threads at once must not make them, and nothing hangs on how fast they
        are: where the code has what cannot be sent, has opened something or works in one buffer."""
        yield from islice(items, Probe.ALONE)
        if self._alone:
            return
        settings = self._settings
        sendable = structure_bytes((settings.collate_fn, settings.worker_init_fn)) is not None
        if sendable and not self.reuses and fingerprint(settings.dataset, refuse=keeps_back_open) is not None:
            yield from items

    def _state(self) -> Any:
        """Of what the code keeps, as far as that can be told; else another one every time."""
        kept = fingerprint((self._settings.dataset, self._settings.collate_fn), tolerant=True)
        return object() if kept is None else kept

    def _note(self, item: Item) -> None:
        """A batch is about to be made."""
        self._before = None if self._settings.num_workers else global_states()

    def _make(self, item: Item) -> bool:
        """Make a batch; says whether that drew random numbers which are back where they were."""
        settings, before = self._settings, self._before
        with like_a_worker(settings, self._seed, item.ordinal):
            states = random_states()
            make_here(item, settings)
            drew = random_states() != states
        if drew and before is not None and self._cases:
            # The trainer may draw before this batch is its turn.
            restore(before)
            item.made = None
            return True
        self._cases.append(_Case(item, before))
        return drew

    def _own(self, item: Item) -> None:
        """Give the batch before this one memory of its own, if this one was written over it: of collating as torch
        does it is certain that it was not."""
        self._after, self._left = global_states(), random_states()
        if item.made is None or item.made.error is not None:
            return
        if self._settings.batched and self._settings.collate_fn is default_collate:
            return
        if self._last is not None:
            last, raw, copy = self._last
            if difference(copy, raw):
                self.reuses = True
                last.made.data = copy
        self._last = item, item.made.data, copied(item.made.data)

    def _make_together(self, item: Item) -> None:
        self._together.append(item)
        make_here(item, self._settings)
        if not self._settings.batched and item.made.error is None:
            item.made.data = copied(item.made.data)

    def objection(self, ask: Callable[[FetchRequest], Any], *, random: bool) -> str:
        """Why worker processes cannot be trusted with this; nothing if they make the same.

        Args:
            ask: has one make a batch.
            random: whether the code draws random numbers.
        """
        cases = [case for case in self._cases if case.item.made.error is None]
        for case in cases[:1] if random else [*cases[:1], *cases[1:][-1:]]:
            request = FetchRequest(case.item.ordinal, case.item.index, self._seed, case.random)
            try:
                there = ask(request)
            except Exception as error:
                return f"a worker process cannot make a batch ({in_a_line(error)})"
            if found := self._differs(case, there):
                return (
                    f"a worker process makes batch {case.item.ordinal} otherwise ({found}): the code depends on "
                    "what the script has set since it imported its modules"
                )
        return ""

    def _differs(self, case: _Case, there: Any) -> str:
        here = case.item.made.data
        if not (found := difference(here, there)):
            return ""
        again = replace(case.item, made=None)
        states = global_states() if case.random is None else case.random
        with as_of(states), like_a_worker(self._settings, self._seed, again.ordinal):
            make_here(again, self._settings)
        if again.made.error is not None or not difference(here, again.made.data):
            return found
        # It is another one every time; what can be compared is what it looks like, if that is the same.
        if difference(here, again.made.data, values=False):
            return ""
        return difference(here, there, values=False)
