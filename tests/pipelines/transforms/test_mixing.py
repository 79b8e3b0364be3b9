from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intune.pipelines.transforms.mixing import GOLDEN, as_words, key_of, mix, mix_int, modulo

WORDS = st.integers(0, 2**64 - 1)


def test_mixing_is_splitmix64s_finaliser() -> None:
    # The published first outputs of splitmix64 seeded with 1234567.
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [mix_int(1234567 + step * GOLDEN) for step in range(1, 6)] == published


@given(values=st.lists(WORDS, max_size=50))
def test_arrays_are_mixed_like_integers(values: list[int]) -> None:
    words = np.array(values, np.uint64)
    mix(words, np.empty_like(words))
    assert words.tolist() == [mix_int(value) for value in values]


def test_each_bit_flips_each_other_bit_half_of_the_time() -> None:
    rng = np.random.default_rng(0)
    words = rng.integers(0, 2**64, 4096, dtype=np.uint64)
    scratch = np.empty_like(words)
    plain = words.copy()
    mix(plain, scratch)
    bits = np.arange(64, dtype=np.uint64)
    for bit in bits:
        flipped = words ^ (np.uint64(1) << bit)
        mix(flipped, scratch)
        changed = ((plain ^ flipped)[:, None] >> bits) & np.uint64(1)
        assert np.all(np.abs(changed.mean(axis=0) - 0.5) < 0.05)


@given(
    sizes=st.lists(
        st.one_of(st.integers(1, 2**63 - 1), st.sampled_from([1, 2, 2**20, 2**62])), min_size=1, max_size=4
    ),
    length=st.sampled_from([0, 1, 511, 700, 8192, 9000]),
    seed=st.integers(0, 10),
)
def test_modulo_is_the_true_remainder(sizes: list[int], length: int, seed: int) -> None:
    words = np.random.default_rng(seed).integers(0, 2**64, (len(sizes), length), dtype=np.uint64)
    column = np.array(sizes, np.uint64)[:, None]
    expected = words % column
    modulo(words, column, np.empty_like(words))
    np.testing.assert_array_equal(words, expected)


@pytest.mark.parametrize("size", [1000, 1024])
def test_numpys_buffer_is_as_it_was(size: int) -> None:
    before = np.setbufsize(4096)
    try:
        modulo(np.zeros((1, 5), np.uint64), np.array([[size]], np.uint64), np.zeros((1, 5), np.uint64))
        assert np.getbufsize() == 4096
    finally:
        np.setbufsize(before)


def test_keys_differ_by_seed_and_name_and_the_plain_one_is_zero() -> None:
    assert key_of(0) == 0
    keys = {key_of(seed, name) for seed in range(5) for name in ("", "a", "b", "ab", "ba", "é")}
    assert len(keys) == 30


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64"])
def test_equal_numbers_of_any_width_are_equal_words(dtype: str) -> None:
    words = as_words(np.array([-1, 5], dtype)).astype(np.int64)
    assert words.tolist() == [-1, 5]
    assert as_words(np.array([2**64 - 1], np.uint64)).tolist() == [-1]
