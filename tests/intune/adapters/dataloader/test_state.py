"""A wrapped DataLoader goes on after a restart with exactly the batch after those that were handed over."""

import io
import itertools
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, RandomSampler, Sampler

from intune.pipelines import Allocation
from intune.pipelines.errors import LoaderError
from tests.intune.adapters.dataloader.common import assert_same, wrap
from tests.intune.adapters.dataloader.datasets import Epochs, Samples, Stream


def through_a_file(state):
    """As a checkpoint keeps it, read without running any code from it."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


class PythonRandom(Sampler):
    """Shuffles with Python's or NumPy's own generator."""

    def __init__(self, size, shuffle):
        self.size, self.shuffle = size, shuffle

    def __iter__(self):
        keys = list(range(self.size))
        self.shuffle(keys)
        return iter(keys)


def maker(kind):
    def make(seed=None):
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        if kind == "plain":
            return DataLoader(Samples(31), 4, shuffle=True)
        if kind == "generator":
            return DataLoader(Samples(31), 4, shuffle=True, generator=generator)
        if kind == "replacement":
            sampler = RandomSampler(range(31), replacement=True, generator=generator)
            return DataLoader(Samples(31), 4, sampler=sampler, num_workers=2)
        if kind == "persistent":
            return DataLoader(
                Samples(31), 4, shuffle=True, generator=generator, num_workers=1, persistent_workers=True
            )
        if kind == "epochs":
            return DataLoader(Samples(31), 4, sampler=Epochs(31))
        if kind == "stream":
            return DataLoader(Stream((31,)), 4)
        shuffle = random.shuffle if kind == "python" else np.random.shuffle
        return DataLoader(Samples(31), 4, sampler=PythonRandom(31, shuffle))

    return make


KINDS = ["plain", "generator", "replacement", "persistent", "epochs", "stream", "python", "numpy"]


@settings(max_examples=40)
@given(
    kind=st.sampled_from(KINDS),
    epochs=st.integers(0, 2),
    count=st.integers(0, 7),
    slots=st.integers(1, 4),
    left=st.booleans(),
)
def test_the_rest_of_the_epoch_and_the_next_ones_follow(kind, epochs, count, slots, left):
    make = maker(kind)
    options = {"workers": "auto" if kind == "stream" else "thread", "allocation": Allocation.shared(slots)}
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    with wrap(make(seed=5), **options) as loader:
        for _ in range(epochs):
            loader.set_epoch(loader.epoch)
            list(loader)
        loop = iter(loader)
        if kind == "epochs":
            loader.set_epoch(loader.epoch)
        taken = [next(loop) for _ in range(count)]
        state = through_a_file(loader.state_dict())
        rest = list(loop)
        after = list(loader) if kind in ("generator", "persistent", "replacement", "stream") else []
        assert len(taken) + len(rest) == 8

    torch.manual_seed(99)  # a new process: other global states
    random.seed(99)
    np.random.seed(99)  # noqa: NPY002
    with wrap(make(seed=77), **options) as other:
        other.load_state_dict(state)
        if left:
            other.load_state_dict(through_a_file(other.state_dict()))
        here = torch.get_rng_state(), random.getstate()
        loop = iter(other)
        assert torch.equal(torch.get_rng_state(), here[0])
        assert random.getstate() == here[1]
        assert other.stats().batch == count
        assert_same(loop, rest)
        assert other.epoch == epochs + 1
        if after:
            assert_same(other, after)


def test_the_state_between_epochs_and_after_a_loop_left_early():
    make = maker("generator")
    with wrap(make(seed=5), workers="thread") as loader:
        list(loader)
        between = loader.state_dict()
        assert (between["epoch"], between["batch"]) == (1, 0)
        second = list(loader)
        list(itertools.islice(loader, 3))
        early = loader.state_dict()
        assert (early["epoch"], early["batch"]) == (2, 3)
    with wrap(make(seed=8), workers="thread") as other:
        other.load_state_dict(between)
        assert_same(other, second)
        whole = list(other)
        other.load_state_dict(early)
        assert_same(other, whole[3:])


def test_of_an_epoch_that_a_state_counts_to_its_end_nothing_is_left():
    """As where a checkpoint is due at the last step, and the script that resumes names the epoch it was saved in."""
    make = maker("epochs")
    with wrap(make(seed=5), workers="thread") as loader:
        loader.set_epoch(2)
        for _ in loader:
            state = loader.state_dict()
        loader.set_epoch(3)
        third = list(loader)
    with wrap(make(seed=5), workers="thread") as other:
        other.load_state_dict(through_a_file(state))
        other.set_epoch(2)
        other.load_state_dict(through_a_file(other.state_dict()))
        other.set_epoch(2)
        assert list(other) == []
        assert other.epoch == 3
        other.set_epoch(3)
        assert_same(other, third)
        other.set_epoch(2)  # asked for once more, it is read
        assert len(list(other)) == 8


def test_after_its_last_batch_an_epoch_is_over_though_nobody_asked_for_more():
    """As trainers do that count the batches: they never see the end of the loop."""
    make = maker("generator")
    plain = make(seed=5)
    with wrap(make(seed=5), workers="thread") as loader:
        for epoch in range(2):
            loop, expected = iter(loader), iter(plain)
            assert_same([next(loop) for _ in range(8)], [next(expected) for _ in range(8)])
            assert loader.epoch == epoch
            state = loader.state_dict()
            assert (state["epoch"], state["batch"]) == (epoch + 1, 0)
        former, loop = loop, iter(loader)  # while the one before is still held
        assert loader.epoch == 2
        assert list(former) == []
        for _ in range(8):
            next(loop)
        state = loader.state_dict()
        assert list(loop) == []
        following = list(loader)
    with wrap(make(seed=8), workers="thread") as other:
        other.load_state_dict(state)
        assert_same(other, following)


def test_a_loop_left_before_its_first_batch_is_no_epoch():
    for workers in (0, 1):
        with wrap(DataLoader(Samples(8), 4, num_workers=workers)) as loader:
            loop = iter(loader)
            assert (loader.state_dict()["epoch"], loader.state_dict()["batch"]) == (0, 0)
            del loop
            assert loader.epoch == 0
            assert len(list(loader)) == 2
            assert loader.epoch == 1


def test_batches_handed_over_out_of_order_are_not_given_again():
    make = lambda: DataLoader(Samples(40), 2, num_workers=2, in_order=False)  # noqa: E731
    with wrap(make(), workers="thread", allocation=Allocation.shared(4)) as loader:
        loop = iter(loader)
        first = [next(loop) for _ in range(7)]
        state = loader.state_dict()
    with wrap(make(), workers="thread") as other:
        other.load_state_dict(state)
        rows = torch.cat([*first, *other])[:, 0].tolist()
    assert sorted(rows) == list(range(40))


def early(state):
    """What a state belonged to before it was said how many generators it has."""
    return {name: value for name, value in state["belongs_to"].items() if name != "generators"}


def test_a_state_with_other_generators_changes_nothing():
    saved = []
    for generator in (torch.Generator().manual_seed(5), None):
        with wrap(DataLoader(Samples(8), 2, shuffle=True, generator=generator), workers="thread") as loader:
            list(loader)
            saved.append(loader.state_dict())
    own = torch.Generator().manual_seed(6)
    before = own.get_state()
    loader = wrap(DataLoader(Samples(8), 2, shuffle=True, generator=own), workers="thread")
    with loader, pytest.raises(LoaderError, match="saved with generators 0, but this loader has 1"):
        loader.load_state_dict(saved[1])
    assert torch.equal(own.get_state(), before)
    assert loader.epoch == 0
    with wrap(DataLoader(Samples(8), 2, shuffle=True, generator=own), workers="thread") as loader:
        loader.load_state_dict({**saved[0], "belongs_to": early(saved[0])})
        assert loader.epoch == 1


def test_a_state_of_something_else_is_refused():
    with wrap(DataLoader(Samples(8), 2), workers="thread") as loader:
        state = loader.state_dict()
        for change, message in (
            ({"version": 0}, "version 0, but this is 1"),
            ({"belongs_to": {**state["belongs_to"], "batch_size": 3}}, "batch_size 3, but this loader has 2"),
            ({"epoch": "x"}, "`state` is not a loader's state"),
            ({"generators": [torch.get_rng_state()], "belongs_to": early(state)}, "generators 1, but this"),
        ):
            with pytest.raises(LoaderError, match=message):
                loader.load_state_dict({**state, **change})
        with pytest.raises(LoaderError, match="`state` is not a loader's state"):
            loader.load_state_dict({})
        assert len(list(loader)) == 4
