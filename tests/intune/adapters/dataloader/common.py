"""What the tests of wrapped DataLoaders share."""

import numpy as np
import torch

from intune.adapters import TunableDataLoader
from intune.pipelines import Budget

BUDGET = Budget(cpus=2, memory=1 << 28)


def same(one, other) -> bool:
    """Whether two batches are equal, types included."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def assert_same(batches, expected) -> None:
    batches, expected = list(batches), list(expected)
    assert len(batches) == len(expected)
    assert all(map(same, batches, expected))


def wrap(dataloader, **options) -> TunableDataLoader:
    return TunableDataLoader.wrap(dataloader, **{"budget": BUDGET, **options})
