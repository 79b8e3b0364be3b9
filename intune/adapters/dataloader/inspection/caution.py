"""Whether batches may be read before the trainer asks for them, of a DataLoader without workers.

Such a DataLoader reads nothing ahead. Where reading changes nothing (the dataset's samples depend on their indices, an
iterator begins anew in every loop) nobody can tell; but what goes on where it was (a stream, a sampler that counts what
it gave) would leave out what was read for a loop that is left early. So batches are read one by one until they tell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from intune.adapters.dataloader.generators import generators_of, global_states, restore
from intune.adapters.dataloader.indices import Item
from intune.adapters.dataloader.inspection.draws import draws_late
from intune.adapters.dataloader.inspection.standing import Standing, open_files, standing
from intune.adapters.dataloader.sending.worker import fetch_samples
from intune.adapters.dataloader.settings import LoaderSettings

_BEGINS_ANEW = (
    SequentialSampler,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    DistributedSampler,
    list,
    tuple,
    range,
)
"""Samplers that are known to; not the classes made of them."""

_HOW = "so that a loop that is left early would lose what was read ahead of it"

CHANGES = f"the code changes what the dataset or `collate_fn` keeps, a counter, a buffer or a place in a file, {_HOW}"
HIDES = (
    f"the dataset or `collate_fn` keeps an iterator, a connection or a file that is read line by line, {_HOW}"
)
SAMPLER = f"the sampler goes on where it was when a loop begins, {_HOW}"
SAMPLER_DRAWS = (
    "the sampler draws random numbers as it goes, between those of the training, which would get others if it were "
    "read ahead"
)


@dataclass(slots=True)
class Verdict:
    """Of one loader; both are false while it is not known.

    Attributes:
        ahead: batches may be read ahead.
        reason: why they must not be, ever.
    """

    ahead: bool = False
    reason: str = ""

    @property
    def known(self) -> bool:
        """Whether it is."""
        return self.ahead or bool(self.reason)


class Caution:
    """Of one loop. For the trainer's thread.

    Args:
        verdict: of the loader; it is written here.
        code: whether the dataset and `collate_fn` are looked at, and not only the sampler.
        resumed: whether the loop goes on with what was read already.
    """

    def __init__(
        self, settings: LoaderSettings, verdict: Verdict, *, code: bool, resumed: bool = False
    ) -> None:
        self._settings = settings
        self._verdict = verdict
        self._code: tuple[Any, ...] = (settings.dataset, settings.collate_fn) if code else ()
        self._before: tuple[Standing | None, Standing | None] | None = None
        self._looks = 0
        # A generator counts what it gave when it is asked for more; and a resumed loop's first read lies behind it.
        self._lags = resumed or settings.iterable or bool(_kept_by(settings.index_sampler, settings))
        if settings.num_workers:
            verdict.ahead = True
        elif not verdict.known and draws_late(settings.index_sampler):
            verdict.reason = SAMPLER_DRAWS

    def begin(self) -> None:
        """A batch is about to be read."""
        self._before = None if self._verdict.known else self._now()

    def look(self, item: Item) -> bool:
        """It has been made.

        Args:
            item: of which.

        Returns:
            Whether the next one may be read before the trainer asks for it.
        """
        if self._before is None:
            return self._verdict.ahead
        (code, sampler), self._before = self._before, None
        code_now, sampler_now = self._now()
        if sampler is None or sampler_now is None:
            self._verdict.reason = SAMPLER
        elif code is None or code_now is None:
            self._verdict.reason = HIDES
        elif sampler == sampler_now and (code == code_now or self._says_where(item, code, code_now)):
            self._verdict.ahead = self._looks > 0 or not self._lags
        elif self._looks:  # what the first batch changes may be set once and for all
            self._verdict.reason = CHANGES if sampler == sampler_now else SAMPLER
        self._looks += 1
        return self._verdict.ahead

    def _now(self) -> tuple[Standing | None, Standing | None]:
        settings = self._settings
        return standing(*self._code), standing(*_kept_by(settings.index_sampler, settings))

    def _says_where(self, item: Item, before: Standing, now: Standing) -> bool:
        """Whether files are read where an index says, and not from where they are on: the same sample once more leaves
        them where it left them. Else they are put back there."""
        settings = self._settings
        if settings.iterable or before.kept != now.kept or (key := _last(item.index, settings)) is None:
            return False
        files = open_files(*self._code)
        if not all(file.seekable() for file in files if hasattr(file, "seekable")):
            return False
        places, states = [file.tell() for file in files], global_states()
        try:
            fetch_samples(settings.dataset, [key[0]] if settings.batched else key[0], settings.batched)
            if standing(*self._code) == now:
                return True
        except Exception:  # what it reads need not be there any more
            pass
        finally:
            restore(states)
        for file, place in zip(files, places, strict=True):
            file.seek(place)
        return False


def _kept_by(sampler: Any, settings: LoaderSettings) -> tuple[Any, ...]:
    """What of a sampler may say where it is. Generators that it owns are read with care anyway."""
    if type(sampler) is BatchSampler:
        return _kept_by(sampler.sampler, settings)
    if sampler is None or type(sampler) in _BEGINS_ANEW:
        return ()
    if not hasattr(sampler, "__dict__"):
        return (sampler,)
    others = (settings.dataset, *generators_of(settings))
    return tuple(value for value in vars(sampler).values() if not any(value is other for other in others))


def _last(index: Any, settings: LoaderSettings) -> tuple[Any] | None:
    """The last key that an index has; None if it is of no known kind."""
    if not settings.batched:
        return (index,)
    known = isinstance(index, list | tuple | np.ndarray | torch.Tensor) and len(index) > 0
    return (index[-1],) if known else None
