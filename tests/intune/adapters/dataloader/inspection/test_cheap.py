"""Batches that cost less than their way through threads are made by the trainer, as long as they do."""

import threading

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from intune.adapters.dataloader import settings as dataloader_settings
from intune.adapters.dataloader import tasks as dataloader_tasks
from intune.adapters.dataloader.inspection import cheap as dataloader_cheap
from intune.adapters.dataloader.inspection.cheap import BATCHES, DEAR_S, Cheap
from intune.adapters.dataloader.inspection.choice import Choice
from intune.adapters.dataloader.inspection.probe import Measurement
from intune.pipelines import Allocation
from tests.intune.adapters.dataloader.common import assert_same, wrap
from tests.intune.adapters.dataloader.datasets import Samples

THREAD = Choice(kind="thread", reason="it may")


def measured(seconds):
    return Measurement(wall_s=seconds, active_s=seconds)


@pytest.fixture
def limits(monkeypatch):
    """Sets up to where batches are cheap, and from where on they are dear."""

    def set_to(cheap_s, dear_s):
        monkeypatch.setattr(dataloader_cheap, "CHEAP_S", cheap_s)
        monkeypatch.setattr(dataloader_cheap, "DEAR_S", dear_s)

    return set_to


def test_only_what_threads_may_make_and_is_cheap_is_made_by_the_trainer(limits):
    limits(0.0005, 0.002)
    cheap = Cheap.of(THREAD, measured(0.0005))
    assert cheap.choice.kind == "here"
    assert "0.5 ms" in cheap.choice.reason
    assert Cheap.of(THREAD, measured(0.0021)) is None
    for kind in ("serial", "process", "here"):
        assert Cheap.of(Choice(kind=kind, reason=""), measured(0.0005)) is None


def test_once_batches_are_dear_the_other_choice_is_made(limits):
    limits(0.0, DEAR_S)

    def turns(wall_s, cpu_s=0.0, lacked_s=0.0, batches=BATCHES + 1):
        cheap = Cheap.of(THREAD, measured(0.0))
        took = [0]
        cheap.lacked = lambda: 5.0 + lacked_s * took[0]
        for took[0] in range(batches):
            if (choice := cheap.took(wall_s, cpu_s)) is not None:
                return choice
        return None

    assert turns(DEAR_S * 0.9, batches=5 * BATCHES) is None
    assert turns(DEAR_S * 1.01, batches=BATCHES) is None
    assert turns(DEAR_S * 1.01).kind == "thread"
    assert turns(DEAR_S * 1.1).kind == "thread"
    assert "it may; a batch takes 2.2 ms by now" in turns(DEAR_S * 1.1).reason
    assert turns(1.0, batches=1) is None
    assert turns(1.0, batches=2).kind == "thread"  # one alone may take longer than many cheap ones
    # What they lacked a processor for is no time of theirs.
    assert turns(DEAR_S * 2, lacked_s=DEAR_S * 1.5, batches=5 * BATCHES) is None
    assert turns(DEAR_S * 2, cpu_s=DEAR_S * 2, lacked_s=DEAR_S * 1.5).kind == "thread"


def test_first_batches_that_are_neither_cheap_nor_dear_leave_it_to_the_next(limits):
    """They find nothing in the processor's caches, and a machine that does something else made them take longer."""
    limits(0.0005, 0.002)

    def follows(*seconds):
        cheap = Cheap.of(THREAD, measured(0.001))
        cheap.lacked = lambda: 0.0
        assert cheap.choice.kind == "here"
        assert "1 ms at first" in cheap.choice.reason
        return [cheap.took(0.0, 0.0), *(cheap.took(each, each) for each in seconds)][-1]

    assert follows(*[0.001] * BATCHES).kind == "thread"
    # Once they were cheap, chance decides no more.
    assert follows(*[0.0004] * (BATCHES + 1), *[0.001] * BATCHES) is None
    assert follows(*[0.0004] * (BATCHES + 1), *[0.003] * BATCHES).kind == "thread"


class Where(Samples):
    """Notes which thread made a sample."""

    def __init__(self, size):
        super().__init__(size)
        self.threads = []

    def __getstate__(self):
        return {"size": self.size, "kind": self.kind}  # what it notes is no state of its own

    def __getitem__(self, i):
        self.threads.append(threading.get_ident())
        return super().__getitem__(i)


def test_cheap_batches_come_without_threads(limits):
    limits(float("inf"), float("inf"))
    plain = DataLoader(TensorDataset(torch.arange(90.0).reshape(45, 2)), 2, shuffle=True)
    with wrap(plain) as loader:
        for seed in range(3):
            torch.manual_seed(seed)
            expected = list(plain), torch.get_rng_state()
            torch.manual_seed(seed)
            before = threading.active_count()
            batches = []
            for batch in loader:
                batches.append(batch)
                loader.resize(Allocation.shared(len(batches)))
                assert threading.active_count() == before
            assert_same(batches, expected[0])
            assert torch.equal(torch.get_rng_state(), expected[1])
        stats = loader.stats()
    assert (stats.batches, stats.rows, stats.epoch) == (69, 135, 3)
    fetch, collate = stats.stages
    assert fetch.tasks == collate.tasks == 69
    assert fetch.rows == 135
    assert fetch.bytes_out >= 135 * 8
    assert min(fetch.busy_s, fetch.cpu_s) > 0


def test_batches_that_turn_out_dear_are_made_by_threads_from_then_on(limits):
    limits(float("inf"), 0.0)
    dataset = Where(2 * BATCHES)
    plain = DataLoader(dataset, 1)
    with wrap(plain) as loader:
        batches = list(loader)
        assert loader.allocation == Allocation.shared(2)
        assert loader.workshop.choice.kind == "thread"
    own = [thread == threading.get_ident() for thread in dataset.threads]
    assert own == sorted(own, reverse=True)
    assert 2 < sum(own) < BATCHES
    assert_same(batches, plain)


def test_an_error_of_the_last_batch_before_that_is_the_users(limits):
    class Fails(Samples):
        def __getitem__(self, i):
            if i == 3:
                raise ValueError("of a thread of ours")
            return super().__getitem__(i)

    limits(float("inf"), 0.0)
    with wrap(DataLoader(Fails(6), 1)) as loader:
        loop = iter(loader)
        for _ in range(3):
            next(loop)
        assert loader.workshop.here
        with pytest.raises(ValueError, match="of a thread of ours"):
            next(loop)
        assert loader.workshop.choice.kind == "thread"
        assert_same(loop, [torch.stack([Samples(6)[i]]) for i in (4, 5)])


class Stream(IterableDataset):
    """Batches in one buffer; notes which thread made each."""

    def __init__(self, size):
        self.size, self.buffer, self.threads = size, torch.zeros(2), []

    def __iter__(self):
        for i in range(self.size):
            self.threads.append(threading.get_ident())
            yield self.buffer.fill_(i)

    def __getstate__(self):
        return {"size": self.size}


@pytest.mark.parametrize("dear", [False, True])
def test_batches_of_one_iterator_are_made_by_the_trainer_until_they_are_dear(limits, dear):
    limits(0.0 if dear else float("inf"), 0.0)
    dataset = Stream(40)
    with wrap(DataLoader(dataset, batch_size=None)) as loader:
        assert loader.workshop.here
        for _ in range(2):
            dataset.threads.clear()
            loop = iter(loader)
            batches = [next(loop) for _ in range(2)]
            assert (batches[0] is batches[1]) != (dear and not loader.workshop.here)
            assert [batch[0].item() for batch in loop] == list(range(2, 40))
            assert (set(dataset.threads) == {threading.get_ident()}) != dear
            assert loader.workshop.here != dear
    stats = loader.stats()
    assert (stats.batches, stats.rows) == (80, 80)


def test_the_trainer_pins_what_it_makes(limits, monkeypatch):
    def pin(batch, device):
        assert device is None  # its own, whichever that is
        if batch[0, 0] == 2:
            raise MemoryError("nothing left to pin")
        return batch + 1000

    limits(float("inf"), float("inf"))
    monkeypatch.setattr(dataloader_settings, "pinning_device", lambda: "cuda")
    monkeypatch.setattr(dataloader_tasks, "pinned", pin)
    with wrap(DataLoader(Samples(8), 2, pin_memory=True)) as loader:
        loop = iter(loader)
        assert next(loop)[:, 0].tolist() == [1000, 1001]
        with pytest.raises(MemoryError, match=r"transfer.*nothing left to pin"):
            next(loop)
        assert [batch[0, 0].item() for batch in loop] == [1004, 1006]
        assert loader.stats().stage("transfer").tasks == 4
