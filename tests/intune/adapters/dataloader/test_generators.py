"""Workers that persist have one base seed for good, and other random numbers in every epoch."""

import itertools

import pytest
import torch
from torch.utils.data import DataLoader, get_worker_info

from intune.adapters.dataloader.generators import EpochSeed, saved_seed, seed_state
from intune.adapters.dataloader.inspection import choice as dataloader_choice
from intune.pipelines import Allocation
from tests.intune.adapters.dataloader.common import assert_same, same, wrap
from tests.intune.adapters.dataloader.datasets import Noisy, Stream


class Told(Noisy):
    """Tells torch's seed of the worker, less its number, and how often it was begun."""

    begun = 0

    def __getitem__(self, i):
        info = get_worker_info()
        return super().__getitem__(i), info.seed - info.id, info.dataset.begun


def begin(number):
    get_worker_info().dataset.begun += 1


def make(size=12, **options):
    return DataLoader(
        Noisy(size),
        3,
        num_workers=2,
        persistent_workers=True,
        generator=torch.Generator().manual_seed(7),
        **options,
    )


def test_the_first_epoch_is_seeded_with_torchs_number_and_later_ones_with_others():
    seeds = [EpochSeed(2**62 + 5, repeat).of_batches for repeat in range(100)]
    assert seeds[0] == 2**62 + 5
    assert len(set(seeds)) == 100
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_seed_goes_through_a_state_and_early_states_can_be_read():
    assert saved_seed(seed_state(None)) is None
    assert saved_seed(seed_state(EpochSeed(5, 3))) == EpochSeed(5, 3)
    assert saved_seed({"base_seed": 5}) == EpochSeed(5)
    assert saved_seed({}) is None


@pytest.mark.parametrize(("workers", "kind"), [("process", "process"), ("auto", "here")])
def test_workers_that_persist_draw_other_numbers_in_every_epoch(workers, kind, monkeypatch):
    monkeypatch.setattr(
        dataloader_choice, "WORTH_SENDING_S", 10.0
    )  # so that it is known where they are drawn
    with wrap(make(), workers=workers) as loader:
        epochs = [list(loader) for _ in range(3)]
        assert loader.workshop.choice.kind == kind
    assert not any(same(one, other) for one, other in itertools.combinations(epochs, 2))
    with wrap(make(), workers=workers) as other:
        for batches in epochs:
            assert_same(other, batches)  # as every time


def test_workers_that_persist_are_begun_once_and_told_one_seed():
    dataloader = DataLoader(Told(8), 2, num_workers=1, persistent_workers=True, worker_init_fn=begin)
    with wrap(dataloader, allocation=Allocation.shared(1)) as loader:
        told = [(batch[1].tolist(), batch[2].tolist()) for _ in range(3) for batch in loader]
    assert len({seed for seeds, _ in told for seed in seeds}) == 1
    assert {count for _, counts in told for count in counts} == {1}


@pytest.mark.parametrize("place", ["within", "between"])
def test_a_state_of_a_later_epoch_goes_on_with_its_random_numbers(place):
    with wrap(make(), workers="process") as loader:
        list(loader)
        loop = iter(loader)
        taken = [next(loop) for _ in range(2)] if place == "within" else list(loop)
        state = loader.state_dict()
        rest = list(loop)
        after = list(loader)
    assert state["repeat"] == (1 if place == "within" else 2)
    with wrap(make(), workers="process") as other:
        other.load_state_dict(state)
        if place == "within":
            assert_same(other, rest)
            assert len(taken) + len(rest) == 4
        assert_same(other, after)
        del state["repeat"]  # as an early one
        other.load_state_dict(state)
        assert len(list(other)) == (len(rest) or 4)


def test_iterators_that_persist_draw_on_and_those_of_a_later_state_others_than_at_first():
    def stream():
        generator = torch.Generator().manual_seed(7)
        dataset = Stream((4,), noisy=True)
        return DataLoader(dataset, 2, num_workers=1, persistent_workers=True, generator=generator)

    plain = stream()
    with wrap(stream()) as loader:
        first = list(loader)
        assert_same(first, plain)
        state = loader.state_dict()
        assert_same(loader, plain)
    with wrap(stream()) as other:
        other.load_state_dict(state)
        assert not same(list(other), first)
