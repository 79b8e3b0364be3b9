"""DataLoaders of every kind that torch allows: tuned, they give the same batches, and leave the same random state."""

import threading
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    ChainDataset,
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    StackDataset,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
    get_worker_info,
    random_split,
)

import intune
from intune.control import Pace
from tests.intune.adapters.dataloader.common import assert_same

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator"),
]
QUICK = Pace(first=0.005, shortest=0.005, longest=0.01, tasks=0)


class Point(NamedTuple):
    x: torch.Tensor
    name: str


class Mappings(Dataset):
    def __len__(self):
        return 23

    def __getitem__(self, index):
        return {
            "id": index,
            "text": f"t{index}",
            "v": torch.tensor([index, 2.0]),
            "in": {"a": np.float32(index)},
        }


class Points(Mappings):
    def __getitem__(self, index):
        return Point(torch.tensor(index), f"x{index}")


class Texts(Dataset):
    def __len__(self):
        return 11

    def __getitem__(self, index):
        return "abc"[index % 3] * index


class Locked(Dataset):
    """Cannot be pickled, twice over."""

    def __init__(self):
        self.lock, self.function = threading.Lock(), lambda index: index * 3

    def __len__(self):
        return 17

    def __getitem__(self, index):
        with self.lock:
            return self.function(index)


class AtOnce(Dataset):
    def __len__(self):
        return 19

    def __getitems__(self, indices):
        return [index * 2 for index in indices]


class Keyed(Dataset):
    def __getitem__(self, key):
        return f"{key[0]}{key[1]}"


class Ragged(Dataset):
    def __len__(self):
        return 10

    def __getitem__(self, index):
        return torch.arange(index + 1)


class Shards(IterableDataset):
    def __iter__(self):
        info = get_worker_info()
        of, number = (1, 0) if info is None else (info.num_workers, info.id)
        yield from ({"i": index, "worker": number} for index in range(number, 37, of))


class Sized(Shards):
    def __len__(self):
        return 37


class Backwards(BatchSampler):
    def __iter__(self):
        for batch in super().__iter__():
            yield batch[::-1]


class Pinned:
    def __init__(self, values):
        self.values = values

    def pin_memory(self):
        return self

    def __eq__(self, other):
        return self.values == other.values

    __hash__ = None


def padded(samples):
    return torch.nn.utils.rnn.pad_sequence(samples, batch_first=True)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


KINDS = {
    "mappings": lambda **o: DataLoader(Mappings(), 4, **o),
    "named tuples, shuffled, last one dropped": lambda **o: DataLoader(
        Points(), 4, shuffle=True, generator=seeded(2), drop_last=True, **o
    ),
    "texts, seeded by torch": lambda **o: DataLoader(Texts(), 3, shuffle=True, **o),
    "not picklable": lambda **o: DataLoader(Locked(), 3, shuffle=True, **o),
    "fetched at once": lambda **o: DataLoader(AtOnce(), 4, **o),
    "no batches": lambda **o: DataLoader(Mappings(), batch_size=None, **o),
    "batch sampler of one's own": lambda **o: DataLoader(
        Mappings(), batch_sampler=Backwards(RandomSampler(Mappings(), generator=seeded(1)), 4, False), **o
    ),
    "batches of uneven sizes, one empty": lambda **o: DataLoader(
        Mappings(), batch_sampler=[[0, 1], [2], [3, 3, 5], []], collate_fn=tuple, **o
    ),
    "keys": lambda **o: DataLoader(Keyed(), 2, sampler=[("a", 1), ("b", 2), ("c", 3)], **o),
    "weighted": lambda **o: DataLoader(
        Mappings(), 5, sampler=WeightedRandomSampler([1.0] * 23, 12, generator=seeded(5)), **o
    ),
    "some, at random": lambda **o: DataLoader(Mappings(), 5, sampler=SubsetRandomSampler([1, 5, 7, 9]), **o),
    "with replacement": lambda **o: DataLoader(
        Mappings(), 4, sampler=RandomSampler(Mappings(), replacement=True, num_samples=9), **o
    ),
    "a rank's": lambda **o: DataLoader(
        Mappings(), 3, sampler=DistributedSampler(Mappings(), 3, 1, shuffle=True, seed=1, drop_last=True), **o
    ),
    "concatenated": lambda **o: DataLoader(ConcatDataset([Texts(), Texts()]), 4, shuffle=True, **o),
    "stacked": lambda **o: DataLoader(StackDataset(a=Texts(), b=torch.arange(11)), 4, **o),
    "a subset": lambda **o: DataLoader(Subset(Mappings(), [3, 1, 2]), 2, **o),
    "split": lambda **o: DataLoader(random_split(Mappings(), [10, 13], generator=seeded(1))[0], 4, **o),
    "a list": lambda **o: DataLoader([torch.ones(2) * index for index in range(7)], 3, **o),
    "an array": lambda **o: DataLoader(np.arange(20.0).reshape(10, 2), 3, shuffle=True, **o),
    "padded": lambda **o: DataLoader(Ragged(), 3, collate_fn=padded, shuffle=True, **o),
    "a lambda collates": lambda **o: DataLoader(Ragged(), 3, collate_fn=lambda samples: samples, **o),
    "pinned by themselves": lambda **o: DataLoader(
        list(range(10)), 3, collate_fn=Pinned, pin_memory=True, **o
    ),
    "a batch of more than all": lambda **o: DataLoader(Mappings(), 100, **o),
    "one": lambda **o: DataLoader([3], 1, **o),
}
STREAMS = {
    "shards": lambda **o: DataLoader(Shards(), 5, **o),
    "shards, last one dropped": lambda **o: DataLoader(Shards(), 5, drop_last=True, **o),
    "shards with a length": lambda **o: DataLoader(Sized(), 5, **o),
    "shards without batches": lambda **o: DataLoader(Shards(), batch_size=None, **o),
    "a chain": lambda **o: DataLoader(ChainDataset([Shards(), Shards()]), 4, **o),
}


def seed():
    torch.manual_seed(11)


def epochs(loader, count=2):
    batches = []
    for epoch in range(count):
        if isinstance(getattr(loader, "sampler", None), DistributedSampler):
            loader.sampler.set_epoch(epoch)
        batches += list(loader)
    return batches


def length(loader):
    try:
        return len(loader)
    except TypeError as error:
        return str(error)


def compare(make, workers, **options):
    seed()
    plain = make(**options)
    expected, state = epochs(plain), torch.get_rng_state()
    seed()
    dataloader = make(**options)
    with intune.tune(
        dataloader, agent="even", cpus=2, memory="64MiB", knowledge=False, pace=QUICK, workers=workers
    ) as tuned:
        assert_same(epochs(tuned), expected)
        assert torch.equal(torch.get_rng_state(), state)
        assert length(tuned) == length(plain)


@pytest.mark.parametrize("name", [*KINDS, *STREAMS])
def test_it_gives_the_same_batches(name):
    compare({**KINDS, **STREAMS}[name], "thread")


@pytest.mark.parametrize("name", KINDS)
def test_a_dataloader_with_workers_gives_the_same_batches(name):
    """Seeds and samplers are drawn from as many batches ahead as its workers would."""
    compare(KINDS[name], "thread", num_workers=1, prefetch_factor=3, persistent_workers=True, timeout=30)


def test_shards_of_workers_are_those_of_the_dataloader():
    compare(STREAMS["shards, last one dropped"], "auto", num_workers=2)
