"""What goes on where it was when a loop is left early loses nothing; everything else is read ahead."""

import csv
import gzip
import itertools
import os
import queue
import random
import threading

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

import intune
from intune.adapters.dataloader.indices import Item
from intune.adapters.dataloader.inspection.caution import Caution, Verdict
from intune.adapters.dataloader.settings import read_settings
from tests.intune.adapters.dataloader.common import wrap
from tests.intune.adapters.dataloader.datasets import Samples

ROWS = 200


@pytest.fixture(autouse=True)
def _files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = "".join(f"{i:04d}\n" for i in range(ROWS))
    (tmp_path / "lines.txt").write_text(lines)
    with gzip.open("lines.gz", "wt") as file:
        file.write(lines)


def lines(mode="r"):
    return open("lines.txt", mode)


def zipped():
    return gzip.open("lines.gz", "rt")


class OfPlaces(Dataset):
    """Of something that is opened when it is made; closed by `close`."""

    def __init__(self, opened=None):
        self.opened = opened

    def __len__(self):
        return 40

    def __getitem__(self, i):
        return int(self.opened.readline())

    def close(self):
        if hasattr(self.opened, "close"):
            self.opened.close()


class Rows(OfPlaces):
    def __init__(self):
        super().__init__(lines())
        self.rows = csv.reader(self.opened)

    def __getitem__(self, i):
        return int(next(self.rows)[0])


class Generated(OfPlaces):
    def __getitem__(self, i):
        return next(self.opened)


class Queued(OfPlaces):
    def __getitem__(self, i):
        return self.opened.get()


class Counting(OfPlaces):
    def __init__(self):
        super().__init__(threading.Lock())
        self.given = 0

    def __getitem__(self, i):
        with self.opened:
            self.given += 1
            return self.given

    def close(self):
        pass


class OpenedLate(OfPlaces):
    def __getitem__(self, i):
        if self.opened is None:
            self.opened = lines()
        return super().__getitem__(i)


class Sought(OfPlaces):
    """Reads where the index says."""

    def __getitem__(self, i):
        self.opened.seek(5 * i)
        return super().__getitem__(i)


class SoughtLate(Sought):
    def __getitem__(self, i):
        if self.opened is None:
            self.opened = lines()
        return super().__getitem__(i)


def filled_queue(kind):
    filled = kind()
    for row in range(ROWS):
        filled.put(row)
    return filled


class Position(IterableDataset):
    def __init__(self):
        self.position = 0

    def __iter__(self):
        while True:
            yield self.position
            self.position += 1


class Kept(IterableDataset):
    def __init__(self):
        self.kept = iter(range(10**6))

    def __iter__(self):
        return (row for row in self.kept)


class Lines(IterableDataset):
    def __init__(self):
        self.file = lines()

    def __iter__(self):
        return (int(line) for line in self.file)

    def close(self):
        self.file.close()


class Counted(Sampler):
    """Goes on where it was, as samplers do that can be resumed."""

    def __init__(self, size):
        self.size, self.consumed = size, 0

    def __iter__(self):
        while self.consumed < self.size:
            self.consumed += 1
            yield self.consumed - 1

    def __len__(self):
        return self.size


class CountedLate(Counted):
    """Counts a batch when it is asked for the next one."""

    def __iter__(self):
        while self.consumed < self.size:
            yield list(range(self.consumed, self.consumed + 4))
            self.consumed += 4


class OwnBatches(BatchSampler):
    """A class made of torch's."""

    def __init__(self, sampler):
        super().__init__(sampler, 4, drop_last=False)


def by_counting(**options):
    return DataLoader(Samples(ROWS), 4, sampler=Counted(ROWS), **options)


GOING_ON = {
    "text": lambda: DataLoader(OfPlaces(lines()), 4),
    "bytes": lambda: DataLoader(OfPlaces(lines("rb")), 4),
    "gzip": lambda: DataLoader(OfPlaces(zipped()), 4),
    "opened late": lambda: DataLoader(OpenedLate(), 4),
    "csv": lambda: DataLoader(Rows(), 4),
    "generator": lambda: DataLoader(Generated(row for row in range(ROWS)), 4),
    "queue": lambda: DataLoader(Queued(filled_queue(queue.Queue)), 4),
    "queue of C": lambda: DataLoader(Queued(filled_queue(queue.SimpleQueue)), 4),
    "counter and lock": lambda: DataLoader(Counting(), 4),
    "position": lambda: DataLoader(Position(), 4),
    "position of one": lambda: DataLoader(Position(), 1),
    "position of a sample": lambda: DataLoader(Position(), None),
    "kept iterator": lambda: DataLoader(Kept(), 4),
    "kept file": lambda: DataLoader(Lines(), 4),
    "sampler": by_counting,
    "sampler that counts late": lambda: DataLoader(Samples(ROWS), batch_sampler=CountedLate(ROWS)),
    "iterator as sampler": lambda: DataLoader(Samples(ROWS), 4, sampler=iter(range(ROWS))),
    "batch sampler": lambda: DataLoader(
        Samples(ROWS), batch_sampler=BatchSampler(Counted(ROWS), 4, drop_last=False)
    ),
    "batch sampler of its own": lambda: DataLoader(Samples(ROWS), batch_sampler=OwnBatches(Counted(ROWS))),
}


def batches(loop, counts):
    """The first ones of as many loops."""
    return [[torch.as_tensor(batch).tolist() for batch in itertools.islice(loop, count)] for count in counts]


def close(dataloader):
    if hasattr(dataloader.dataset, "close"):
        dataloader.dataset.close()


@pytest.mark.parametrize("counts", [(1, 3, 5), (3, 1, 1)], ids=str)
@pytest.mark.parametrize("name", GOING_ON)
def test_what_goes_on_where_it_was_loses_nothing_with_a_loop_that_is_left(name, counts):
    plain, tuned = GOING_ON[name](), GOING_ON[name]()
    expected = batches(plain, counts)
    with wrap(tuned) as loader:
        assert batches(loader, counts) == expected
        assert loader.workshop.choice.kind == "here"
    for one in (plain, tuned):
        close(one)


@pytest.mark.parametrize("workers", ["thread", "process"])
def test_a_sampler_that_goes_on_is_not_read_ahead_wherever_batches_are_made(workers):
    plain = by_counting()
    expected = batches(plain, (2, 3))
    with wrap(by_counting(), workers=workers) as loader:
        assert batches(loader, (2, 3)) == expected
        assert loader.dataloader.sampler.consumed == plain.sampler.consumed == 20


def test_without_tuning_nothing_is_lost_either(monkeypatch):
    monkeypatch.setenv("INTUNE", "off")
    with intune.tune(DataLoader(Position(), 4), knowledge=False) as loader:
        assert batches(loader, (2, 2)) == batches(DataLoader(Position(), 4), (2, 2))


def test_a_loop_that_goes_on_with_a_saved_state_reads_on_demand_too():
    with wrap(by_counting()) as loader:
        loop = iter(loader)
        next(loop)
        state = loader.state_dict()
    with wrap(by_counting()) as loader:
        loader.load_state_dict(state)
        loop = iter(loader)
        for read in (8, 12, 16):
            next(loop)
            assert loader.dataloader.sampler.consumed == read


# ---- what is read ahead all the same -------------------------------------------------------------------------


class Anew(IterableDataset):
    def __iter__(self):
        return iter(range(400))


class Renewed(IterableDataset):
    """Begins anew, and counts its loops."""

    epoch = 0

    def __iter__(self):
        self.epoch += 1
        yield from range(400)


@pytest.mark.parametrize("make", [Anew, Renewed])
def test_iterators_that_begin_anew_are_read_ahead(make):
    with wrap(DataLoader(make(), 4)) as loader:
        loop = iter(loader)
        for _ in range(3):
            next(loop)
        assert loader.workshop.verdict == Verdict(ahead=True)
        assert loader.workshop.choice.kind == "thread"


def samplers():
    data = Samples(ROWS)
    return [
        None,
        SequentialSampler(data),
        RandomSampler(data),
        RandomSampler(data, replacement=True, generator=torch.Generator()),
        SubsetRandomSampler(range(ROWS)),
        WeightedRandomSampler([1.0] * ROWS, ROWS),
        DistributedSampler(data, num_replicas=1, rank=0),
        range(ROWS),
        Permuted(),
    ]


class Permuted(Sampler):
    """Of a generator that it keeps, drawn from once a loop; and it counts its loops."""

    def __init__(self):
        self.generator, self.loops = torch.Generator(), 0

    def __iter__(self):
        self.loops += 1
        yield from torch.randperm(ROWS, generator=self.generator).tolist()

    def __len__(self):
        return ROWS


@pytest.mark.parametrize("sampler", samplers(), ids=lambda one: type(one).__name__)
def test_ordinary_samplers_are_read_ahead(sampler):
    with wrap(DataLoader(Samples(ROWS), 4, sampler=sampler)) as loader:
        loop = iter(loader)
        for _ in range(3):
            next(loop)
        assert loader.workshop.verdict == Verdict(ahead=True)
        assert not loader.workshop.here


@pytest.mark.parametrize("make", [lambda: Sought(lines()), SoughtLate], ids=["sought", "late"])
def test_a_file_that_is_read_where_an_index_says_is_read_ahead(make):
    dataset = make()
    with wrap(DataLoader(dataset, 4)) as loader:
        assert torch.cat(list(loader)).tolist() == list(range(40))
        assert loader.workshop.verdict == Verdict(ahead=True)
        assert torch.cat(list(loader)).tolist() == list(range(40))
    dataset.close()


# ---- looking -------------------------------------------------------------------------------------------------


def test_with_workers_the_dataloader_reads_ahead_itself():
    verdict = Verdict()
    caution = Caution(read_settings(by_counting(num_workers=1)), verdict, code=True)
    caution.begin()
    assert caution.look(Item(0, 4))
    assert verdict.known


def test_a_file_that_is_no_more_to_be_read_again_is_left_where_it_was():
    class Once(OfPlaces):
        def __getitem__(self, i):
            if self.opened.tell():
                raise OSError("only once")
            return super().__getitem__(i)

    dataset = Once(lines("rb"))
    caution = Caution(read_settings(DataLoader(dataset, 1)), Verdict(), code=True)
    caution.begin()
    dataset[0]
    assert not caution.look(Item(0, 1, index=[0]))
    assert dataset.opened.tell() == 5
    dataset.close()


def test_reading_a_sample_again_draws_nothing_from_the_trainers_generators():
    class Draws(Sought):
        def __getitem__(self, i):
            torch.rand(())
            random.random()
            return super().__getitem__(i)

    dataset = Draws(lines())
    caution = Caution(read_settings(DataLoader(dataset, 1)), Verdict(), code=True)
    caution.begin()
    dataset[3]
    states = torch.get_rng_state(), random.getstate()
    assert caution.look(Item(0, 1, index=[3]))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    dataset.close()


def test_a_pipe_has_no_place_to_be_told():
    read, write = os.pipe()
    os.write(write, b"1\n2\n3\n")
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        verdict = Verdict()
        caution = Caution(read_settings(DataLoader(OfPlaces(pipe), 1)), verdict, code=True)
        caution.begin()
        assert not caution.look(Item(0, 1, index=[0]))
        assert "a connection or a file" in verdict.reason
