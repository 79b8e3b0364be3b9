"""When a sampler draws from a generator of its own: what must not be read ahead, lest others have drawn meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils.data import (
    BatchSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

_AT_ONCE = (SequentialSampler, SubsetRandomSampler, WeightedRandomSampler, list, tuple, range)
"""Samplers that draw, if at all, when the first sample is asked for."""

_DRAWN_AT_ONCE = 32
"""Samples for which torch's `RandomSampler` draws at a time with replacement."""


def draws_of(index_sampler: Any) -> Callable[[int], bool] | None:
    """Says of a read, by its number, whether the sampler may draw in it; None where that cannot be known.

    Subclasses may do anything, so that only torch's own classes are known.
    """
    batched = type(index_sampler) is BatchSampler
    sampler = index_sampler.sampler if batched else index_sampler
    size = int(index_sampler.batch_size) if batched else 1
    if type(sampler) in _AT_ONCE or (type(sampler) is RandomSampler and sampler.generator is None):
        return lambda read: read == 0
    if type(sampler) is not RandomSampler:
        return None
    period = _DRAWN_AT_ONCE if sampler.replacement else max(1, len(sampler.data_source))
    total = int(sampler.num_samples)

    def draws(read: int) -> bool:
        first, last = read * size, min((read + 1) * size - 1, total)
        return -(-first // period) * period <= last

    return draws


def length_of(index_sampler: Any) -> int | None:
    """Batches that a sampler says it gives; None if it does not say."""
    try:
        return len(index_sampler)
    except Exception:  # it may be the user's, and the DataLoader would not have asked
        return None
