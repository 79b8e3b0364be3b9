"""Batches that cost less than their way through threads are made by the trainer, as long as they do."""

import threading

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from intune.adapters import dataloader_cheap, dataloader_settings, dataloader_tasks
from intune.adapters.dataloader_cheap import BATCHES, DEAR_S, Cheap
from intune.adapters.dataloader_choice import Choice
from intune.adapters.dataloader_probe import Measurement
from intune.pipelines import Allocation
from tests.intune.adapters.common import assert_same, wrap
from tests.intune.adapters.datasets import Samples

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
    assert Cheap.of(THREAD, measured(0.001)) is None
    for kind in ("serial", "process", "here"):
        assert Cheap.of(Choice(kind=kind, reason=""), measured(0.0005)) is None


def test_once_batches_are_dear_the_other_choice_is_made(limits):
    limits(0.0, DEAR_S)

    def turns(wall_s, cpu_s=0.0, lacked_s=0.0, batches=BATCHES):
        lacked = iter((5.0, 5.0 + lacked_s))
        cheap = Cheap.of(THREAD, measured(0.0))
        cheap.lacked = lacked.__next__
        choices = [cheap.took(wall_s, cpu_s) for _ in range(batches)]
        assert not any(choices[:-1])
        return choices[-1]

    assert turns(DEAR_S / 2) is None
    assert turns(2 * DEAR_S, batches=BATCHES - 1) is None
    assert turns(2 * DEAR_S).kind == "thread"
    assert "4 ms" in turns(2 * DEAR_S).reason
    # What they lacked a processor for is no time of theirs.
    assert turns(2 * DEAR_S, lacked_s=1.5 * DEAR_S * BATCHES) is None
    assert turns(2 * DEAR_S, cpu_s=2 * DEAR_S, lacked_s=1.5 * DEAR_S * BATCHES).kind == "thread"


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
    assert fetch.busy_s >= fetch.cpu_s > 0


def test_batches_that_turn_out_dear_are_made_by_threads_from_then_on(limits):
    limits(float("inf"), 0.0)
    dataset = Where(3 * BATCHES)
    plain = DataLoader(dataset, 1)
    with wrap(plain) as loader:
        batches = list(loader)
        assert loader.allocation == Allocation.shared(2)
        assert loader.workshop.choice.kind == "thread"
    own = [thread == threading.get_ident() for thread in dataset.threads]
    assert own == [True] * BATCHES + [False] * 2 * BATCHES
    assert_same(batches, plain)


def test_an_error_of_the_last_batch_before_that_is_the_users(limits):
    class Fails(Samples):
        def __getitem__(self, i):
            if i == BATCHES - 1:
                raise ValueError("of a thread of ours")
            return super().__getitem__(i)

    limits(float("inf"), 0.0)
    with wrap(DataLoader(Fails(BATCHES + 1), 1)) as loader:
        loop = iter(loader)
        for _ in range(BATCHES - 1):
            next(loop)
        with pytest.raises(ValueError, match="of a thread of ours"):
            next(loop)
        assert_same([next(loop)], [torch.stack([Samples(BATCHES + 1)[BATCHES]])])
        assert loader.workshop.choice.kind == "thread"


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
        with pytest.raises(MemoryError, match="transfer.*nothing left to pin"):
            next(loop)
        assert [batch[0, 0].item() for batch in loop] == [1004, 1006]
        assert loader.stats().stage("transfer").tasks == 4
