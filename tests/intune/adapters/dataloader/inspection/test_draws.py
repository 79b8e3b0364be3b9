"""Samplers that draw as they go, from generators that the training draws from too: both get what they would untuned."""

import random
from types import FunctionType

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Sampler, SequentialSampler

from intune.adapters.dataloader.inspection.draws import counts_late, draws_late
from intune.pipelines import Allocation
from tests.intune.adapters.dataloader.common import assert_same, wrap
from tests.intune.adapters.dataloader.datasets import Samples

RNG = np.random.default_rng(0)


class Domains(Sampler):
    """One domain a batch, picked by `random`."""

    def __iter__(self):
        for _ in range(12):
            domain = random.randrange(10)
            yield list(range(4 * domain, 4 * domain + 4))


class Buffer(Sampler):
    """A buffer, shuffled by NumPy; drawn by a method of its own."""

    def __iter__(self):
        return self._batches()

    def _batches(self):
        buffer = []
        for batch in range(10):
            buffer.append(list(range(4 * batch, 4 * batch + 4)))
            if len(buffer) > 3:
                yield buffer.pop(self._place(buffer))
        yield from buffer

    def _place(self, buffer):
        return np.random.randint(len(buffer))  # noqa: NPY002


class Pieces(Sampler):
    """Pieces of the data one after the other, each in an order by torch."""

    def __iter__(self):
        for begin in range(0, 40, 8):
            order = (begin + torch.randperm(8)).tolist()
            yield from (order[:4], order[4:])


class Endless(Sampler):
    """Another sampler again and again, as loaders that never end have it."""

    def __init__(self, sampler):
        self.sampler = sampler

    def __iter__(self):
        while True:
            yield from iter(self.sampler)


class Next(Sampler):
    """Its own iterator, which draws from a generator of the module's."""

    def __iter__(self):
        return self

    def __next__(self):
        return RNG.integers(40, size=4).tolist()


def picked(most):
    for _ in range(most):
        yield [random.randrange(40) for _ in range(4)]


class Helped(Sampler):
    """A generator beside it draws."""

    def __iter__(self):
        return picked(12)


class Iterating:
    def __init__(self, most):
        self.left = most

    def __iter__(self):
        return self

    def __next__(self):
        if not self.left:
            raise StopIteration
        self.left -= 1
        return torch.randint(40, (4,)).tolist()


class Iterated(Sampler):
    """An iterator of a class beside it draws."""

    def __iter__(self):
        return Iterating(12)


class Counts(Sampler):
    """One that goes on where it was when a loop begins."""

    def __init__(self):
        self.place = 0

    def __iter__(self):
        while True:
            self.place += 1
            yield [self.place % 40]


def shuffled_batches():
    return BatchSampler(RandomSampler(range(40)), 4, drop_last=False)


LATE = [Domains, Buffer, Pieces, lambda: Endless(shuffled_batches()), Next, Helped, Iterated]


def train(loader):
    """What two epochs of a training see that draws by itself and leaves the first early."""
    RNG.bit_generator.state = np.random.default_rng(1).bit_generator.state
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    seen = []
    for most in (5, 11):
        for batch, _ in zip(loader, range(most), strict=False):
            seen.append((batch, random.random(), np.random.rand(), torch.rand(2), RNG.random()))  # noqa: NPY002
    return seen


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("make", [*LATE, Counts, shuffled_batches])
def test_the_training_and_the_sampler_get_what_they_would_untuned(make, num_workers):
    options = {"num_workers": num_workers, **({"prefetch_factor": 3} if num_workers else {})}
    expected = train(DataLoader(Samples(40), batch_sampler=make(), **options))
    loader = DataLoader(Samples(40), batch_sampler=make(), **options)
    with wrap(loader, workers="thread", allocation=Allocation.shared(6)) as wrapped:
        assert_same(train(wrapped), expected)


@pytest.mark.parametrize("make", LATE)
def test_what_draws_as_it_goes_is_known_and_said(make, caplog):
    assert draws_late(make())
    with caplog.at_level("INFO", logger="intune"), wrap(DataLoader(Samples(40), batch_sampler=make())) as one:
        next(iter(one))
    assert "the sampler draws random numbers as it goes" in caplog.text


class AtOnce(Sampler):
    """Buckets by length: all draws are made before the first batch."""

    def __init__(self, dataset, sampler, epoch=0):
        self.dataset, self.sampler, self.epoch = dataset, sampler, epoch

    def set_epoch(self, epoch):
        self.epoch = epoch
        random.random()

    def _order(self):
        order = list(self.sampler)
        random.shuffle(order)
        return sorted(order, key=lambda place: place % 7)

    def __iter__(self):
        batches = []
        for batch in np.array_split(self._order(), 10):
            np.random.shuffle(batch)  # noqa: NPY002
            batches.append(batch.tolist())
        for batch in batches:
            yield [int(place) for place in batch if self.dataset[place] is not None]


class Grouped(AtOnce):
    def __iter__(self):
        order = torch.randperm(40).tolist()
        return iter([order[first : first + 4] for first in range(0, 40, 4)])


class Gathered(AtOnce):
    def __iter__(self):
        batch = []
        for place in self.sampler:
            batch.append(place)
            if len(batch) == 4:
                yield batch
                batch = []


class Noisy(Samples):
    def __getitem__(self, index):
        return super().__getitem__(index) + torch.rand(())


@pytest.mark.parametrize("kind", [AtOnce, Grouped, Gathered])
def test_what_draws_before_its_first_batch_is_read_ahead(kind):
    sampler = kind(Noisy(40), RandomSampler(range(40)))
    for one in (sampler, BatchSampler(sampler, 2, drop_last=False)):
        assert not draws_late(one)
        assert not counts_late(one)


class Nothing(Sampler):
    def __iter__(self):
        return
        yield


class Itself(Sampler):
    """What refers to itself, and to code that is of no module."""

    def __init__(self):
        self.again = self
        self.made = FunctionType(picked.__code__, {"range": range}, "made")

    def __iter__(self):
        yield from self.again.made(0)


class Proxy(Sampler):
    """It keeps a stand-in for what is not there now, as web frameworks have them."""

    class Absent:
        @property
        def __class__(self):
            raise RuntimeError("working outside of a context")

    def __init__(self):
        self.absent = self.Absent()


def test_code_of_any_kind_can_be_read():
    for one in (Nothing(), Itself(), Proxy(), len, object(), DataLoader):
        assert not draws_late(one)


def test_samplers_of_torch_are_known_by_other_means():
    for one in (SequentialSampler(range(4)), shuffled_batches(), [[1, 2]], range(4), None):
        assert not draws_late(one)
        assert not counts_late(one)
