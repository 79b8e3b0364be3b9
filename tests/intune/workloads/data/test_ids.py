"""Ids: Zipf's law, distinct ids for distinct ranks, hex text there and back."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intune.workloads.data.ids import draw_ranks, format_hex, mix_ids, parse_hex, rank_probabilities

ids_32_bit = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50)


@pytest.mark.parametrize("cardinality", [1, 2, 3, 1000, 2_000_000])
def test_ranks_follow_the_stated_distribution(cardinality: int) -> None:
    count = 200_000
    ranks = draw_ranks(np.random.default_rng(0), cardinality, count)
    assert ranks.max() < cardinality
    head = rank_probabilities(cardinality, 100)
    seen = np.bincount(ranks, minlength=len(head))[: len(head)]
    spread = np.sqrt(count * head * (1 - head)) + 1e-9
    assert np.abs(seen - count * head).max() < 4.5 * spread.max()
    assert (np.abs(seen - count * head) / spread).mean() < 1.2


def test_probabilities_of_all_ranks_sum_to_one() -> None:
    assert rank_probabilities(5000, 5000).sum() == pytest.approx(1)


def test_rare_ids_of_a_large_vocabulary_are_all_within_reach() -> None:
    ranks = draw_ranks(np.random.default_rng(1), 10_131_227, 400_000)
    tail = ranks[ranks > 5_000_000]
    # float32's 24 random bits would reach one rank in ten here, and meet each again and again.
    assert len(np.unique(tail)) > 0.996 * len(tail)


@given(key=st.integers(0, 2**32 - 1))
def test_distinct_ranks_have_distinct_ids(key: int) -> None:
    ids = mix_ids(np.arange(10_000, dtype=np.uint32), key)
    assert len(np.unique(ids)) == 10_000


def test_ids_spread_over_all_32_bits() -> None:
    ids = mix_ids(np.arange(4096, dtype=np.uint32), 7)
    shares = [((ids >> np.uint32(bit)) & 1).mean() for bit in range(32)]
    assert min(shares) > 0.45
    assert max(shares) < 0.55


@given(values=ids_32_bit)
def test_hex_text_is_what_python_writes(values: list[int]) -> None:
    assert format_hex(np.array(values, dtype=np.uint32)).to_pylist() == [f"{value:08x}" for value in values]


@given(values=ids_32_bit, upper=st.booleans())
def test_hex_is_read_as_python_reads_it(values: list[int], upper: bool) -> None:
    text = "".join(f"{value:08X}" if upper else f"{value:08x}" for value in values)
    parsed, is_hex = parse_hex(np.frombuffer(text.encode(), dtype=np.uint8).reshape(-1, 8))
    assert parsed.tolist() == values
    assert is_hex.all()


@given(text=st.binary(min_size=8, max_size=8))
def test_only_hex_digits_are_hex(text: bytes) -> None:
    _, is_hex = parse_hex(np.frombuffer(text, dtype=np.uint8).reshape(1, 8))
    assert bool(is_hex[0]) == all(byte in b"0123456789abcdefABCDEF" for byte in text)


def test_missing_ids_are_nulls_in_hex_text() -> None:
    array = format_hex(np.array([1, 2, 3], dtype=np.uint32), np.array([True, False, True]))
    assert array.to_pylist() == ["00000001", None, "00000003"]
    assert array.type == pa.string()
    array.validate(full=True)
