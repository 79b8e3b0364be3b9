"""What is kept for one sample only is found in the code, and what is made once and for all is not mistaken for it."""

import os
import threading
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset

from intune.adapters.dataloader.inspection import choice as dataloader_choice
from intune.adapters.dataloader.inspection.choice import Choice
from intune.adapters.dataloader.inspection.mentions import mentions
from intune.adapters.dataloader.settings import read_settings
from tests.intune.adapters.dataloader.common import assert_same, wrap
from tests.intune.adapters.dataloader.datasets import Samples, SetsBack

TABLE = None
COUNT = 0
STATE = SimpleNamespace(row=None)


class Base(Dataset):
    rows = range(40)
    row = table = current = file = keys = None

    def __len__(self):
        return 40

    def read(self):
        return self.row


class SetsAndDeletes(Base):
    def __getitem__(self, i):
        self.row = self.rows[i]
        try:
            return self.read()
        finally:
            del self.row


class SetsInAHelper(Base):
    def __getitem__(self, i):
        return self.read_row(i)

    def read_row(self, i):
        self.row = i
        found = self.read()
        self.row = None
        return found


class SetsAndResetsInTwoHelpers(Base):
    def __getitem__(self, i):
        self.begin(i)
        found = self.read()
        self.end()
        return found

    def begin(self, i):
        self.row = i

    def end(self):
        self.row = None


class SetsBackWhatItWas(Base):
    def __getitem__(self, i):
        return self.under(i)

    def under(self, i):
        before, self.row = self.row, i
        found = self.read()
        self.row = before
        return found


class SetsSometimes(Base):
    def __getitem__(self, i):
        if i in self.rows:
            self.row = i
        return self.read()


class KeepsTheCurrentShard(Base):
    def __getitem__(self, i):
        return self.shard(i // 10)[i % 10]

    def shard(self, number):
        if number != self.current:
            self.table = self.rows[10 * number : 10 * number + 10]
            self.current = number
        return self.table


class InATransform(Base):
    def __init__(self):
        self.transform = Transform()

    def __getitem__(self, i):
        return self.transform(i)


class Transform:
    value = None

    def __call__(self, value):
        self.value = value
        return self.value


class SetsAGlobal(Base):
    def __getitem__(self, i):
        STATE.row = i
        found = STATE.row
        STATE.row = None
        return found


class CountsInAGlobal(Base):
    def __getitem__(self, i):
        count()
        return i


def count():
    global COUNT
    COUNT += 1


@pytest.mark.parametrize(
    "kind",
    [
        SetsBack,
        SetsAndDeletes,
        SetsInAHelper,
        SetsAndResetsInTwoHelpers,
        SetsBackWhatItWas,
        SetsSometimes,
        KeepsTheCurrentShard,
        InATransform,
        SetsAGlobal,
        CountsInAGlobal,
    ],
)
def test_what_is_kept_for_one_sample_is_found_wherever_it_is(kind):
    dataset = kind(40) if kind is SetsBack else kind()
    for one in (dataset, Subset(dataset, [1]), ConcatDataset([dataset, dataset])):
        assert mentions(read_settings(DataLoader(one))).mixes_up


class OpensOnce(Base):
    def __getitem__(self, i):
        if self.file is None:
            self.file = open(__file__)  # noqa: SIM115
            self.keys = list(self.rows)
        return self.keys[i]


class MakesOnceInAHelper(Base):
    def __getitem__(self, i):
        if self.table is None:
            self.load()
        return self.table[i]

    def load(self):
        if os.path.exists("/there"):
            self.table = self.rows
        else:
            self.table = list(self.rows)


class MakesOnceByOr(Base):
    def __getitem__(self, i):
        self.table = self.table or list(self.rows)
        return self.table[i]


class MakesOnceWhereItIsNotThere(Base):
    def __getitem__(self, i):
        if not hasattr(self, "names"):
            self.names = list(self.rows)
        try:
            return self.others[i] + self.names[i]
        except AttributeError:
            self.others = self.names
        return self.others[i]


class MakesOnceUnderALock(Base):
    def __getitem__(self, i):
        if self.table is None:
            with threading.Lock():
                if self.table is None:
                    self.table = list(self.rows)
        return self.table[i]


class MakesAGlobalOnce(Base):
    def __getitem__(self, i):
        return table()[i]


def table():
    global TABLE
    if TABLE is None:
        TABLE = list(range(40))
    return TABLE


class IsChangedFromOutside(Base):
    epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch
        self.table = None

    def reset(self):
        self.row = None
        self.row = 1

    def __getitem__(self, i):
        return i + self.epoch


class FillsWhatItMakes(Base):
    def __getitem__(self, i):
        made = SimpleNamespace()
        made.x = i
        made.x = made.x + 1
        made.y = Local(i).doubled()
        return made.x


class Local:
    def __init__(self, value):
        self.value = value

    def doubled(self):
        self.value *= 2
        self.value += 0
        return self.value


@pytest.mark.parametrize(
    "kind",
    [
        OpensOnce,
        MakesOnceInAHelper,
        MakesOnceByOr,
        MakesOnceWhereItIsNotThere,
        MakesOnceUnderALock,
        MakesAGlobalOnce,
        IsChangedFromOutside,
        FillsWhatItMakes,
    ],
)
def test_what_is_made_once_or_for_one_call_is_not_mistaken_for_it(kind):
    assert not mentions(read_settings(DataLoader(kind()))).mixes_up


def test_code_of_libraries_is_taken_to_be_fit_for_threads():
    dataset = Samples(4)
    dataset.model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2), torch.nn.LSTM(2, 2))
    assert not mentions(read_settings(DataLoader(dataset))).mixes_up


# ---- what is made of it ------------------------------------------------------------------------------------


@pytest.fixture
def _threads(monkeypatch):
    choice = Choice(kind="thread", reason="so it was measured")
    monkeypatch.setattr(dataloader_choice, "choose", lambda *_: choice)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize(("worth_sending", "kind"), [(10.0, "serial"), (0.0, "process")])
def test_batches_of_such_code_are_not_mixed_up_by_threads(worth_sending, kind, monkeypatch):
    monkeypatch.setattr(dataloader_choice, "WORTH_SENDING_S", worth_sending)
    dataset = SetsBack(60, 0.001)
    with wrap(DataLoader(dataset, 4)) as loader:
        assert_same(loader, DataLoader(dataset, 4))
        assert loader.workshop.choice.kind == kind
        assert "keeps something for one sample" in loader.workshop.choice.reason
        assert_same(loader, DataLoader(dataset, 4))


@pytest.mark.usefixtures("_threads")
def test_such_code_of_a_dataset_that_cannot_be_sent_is_used_by_one_thread_at_a_time():
    dataset = SetsBack(60, 0.001)
    lock = threading.Lock()
    make = lambda: DataLoader(dataset, 4, collate_fn=lambda samples: lock and samples)  # noqa: E731
    with wrap(make()) as loader:
        assert_same(loader, make())
        assert loader.workshop.choice.kind == "serial"


def test_an_iterable_dataset_has_one_iterator_anyway():
    class Stream(IterableDataset):
        def __iter__(self):
            for self.row in range(4):
                yield self.row

    with wrap(DataLoader(Stream())) as loader:
        assert torch.cat(list(loader)).tolist() == [0, 1, 2, 3]
