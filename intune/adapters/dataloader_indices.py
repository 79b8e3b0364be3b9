"""Reading a DataLoader's sampler as the DataLoader itself would: same calls, same draws, in the trainer's thread.

Only how far ahead it is read differs, so that when a loop is left early the generators are set back to where
the DataLoader would have left them.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from intune.adapters.dataloader_settings import LoaderSettings


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
    """

    ordinal: int
    rows: int
    index: Any = None
    source: int = 0
    turn: int = 0
    made: Any = None


class Indices:
    """One epoch's reading of the sampler.

    Args:
        settings: of the DataLoader.
        base_seed: of earlier epochs, kept with persistent workers; None to draw one.
        done: batches at the start that are not wanted, since they were handed over before.
        ahead: the same of later ones.
        peek: read the first item at once, while the random generators are as they were.

    Attributes:
        exhausted: whether the sampler has come to its end.
    """

    def __init__(
        self,
        settings: LoaderSettings,
        *,
        base_seed: int | None = None,
        done: int = 0,
        ahead: frozenset[int] = frozenset(),
        peek: bool = False,
    ) -> None:
        self._settings = settings
        self._generators = generators_of(settings)
        self._ahead = ahead
        self._iterator = iter(settings.index_sampler)
        self.base_seed = draw_seed(settings) if base_seed is None else base_seed
        if settings.num_workers and base_seed is None:
            # As the DataLoader, which makes the sampler's iterator anew once its workers have started.
            self._iterator = iter(settings.index_sampler)
        self._attempts = 0
        self._states: deque[tuple[int, list[torch.Tensor]]] = deque()
        self._note()
        self.exhausted = False
        for _ in range(done):
            self._read()
        self._peeked = self._pull() if peek else None

    def pull(self) -> Item | None:
        """What the next batch is made of; None at the end."""
        if (item := self._peeked) is not None:
            self._peeked = None
            return item
        return self._pull()

    def _pull(self) -> Item | None:
        while True:
            ordinal = self._attempts
            try:
                index = self._read()
            except StopIteration:
                return None
            if ordinal not in self._ahead:
                rows = len(index) if self._settings.batched and hasattr(index, "__len__") else 1
                return Item(ordinal=ordinal, rows=rows, index=index)

    def handed_over(self, item: Item, delivered: int) -> None:
        """A batch has gone to the trainer, which has `delivered` in all: what the generators were before that is
        of no use any more."""
        while self._states and self._states[0][0] < min(delivered + self._settings.prefetch, self._attempts):
            self._states.popleft()

    def leave(self, delivered: int, *, finished: bool) -> None:
        """The loop is over after so many batches. If it was left early, set the generators back to where the
        DataLoader would leave them, which reads `prefetch` index batches ahead with workers and none without."""
        attempts = min(delivered + self._settings.prefetch, self._attempts)
        for attempt, states in self._states:
            if attempt == attempts and not finished:
                for generator, state in zip(self._generators, states, strict=True):
                    generator.set_state(state)
        self._states.clear()

    def state(self) -> dict[str, Any]:
        """Nothing: what a loop has handed over says where it is."""
        return {}

    def _read(self) -> Any:
        """What the sampler gives; a `StopIteration` from its end on."""
        if self.exhausted:
            raise StopIteration
        try:
            return next(self._iterator)
        except StopIteration:
            self.exhausted = True
            raise
        finally:
            self._attempts += 1
            self._note()

    def _note(self) -> None:
        if self._generators:
            self._states.append((self._attempts, [generator.get_state() for generator in self._generators]))


def draw_seed(settings: LoaderSettings) -> int:
    """The seed of an epoch's workers, drawn as the DataLoader draws it."""
    return int(torch.empty((), dtype=torch.int64).random_(generator=settings.generator).item())


def generators_of(settings: LoaderSettings) -> list[torch.Generator]:
    """The generators that the DataLoader and its samplers own."""
    found: list[torch.Generator] = []
    sampler = settings.index_sampler
    for owner in (settings, sampler, getattr(sampler, "sampler", None)):
        generator = getattr(owner, "generator", None)
        if isinstance(generator, torch.Generator) and not any(generator is other for other in found):
            found.append(generator)
    return found


def global_states() -> dict[str, Any]:
    """The states of the process's own random generators: torch's, Python's, NumPy's; of plain types."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002
    return {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": (str(kind), [int(key) for key in keys], int(position), int(has_gauss), float(gauss)),
    }


@contextmanager
def as_of(states: dict[str, Any] | None) -> Iterator[None]:
    """The process's random generators as they were in `states`, and back to what they are now afterwards."""
    if states is None:
        yield
        return
    now = global_states()
    _restore(states)
    try:
        yield
    finally:
        _restore(now)


def _restore(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))  # noqa: NPY002
