"""A DataLoader whose arguments are changed between two loops, and what else is asked of one."""

import pytest
import torch
from torch.utils.data import DataLoader

import intune
from intune.errors import ConfigError
from tests.intune.adapters.dataloader.common import assert_same, wrap
from tests.intune.adapters.dataloader.datasets import Samples, Stream


def hundredfold(samples):
    return torch.stack(samples) * 100


def test_the_next_loop_has_the_arguments_as_they_are_then():
    def run(change):
        plain, other = DataLoader(Samples(9), 2), DataLoader(Samples(9), 2)
        with wrap(other, workers="thread") as loader:
            assert_same(loader, list(plain))
            change(plain)
            change(loader)
            assert_same(loader, list(plain))
            assert_same(loader, list(plain))
            return loader

    for name, value in (("collate_fn", hundredfold), ("generator", torch.Generator())):
        changed = run(lambda one, name=name, value=value: setattr(one, name, value))
        assert getattr(changed.dataloader, name) == value


def test_a_loop_under_way_keeps_what_it_began_with():
    with wrap(DataLoader(Samples(40), 2), workers="thread") as loader:
        expected = list(loader)
        loop = iter(loader)
        first = [next(loop)]
        loader.collate_fn = hundredfold
        inner = list(loader)
        assert_same([*first, *loop], expected)
        assert_same(inner, [batch * 100 for batch in expected])
        assert_same(loader, inner)


def test_workers_that_persist_keep_what_they_were_started_with():
    make = lambda: DataLoader(Samples(8), 2, num_workers=1, persistent_workers=True)  # noqa: E731
    plain = make()
    with wrap(make(), workers="thread") as loader:
        for one in (plain, loader):
            one.collate_fn = list  # before they are
        assert_same(loader, list(plain))
        for one in (plain, loader):
            one.collate_fn = hundredfold
        assert_same(loader, list(plain))


def test_what_cannot_be_changed_says_so_and_what_cannot_be_used_is_told():
    with wrap(DataLoader(Samples(8), 2), workers="thread") as loader:
        with pytest.raises(ValueError, match="batch_size attribute should not be set"):
            loader.batch_size = 3
        loader.worker_init_fn = print
        loader.num_workers = 1
        with pytest.raises(ConfigError, match="`worker_init_fn` is made for processes"):
            iter(loader)
        loader.num_workers = 0
        assert len(list(loader)) == 4


def test_a_tuned_loader_passes_on_what_is_written():
    with intune.tune(DataLoader(Samples(8), 2), agent="even", knowledge=False) as tuned:
        list(tuned)
        tuned.collate_fn = hundredfold
        tuned.note = "of the user"
        assert tuned.loader.dataloader.collate_fn is hundredfold
        assert tuned.note == tuned.loader.dataloader.note == "of the user"
        assert_same(tuned, list(DataLoader(Samples(8), 2, collate_fn=hundredfold)))


def test_iterators_have_a_length_and_private_attributes_are_there():
    plain = DataLoader(Samples(9), 2)
    with intune.tune(DataLoader(Samples(9), 2), agent="even", knowledge=False) as tuned:
        loop = iter(tuned)
        next(loop)
        assert len(loop) == len(iter(plain)) == 5
        assert tuned._dataset_kind == plain._dataset_kind
        assert tuned._index_sampler is tuned.batch_sampler
        with pytest.raises(AttributeError):
            _ = tuned._no_such_thing
    with wrap(DataLoader(Stream((4,)), 2)) as loader, pytest.raises(TypeError):
        len(iter(loader))
