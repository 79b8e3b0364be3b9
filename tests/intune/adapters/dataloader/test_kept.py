"""Batches are the DataLoader's also where code counts or works in one buffer, and where it cannot be sent anywhere."""

import threading
import time

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Sampler

from tests.intune.adapters.dataloader.common import assert_same, wrap
from tests.intune.adapters.dataloader.datasets import Growing, Remembering, Samples


class OneList(Sampler):
    """Batches of indices, all in the same object."""

    def __init__(self, size, kept):
        self.size, self.kept = size, kept

    def __iter__(self):
        for i in range(0, self.size, len(self.kept)):
            for k in range(len(self.kept)):
                self.kept[k] = i + k
            yield self.kept


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kept", [[0] * 4, np.zeros(4, dtype=np.int64), torch.zeros(4, dtype=torch.int64)])
def test_a_sampler_may_use_its_list_again(kept, workers):
    loader = DataLoader(Samples(80), batch_sampler=OneList(80, kept), num_workers=workers)
    with wrap(loader, workers="thread") as tuned:
        assert torch.cat(list(tuned))[:, 0].tolist() == list(range(80))


class IntoOne:
    """Collates into the same memory."""

    def __init__(self):
        self.out = torch.zeros(4, 3)

    def __call__(self, samples):
        return torch.stack(samples, out=self.out)


class IntoOneOfAll(IntoOne):
    """The same where nobody looks for what changes."""

    out = torch.zeros(4, 3)

    def __init__(self):
        pass


@pytest.mark.parametrize("kind", [IntoOne, IntoOneOfAll])
def test_a_collate_function_that_uses_its_memory_again_overwrites_no_batch(kind):
    with wrap(DataLoader(Samples(40), 4, collate_fn=kind())) as loader:
        assert [int(batch[0, 0]) for batch in loader] == list(range(0, 40, 4))
        assert loader.workshop.choice.kind == "here"


def test_the_first_batches_are_the_datasets_own_objects_if_it_gives_those():
    dataset = [torch.zeros(2) for _ in range(9)]
    with wrap(DataLoader(dataset, batch_size=None)) as loader:
        for batch in loader:
            batch += 1
    assert torch.stack(dataset).eq(1).all()


# ---- what cannot be sent -----------------------------------------------------------------------------------


class Exclusive(Remembering):
    """Cannot be sent, and fails if two are at it; so its collate function."""

    def __init__(self, size):
        super().__init__(size)
        self.lock = threading.Lock()

    def _use(self):
        assert self.lock.acquire(blocking=False), "two are at it"
        time.sleep(0.0005)
        self.lock.release()

    def __getitem__(self, i):
        self._use()
        return super().__getitem__(i)

    def collate(self, samples):
        self._use()
        return samples


class InPlace(Samples):
    """Changes what it keeps of a sample, as a transform does that writes into its input."""

    def __init__(self, size):
        super().__init__(size)
        self.rows = [{"x": 8.0, "y": i} for i in range(size)]

    def __getitem__(self, i):
        row = self.rows[i]
        row["x"] /= 2
        return row["x"], row.pop("y")


def test_samples_that_are_changed_in_place_are_as_they_were_in_the_next_epoch_as_of_a_dataloader_with_workers():
    expected = [[torch.full((3,), 4.0, dtype=torch.float64), torch.arange(n, n + 3)] for n in range(0, 24, 3)]
    with wrap(DataLoader(InPlace(24), 3, num_workers=2)) as loader:
        for _ in range(2):
            assert_same(loader, expected)
        assert loader.workshop.choice.kind == "process"
        assert loader.dataset.rows == InPlace(24).rows


class Unsendable(Growing):
    """Collates; counts, and cannot be sent."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()

    def ones(self, samples):
        return samples


class OpensAndCounts(Remembering):
    """Opens something when it is first used."""

    opened = None

    def __getitem__(self, i):
        self.opened = self.opened or threading.Lock()
        return super().__getitem__(i)


class LockedBuffer(Exclusive):
    """Gives the same memory again and again."""

    buffer = torch.zeros(3)

    def __getitem__(self, i):
        return self.buffer.fill_(i)


def exclusive(workers):
    dataset = Exclusive(120)
    return DataLoader(dataset, 2, collate_fn=dataset.collate, num_workers=workers)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: exclusive(0), "here"),
        (lambda: DataLoader(Exclusive(120), 2, collate_fn=Growing()), "here"),
        (lambda: DataLoader(Samples(120), 2, collate_fn=Unsendable()), "here"),
        (lambda: DataLoader(Remembering(120), 2, collate_fn=Unsendable().ones), "here"),
        (lambda: DataLoader(OpensAndCounts(120), 2), "here"),
    ],
    ids=["both", "dataset", "collate_fn", "collate_fn of a dataset that counts", "opened late"],
)
def test_code_that_counts_and_cannot_be_sent_gives_the_same(make, kind):
    with wrap(make()) as loader:
        assert_same(loader, make())
        assert loader.workshop.choice.kind == kind


def test_one_thread_at_a_time_runs_all_of_the_code():
    with wrap(exclusive(2)) as loader:
        assert [i for batch in loader for i, _ in batch] == list(range(120))
        assert loader.workshop.choice.kind == "serial"


def test_a_buffer_of_what_cannot_be_sent_overwrites_no_batch():
    with wrap(DataLoader(LockedBuffer(40), batch_size=None)) as loader:
        assert [int(batch[0]) for batch in loader] == list(range(40))
        assert "the same memory again" in loader.workshop.choice.reason


def test_code_that_cannot_be_sent_and_changes_nothing_is_shared_by_threads():
    with wrap(DataLoader(Samples(40), 4, collate_fn=Unsendable().ones)) as loader:
        assert len(list(loader)) == 10
        assert loader.workshop.choice.kind == "thread"
        assert "cannot be sent to a process" in loader.workshop.choice.reason
