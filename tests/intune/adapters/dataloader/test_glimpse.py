"""What the trainer changes in a dataset while an epoch is under way shows, also where processes make the batches."""

import itertools
import logging
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset

from intune.adapters.dataloader.inspection.standing import MOST_ITEMS, glimpse
from intune.pipelines import Allocation
from tests.intune.adapters.dataloader.common import wrap
from tests.intune.adapters.dataloader.datasets import Samples


class Adds(Samples):
    def __init__(self, size):
        super().__init__(size)
        self.options = SimpleNamespace(add=0, table={"times": 1})

    def __getitem__(self, i):
        return (i + self.options.add) * self.options.table["times"]


@pytest.mark.parametrize(
    "change",
    [
        lambda value: setattr(value, "kind", "string"),
        lambda value: setattr(value.options, "add", 1),
        lambda value: setattr(value.options, "add", 0.0),  # equal, but of another type
        lambda value: value.options.table.update(times=2),
        lambda value: value.options.table.update({n: n for n in range(2 * MOST_ITEMS)}),
        lambda value: setattr(value, "new", None),
        lambda value: delattr(value, "kind"),
        lambda value: setattr(value, "options", SimpleNamespace(add=0, table={"times": 1})),
        lambda value: value.tensor.add_(1),
        lambda value: setattr(value, "array", value.array.copy()),
        lambda value: value.itself.append(1),
    ],
)
def test_a_change_of_what_an_object_keeps_is_seen(change):
    dataset = Adds(4)
    dataset.tensor, dataset.array, dataset.itself = torch.zeros(2), np.zeros(2), []
    dataset.itself.append(dataset)
    whole = Subset(dataset, [0])
    before = glimpse(whole, len)
    assert glimpse(whole, len) == before
    assert hash(glimpse(whole, len)) == hash(before)
    change(dataset)
    assert glimpse(whole, len) != before


def test_large_ones_are_not_looked_through():
    value = SimpleNamespace(data=list(range(10**6)), slots=iter([]), inference=None)
    with torch.inference_mode():
        value.inference = torch.zeros(1)
    assert len(glimpse(value).kept) < 10
    assert len(glimpse(*(SimpleNamespace() for _ in range(1000))).kept) <= 200


def test_what_the_trainer_changes_shows_in_processes_some_batches_later():
    dataset = Adds(400)
    with wrap(DataLoader(dataset, 2), workers="process", allocation=Allocation.shared(1)) as loader:
        loop = iter(loader)
        first = [next(loop).tolist() for _ in range(3)]
        dataset.options.add = 1000
        rest = [batch.tolist() for batch in loop]
    assert first == [[0, 1], [2, 3], [4, 5]]
    changed = [batch[0] >= 1000 for batch in rest]
    assert changed == sorted(changed)
    assert changed.index(True) < 16
    assert [i % 1000 for batch in rest for i in batch] == list(range(6, 400))


def test_with_workers_it_shows_in_the_next_epoch_as_in_the_dataloader():
    dataset = Adds(60)
    with wrap(DataLoader(dataset, 2, num_workers=1), workers="process") as loader:
        loop = iter(loader)
        next(loop)
        dataset.options.add = 1000
        assert all(int(batch[0]) < 1000 for batch in loop)
        assert all(int(batch[0]) >= 1000 for batch in loader)


def test_a_dataset_that_cannot_be_sent_any_more_is_used_as_it_was_until_the_epoch_is_over(caplog):
    dataset = Adds(60)
    with (
        caplog.at_level(logging.WARNING, "intune"),
        wrap(DataLoader(dataset, 2), workers="process") as loader,
    ):
        loop = iter(loader)
        next(loop)
        loader.workshop.shipment.first = None  # as of a large one
        dataset.options.add, dataset.lock = 1000, threading.Lock()
        assert all(int(batch[0]) < 1000 for batch in loop)
        (record,) = caplog.records
        assert "go on with the dataset as it was until the next epoch" in record.getMessage()
        assert all(int(batch[0]) >= 1000 for batch in itertools.islice(loader, 3))
