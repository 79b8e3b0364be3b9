"""Reading a DataLoader's sampler as the DataLoader itself would: same calls, same draws, in the trainer's thread.

Only how far ahead it is read differs. Generators may be shared with other loaders, so that at any time they are as
the DataLoader would have them: what would draw is not read ahead, and what is found to draw for all that is hidden
until its turn comes.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from intune.adapters.dataloader.generators import EpochSeed, draw_seed, generators_of
from intune.adapters.dataloader.inspection.draws import draws_of, length_of
from intune.adapters.dataloader.settings import LoaderSettings
from intune.adapters.dataloader.surroundings import Surroundings

States = list[torch.Tensor]
"""Of some generators."""


@dataclass(slots=True)
class Item:
    """What one batch is to be made of.

    Attributes:
        ordinal: which batch of the epoch it is.
        rows: its samples, as far as is known before it is made.
        index: what the sampler gave for it.
        source: of which iterator of an iterable-style dataset it is the next batch.
        turn: how many batches of that iterator come before it in this epoch.
        made: the batch, where it has been made already.
        surroundings: under which it is to be made in another thread.
    """

    ordinal: int
    rows: int
    index: Any = None
    source: int = 0
    turn: int = 0
    made: Any = None
    surroundings: Surroundings | None = None


class Indices:
    """One epoch's reading of the sampler.

    Args:
        seed: that of earlier epochs, kept with persistent workers; None to draw one.
        done: batches at the start that are not wanted, since they were handed over before.
        ahead: the same of later ones.
        peek: read the first item at once, while the random generators are as they were.
        late: whether reading the sampler may change what others see, so that none of it is read before the DataLoader
            would.
    """

    def __init__(
        self,
        settings: LoaderSettings,
        *,
        seed: EpochSeed | None = None,
        done: int = 0,
        ahead: frozenset[int] = frozenset(),
        peek: bool = False,
        late: bool = False,
    ) -> None:
        self._settings = settings
        self._late = late
        self._generators = generators_of(settings)
        self._draws = draws_of(settings.index_sampler) if self._generators else None
        self._length = length_of(settings.index_sampler) if self._generators else None
        self._drew_ahead = False
        self._ahead = ahead
        self._iterator = iter(settings.index_sampler)
        self.seed = EpochSeed(draw_seed(settings)) if seed is None else seed
        if settings.num_workers and seed is None:
            # As the DataLoader, which makes the sampler's iterator anew once its workers have started.
            self._iterator = iter(settings.index_sampler)
        self._attempts = 0
        self._delivered = done + len(ahead)
        self._shown: States = []
        self._hidden: deque[tuple[int, States]] = deque()
        self._ended = False
        # With workers, code that runs in them finds what was around the trainer when they were started.
        self._surroundings = Surroundings() if settings.num_workers else None
        for _ in range(done):
            with suppress(StopIteration):
                self._read()
        self._peeked: deque[Item] = deque()
        if peek:
            self._peek()

    # ---- for the feed ----------------------------------------------------------------------------------------

    @property
    def exhausted(self) -> bool:
        """Whether nothing more is to come. That the sampler is at its end need not have been seen."""
        at_end = self._ended or (self._length is not None and self._attempts >= self._length)
        return at_end and not self._peeked

    def pull(self) -> Item | None:
        """What the next batch is made of; None at the end, or while it must not be read yet."""
        if self._peeked:
            return self._peeked.popleft()
        return None if self._held() else self._pull()

    def handed_over(self, item: Item, delivered: int) -> None:
        """A batch has gone to the trainer, which has `delivered` in all."""
        self._delivered = delivered
        if not (self._generators or self._late):
            return
        due = delivered + self._settings.prefetch
        self._show(due)
        while self._attempts < due and not self._ended:
            self._peek()  # as the DataLoader does before it hands the batch over

    def leave(self, delivered: int, *, finished: bool) -> None:
        """The loop is over after so many batches."""
        if finished:
            self._show(self._attempts)
        self._hidden.clear()

    def state(self) -> dict[str, Any]:
        """Nothing: what a loop has handed over says where it is."""
        return {}

    def at_end(self) -> States:
        """What the generators will be once the trainer has asked for one batch more than there are."""
        if self.exhausted and not self._ended:
            self._peek(ahead=True)
        now = self._states()
        return self._hidden[-1][1] if self._hidden and _equal(now, self._shown) else now

    # ---- inside ----------------------------------------------------------------------------------------------

    @property
    def _due(self) -> int:
        """Reads that the DataLoader has made while it makes the next batch."""
        return self._delivered + max(1, self._settings.prefetch)

    def _held(self) -> bool:
        """Whether the next read has to wait, since it may draw and the DataLoader would not have made it yet."""
        if self._attempts < self._due or not (self._generators or self._late):
            return False
        if self._late:
            return True
        if self._draws is not None:
            return self._draws(self._attempts)
        # A sampler of unknown kind mostly draws at once, and is not to be read far ahead once it was seen not to.
        return self._drew_ahead or (self._length is not None and self._attempts >= self._length - 1)

    def _peek(self, *, ahead: bool = False) -> None:
        item = self._pull(ahead=ahead)
        if item is not None:
            self._peeked.append(item)

    def _pull(self, *, ahead: bool = False) -> Item | None:
        while True:
            ordinal = self._attempts
            try:
                index = self._read(ahead=ahead)
            except StopIteration:
                return None
            if ordinal not in self._ahead:
                rows = len(index) if self._settings.batched and hasattr(index, "__len__") else 1
                return Item(
                    ordinal=ordinal,
                    rows=rows,
                    index=index,
                    surroundings=Surroundings() if self._surroundings is None else self._surroundings.copy(),
                )

    def _read(self, *, ahead: bool = False) -> Any:
        """What the sampler gives; a `StopIteration` from its end on."""
        if self._ended:
            raise StopIteration
        if not self._generators:
            return self._next()
        before = seen = self._states()
        if self._hidden:
            if _equal(seen, self._shown):
                before = self._hidden[-1][1]
                self._set(before)
            else:  # others have drawn meanwhile: go on from there
                self._hidden.clear()
        ahead = ahead or self._attempts >= self._due
        try:
            return self._next()
        finally:
            after = self._states()
            if ahead and not _equal(after, before):
                self._drew_ahead = True
                self._hidden.append((self._attempts, after))
            if self._hidden:
                self._set(seen)
                self._shown = seen

    def _next(self) -> Any:
        try:
            index = next(self._iterator)
        except StopIteration:
            self._ended = True
            self._attempts += 1
            raise
        self._attempts += 1
        # Some samplers use theirs again for the next batch.
        if isinstance(index, torch.Tensor):
            return index.clone()
        return index.copy() if type(index) in (list, np.ndarray) else index

    def _show(self, attempts: int) -> None:
        """The DataLoader would have made so many reads: let their draws be seen, unless others have drawn meanwhile."""
        states = None
        while self._hidden and self._hidden[0][0] <= attempts:
            _, states = self._hidden.popleft()
        if states is None:
            return
        if _equal(self._states(), self._shown):
            self._set(states)
            self._shown = states
        else:
            self._hidden.clear()

    def _states(self) -> States:
        return [generator.get_state() for generator in self._generators]

    def _set(self, states: States) -> None:
        for generator, state in zip(self._generators, states, strict=True):
            generator.set_state(state)


def _equal(states: States, others: States) -> bool:
    return all(map(torch.equal, states, others)) if len(states) == len(others) else False
