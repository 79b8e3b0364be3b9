from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intune.pipelines.transforms.lookup import DirectLookup, HashLookup, all_differ, make_lookup

WORDS = st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(-20, 20))


@pytest.mark.parametrize("make", [make_lookup, HashLookup.of])
@given(listed=st.lists(WORDS, unique=True, max_size=60), asked=st.lists(WORDS, max_size=60))
def test_words_are_found_where_they_stand(make: type, listed: list[int], asked: list[int]) -> None:
    table = make(np.array(listed, np.int64))
    position = {word: place for place, word in enumerate(listed)}
    queries = [*asked, *listed]
    found = table.find(np.array(queries, np.int64))
    assert found.dtype == np.int64
    assert found.tolist() == [position.get(word, -1) for word in queries]


@given(words=st.lists(st.one_of(WORDS, st.integers(-3, 3)), max_size=8))
def test_words_of_which_one_is_there_twice_do_not_all_differ(words: list[int]) -> None:
    assert all_differ(np.array(words, np.int64)) == (len(set(words)) == len(words))


@given(listed=st.lists(st.integers(-50, 50), unique=True, min_size=1), shift=st.integers(-(2**62), 2**62))
def test_close_words_have_a_direct_table(listed: list[int], shift: int) -> None:
    words = np.array(listed, np.int64) + shift
    table = DirectLookup.of(words)
    asked = np.concatenate([words, words - 101, words + 101, [2**63 - 1, -(2**63)]])
    position = {int(word): place for place, word in enumerate(words)}
    assert table.find(asked).tolist() == [position.get(int(word), -1) for word in asked]


def test_the_kind_of_table_follows_from_the_words() -> None:
    assert isinstance(make_lookup(np.arange(10) * 7), DirectLookup)
    assert isinstance(make_lookup(np.arange(10) * 70), HashLookup)
    assert isinstance(make_lookup(np.array([-(2**63), 2**63 - 1])), HashLookup)


def test_crowded_buckets_and_large_queries() -> None:
    rng = np.random.default_rng(0)
    words = np.unique(rng.integers(-(2**63), 2**63 - 1, 50_000))
    rng.shuffle(words)
    table = HashLookup.of(words)
    assert np.diff(table.starts).max() > 2
    asked = np.concatenate([words, rng.integers(-(2**63), 2**63 - 1, 100_000)])
    order = np.argsort(words)
    place = np.minimum(np.searchsorted(words[order], asked), len(words) - 1)
    expected = np.where(words[order][place] == asked, order[place], -1)
    np.testing.assert_array_equal(table.find(asked), expected)
