"""Long lists of plain things: which are found, and how large they are held to be."""

import pickle

import pytest

from intune.adapters.dataloader.sending import long_lists as module
from intune.adapters.dataloader.sending.long_lists import kept_items, long_lists
from tests.intune.adapters.dataloader.datasets import Samples

ROWS = [(i, str(i), float(i)) for i in range(20_000)]


@pytest.mark.parametrize(
    "items",
    [
        ROWS,
        tuple(ROWS),
        set(ROWS),
        dict(enumerate(ROWS)),
        {i: [i, {"a": {i}}] for i in range(20_000)},
        list(range(20_000)),
    ],
    ids=lambda items: type(items).__name__,
)
def test_a_long_list_is_found_at_any_depth_and_its_size_told_from_a_sample(items):
    holder, inner = Samples(1), Samples(1)
    holder.parts, inner.items, inner.other = {"a": (inner,)}, items, [holder]
    (found,) = long_lists(holder)
    assert found.items is items
    assert found.size == pytest.approx(len(pickle.dumps(items, protocol=5)), rel=0.5)


def test_short_lists_and_those_of_other_things_are_looked_through():
    class Keeps(Samples):
        def __getstate__(self):
            return {}

    keeps, holder = Keeps(1), Samples(1)
    keeps.items, holder.short = ROWS, ROWS[:100]
    holder.objects, holder.long = [Samples(1)] * 20_000, [[0] * 1000] * 20_000
    holder.deep, holder.kind = [[[[[[Keeps]]]]]] * 20_000, Keeps
    assert long_lists([keeps, holder]) == []


def test_a_sample_tells_of_all_but_small_changes(monkeypatch):
    rows = list(range(20_000))
    (before,) = long_lists([rows])
    rows.reverse()
    (after,) = long_lists([rows])
    assert after.sample != before.sample
    rows.append(1)
    assert long_lists([rows])[0].sample != after.sample
    monkeypatch.setattr(module, "MOST", 0)
    assert long_lists([rows]) == []


@pytest.mark.parametrize(
    "items", [ROWS, tuple(ROWS), set(ROWS), frozenset(ROWS), {i: (i,) for i in range(9)}]
)
def test_items_that_cannot_change_tell_whether_a_list_is_as_it_was(items):
    kept = kept_items(items)
    assert kept.still(items)
    assert not kept.still(type(items)([*items, 1]) if not isinstance(items, dict) else dict(items))
    if isinstance(items, list):
        items = list(items)
        kept = kept_items(items)
        items[7] = (7.0, "7", 7.0)  # which is equal
        assert items == kept.items
        assert not kept.still(items)
    if isinstance(items, dict):
        items[4] = (4.0,)
        assert not kept.still(items)


@pytest.mark.parametrize("items", [[[1]], [(1, [2])], {1: [2]}, {(1, (2,)): 3}, [len]])
def test_items_that_may_change_tell_nothing(items):
    assert kept_items(items) is None
