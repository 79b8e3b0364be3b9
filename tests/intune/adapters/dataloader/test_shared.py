"""Generators that several loaders, or the training, draw from: everybody gets what they would without tuning."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from intune.adapters.dataloader.inspection.draws import draws_of
from intune.pipelines import Allocation
from tests.intune.adapters.dataloader.common import assert_same, wrap
from tests.intune.adapters.dataloader.datasets import Samples


class AtOnce(Sampler):
    """A sampler of the user's that draws its whole order at once, and says nothing of its length."""

    def __init__(self, size, generator):
        self.size, self.generator = size, generator

    def __iter__(self):
        return iter(torch.randperm(self.size, generator=self.generator).tolist())


class DrawsLast(AtOnce):
    """One that draws at its end too, as torch's own."""

    def __iter__(self):
        yield from torch.randperm(self.size, generator=self.generator).tolist()
        torch.rand(3, generator=self.generator)

    def __len__(self):
        return self.size


def loader_over(size, generator, kind, *, batch_size=4, drop_last=False, num_workers=0):
    samples = Samples(size)
    sampler = {
        "shuffle": lambda: RandomSampler(samples, generator=generator),
        "twice": lambda: RandomSampler(samples, num_samples=2 * size + 1, generator=generator),
        "replacement": lambda: RandomSampler(samples, replacement=True, num_samples=70, generator=generator),
        "subset": lambda: SubsetRandomSampler(range(0, size, 2), generator=generator),
        "weighted": lambda: WeightedRandomSampler([1.0] * size, size, generator=generator),
        "own": lambda: AtOnce(size, generator),
        "own at its end": lambda: DrawsLast(size, generator),
    }[kind]()
    return DataLoader(
        samples,
        batch_size,
        sampler=sampler,
        generator=generator,
        drop_last=drop_last if batch_size else False,
        num_workers=num_workers,
    )


def train(make, wrapped):
    """Two loops within each other, a draw of the training's own, and what the generator is at every step."""
    generator = torch.Generator().manual_seed(3)
    outer, inner, at, stop, draws = make(generator)
    seen = []
    if wrapped:
        outer, inner = (
            wrap(one, workers="thread", allocation=Allocation.shared(3)) for one in (outer, inner)
        )
    for _ in range(2):
        for number, batch in enumerate(outer):
            seen.append((batch, generator.get_state()))
            if number == at:
                seen += [(one, generator.get_state()) for one in inner]
                seen += [(one, generator.get_state()) for one in itertools.islice(inner, 1)]
            if draws:
                seen.append((torch.rand(2, generator=generator), generator.get_state()))
            if number == stop:
                break
        seen.append((0, generator.get_state()))
    if wrapped:
        outer.close()
        inner.close()
    return seen


KINDS = ["shuffle", "twice", "replacement", "subset", "weighted", "own", "own at its end"]


@settings(max_examples=60)
@given(
    outer=st.sampled_from(KINDS),
    inner=st.sampled_from(KINDS),
    size=st.integers(1, 30),
    batch_size=st.sampled_from([None, 1, 3, 4, 40]),
    drop_last=st.booleans(),
    at=st.integers(0, 5),
    stop=st.integers(0, 12),
    draws=st.booleans(),
)
def test_a_shared_generator_gives_everybody_the_same(
    outer, inner, size, batch_size, drop_last, at, stop, draws
):
    def make(generator):
        options = {"batch_size": batch_size, "drop_last": drop_last}
        return (
            loader_over(size, generator, outer, **options),
            loader_over(7, generator, inner),
            at,
            stop,
            draws,
        )

    assert_same(train(make, wrapped=True), train(make, wrapped=False))


@pytest.mark.parametrize("kind", ["shuffle", "replacement", "own"])
def test_with_workers_as_much_is_drawn_ahead_as_there(kind):
    def make(generator):
        outer = loader_over(26, generator, kind, num_workers=1)
        return outer, loader_over(7, generator, "shuffle"), 2, 5, True

    assert_same(train(make, wrapped=True), train(make, wrapped=False))


def test_one_loader_nested_in_itself_gives_the_same():
    def run(wrapped):
        loader = loader_over(12, torch.Generator().manual_seed(0), "shuffle")
        loader = wrap(loader, workers="thread") if wrapped else loader
        return [(batch, list(loader)) for batch in loader]

    assert_same(run(True), run(False))


def test_a_sampler_that_draws_as_it_goes_is_read_ahead_once_only():
    class AsItGoes(AtOnce):
        reads = 0

        def __iter__(self):
            for _ in range(self.size):
                type(self).reads += 1
                yield int(torch.randint(self.size, (), generator=self.generator))

    with wrap(
        DataLoader(Samples(40), 2, sampler=AsItGoes(40, torch.Generator())), workers="thread"
    ) as loader:
        loop = iter(loader)
        ahead = []
        for taken in range(1, 9):
            next(loop)
            ahead.append(AsItGoes.reads - 2 * taken)
    assert max(ahead) <= 2
    assert ahead[-1] == 0


@given(size=st.integers(1, 80), count=st.integers(1, 99), batch_size=st.integers(1, 9), data=st.data())
@settings(max_examples=60)
def test_it_is_known_when_torchs_samplers_draw(size, count, batch_size, data):
    generator = torch.Generator().manual_seed(1)
    replacement = data.draw(st.booleans())
    sampler = RandomSampler(range(size), replacement=replacement, num_samples=count, generator=generator)
    sampler = BatchSampler(sampler, batch_size, drop_last=data.draw(st.booleans()))
    draws = draws_of(sampler)
    loop = iter(sampler)
    for read in itertools.count():
        before = generator.get_state()
        batch = next(loop, None)
        assert draws(read) or torch.equal(before, generator.get_state())
        if batch is None:
            break
