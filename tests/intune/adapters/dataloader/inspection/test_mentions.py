"""What is read from a dataset's code, and what is not mistaken for it."""

import random
import threading
from functools import partial
from random import choice

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset, get_worker_info

from intune.adapters.dataloader.inspection import mentions as dataloader_mentions
from intune.adapters.dataloader.inspection.mentions import Mentions, mentions
from intune.adapters.dataloader.settings import read_settings
from tests.intune.adapters.dataloader.common import wrap

NOTHING, RANDOM = Mentions(), Mentions(random=True)


def noise(value):
    return torch.randn(3) + value


def imports(value):
    import random as chance

    return chance.random() + value


class Applies(Dataset):
    def __init__(self, function):
        torch.rand(())  # before there are any batches
        self.function = function

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return self.given(i)

    def given(self, i):
        return self.function(i)


class Whimsical:
    """Fails when it is asked for what it does not have."""

    def __getattr__(self, name):
        raise SystemExit(name)

    def __call__(self, value):
        return value


@pytest.mark.parametrize(
    ("function", "found"),
    [
        (lambda i: i, NOTHING),
        (lambda i: random.random(), RANDOM),
        (lambda i: np.random.rand(), RANDOM),  # noqa: NPY002
        (lambda i: choice([i]), RANDOM),
        (lambda i: torch.zeros(2).uniform_(), RANDOM),
        (lambda i: [torch.rand(()) for _ in range(i)], RANDOM),
        (noise, RANDOM),
        (imports, RANDOM),
        (partial(noise), RANDOM),
        ({"x": [noise]}, RANDOM),
        (torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout()), RANDOM),
        (torch.nn.Linear(2, 2), NOTHING),
        (lambda i: torch.zeros(2) + np.zeros(2), NOTHING),
        (np.random.default_rng(0).random, Mentions(generator=True)),
        (torch.Generator(), Mentions(generator=True)),
        (lambda i: get_worker_info().id, Mentions(worker_info=True)),
        (random.random, RANDOM),
        (torch.rand, RANDOM),
        (len, NOTHING),
    ],
)
def test_mentions_are_found_wherever_the_code_refers_to(function, found):
    dataset = Applies(function)
    for one in (dataset, Subset(dataset, [1]), ConcatDataset([TensorDataset(torch.zeros(2)), dataset])):
        assert mentions(read_settings(DataLoader(one))) == found


def test_objects_are_not_asked_for_what_they_may_not_have():
    assert mentions(read_settings(DataLoader(Applies(Whimsical())))) == NOTHING


def test_what_puts_samples_together_counts_too():
    assert mentions(read_settings(DataLoader(list(range(4))))) == NOTHING
    assert mentions(read_settings(DataLoader(list(range(4)), collate_fn=noise))) == RANDOM


def test_code_is_read_once_however_many_loaders_look_at_it(monkeypatch):
    """That of pandas takes half a second, and each loader looks twice."""
    read = []
    names_of = dataloader_mentions.names_of
    monkeypatch.setattr(dataloader_mentions, "names_of", lambda steps: read.append(1) or names_of(steps))
    dataloader_mentions._names_in.cache_clear()
    assert mentions(read_settings(DataLoader(Applies(noise)))) == RANDOM
    assert read
    read.clear()
    assert mentions(read_settings(DataLoader(Applies(noise)))) == RANDOM
    assert not read


OPTIONS = threading.local()


def scaled(value):
    return value * getattr(OPTIONS, "scale", -1)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_what_the_trainers_thread_has_for_itself_is_read_there(num_workers):
    def run(loader):
        return [batch.tolist() for batch in loader]

    plain = DataLoader(Applies(scaled), 1, num_workers=num_workers)
    OPTIONS.scale = 5
    try:
        assert mentions(read_settings(plain)).thread
        with wrap(plain) as loader:
            assert run(loader) == [[0], [5], [10], [15]]
            assert "`threading.local`" in loader.workshop.choice.reason
        with wrap(DataLoader(range(3), 1, collate_fn=lambda few: scaled(few[0]))) as loader:
            assert list(loader) == [0, 5, 10]
    finally:
        del OPTIONS.scale


def test_what_every_thread_makes_for_itself_is_no_option():
    connected = Applies(scaled)
    for name, value in (("nothing", None), ("connection", object())):
        connected.local = threading.local()
        if value is not None:
            setattr(connected.local, name, value)
            connected.local.pid = 7
        assert not mentions(read_settings(DataLoader(connected))).thread
