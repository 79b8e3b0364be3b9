from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intune.pipelines.errors import ConfigError, SchemaError
from intune.pipelines.schema import Ragged
from intune.pipelines.transforms import Hash

IDS = st.integers(-(2**63), 2**63 - 1)


@given(
    ids=st.lists(IDS, max_size=30),
    size=st.integers(1, 2**40),
    seed=st.integers(0, 2**63 - 1),
    salted=st.booleans(),
)
def test_integers_hash_as_in_plain_python(
    reference: Any, ids: list[int], size: int, seed: int, salted: bool
) -> None:
    made = Hash(columns="x", size=size, seed=seed, salted=salted)({"x": np.array(ids, np.int64)})["x"]
    name = "x" if salted else ""
    assert made.dtype == np.int64
    assert made.tolist() == [reference.hash(value, size, seed, name) for value in ids]


@given(strings=st.lists(st.one_of(st.none(), st.text(max_size=30)), max_size=30), size=st.integers(3, 10**9))
def test_strings_hash_as_in_plain_python_and_nulls_get_their_row(
    reference: Any, strings: list[str | None], size: int
) -> None:
    made = Hash(columns="x", size=size, null=2)({"x": pa.array(strings, pa.string())})["x"]
    assert made.tolist() == [2 if value is None else reference.hash(value, size) for value in strings]


def test_ids_never_change() -> None:
    # Written down once: a table trained with these rows must find them again.
    integers = {"x": np.array([0, 1, -1, 2**40])}
    assert Hash(columns="x", size=1_000_003)(integers)["x"].tolist() == [0, 477455, 863163, 555182]
    strings = {"x": pa.array(["68fd1e64", "", "a longer string than that"])}
    assert Hash(columns="x", size=1_000_003, seed=7)(strings)["x"].tolist() == [853807, 37242, 642293]


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "uint8", "uint16", "uint32", "uint64"])
def test_equal_numbers_of_any_width_hash_alike(dtype: str) -> None:
    ids = np.array([0, 1, 100, 127])
    hash_ = Hash(columns="x", size=1000)
    assert hash_({"x": ids.astype(dtype)})["x"].tolist() == hash_({"x": ids})["x"].tolist()


def test_lists_hash_element_by_element(reference: Any) -> None:
    numbers = Ragged(np.array([5, 6, 7]), np.array([0, 2, 2, 3]))
    strings = Ragged(pa.array(["a", None, "b"]), np.array([0, 0, 3]))
    made = Hash(columns="*", size=100)({"n": numbers})["n"]
    assert made.values.tolist() == [reference.hash(value, 100) for value in (5, 6, 7)]
    assert made.offsets.tolist() == [0, 2, 2, 3]
    made = Hash(columns="*", size=100, null=99)({"s": strings})["s"]
    assert made.values.tolist() == [reference.hash("a", 100), 99, reference.hash("b", 100)]


def test_a_matrix_keeps_its_shape(reference: Any) -> None:
    made = Hash(columns="x", size=50)({"x": np.array([[1, 2], [3, 4], [5, 6]])})["x"]
    assert made.tolist() == [[reference.hash(value, 50) for value in row] for row in ([1, 2], [3, 4], [5, 6])]


def test_sizes_one_for_each_column_in_order_or_by_name(reference: Any) -> None:
    block = {name: np.arange(20) for name in ("a", "b", "c")}
    expected = {name: [reference.hash(v, size) for v in range(20)] for name, size in (("b", 7), ("a", 1000))}
    by_order = Hash(columns=["b", "a"], size=[7, 1000])(block)
    by_name = Hash(columns=["a", "b"], size={"a": 1000, "b": 7})(block)
    for made in (by_order, by_name):
        assert {name: made[name].tolist() for name in ("b", "a")} == expected
        assert made["c"] is block["c"]


def test_rows_below_first_are_kept_free(reference: Any) -> None:
    made = Hash(columns="x", size=10, first=3, null=0)({"x": pa.array(["a", None, *"bcdefghijkl"])})["x"]
    assert made[1] == 0
    assert made[0] == reference.hash("a", 10, first=3)
    assert np.delete(made, 1).min() >= 3
    assert made.max() <= 9


def test_salt_parts_columns_that_share_a_table() -> None:
    block = {"a": np.arange(1000), "b": np.arange(1000)}
    plain = Hash(columns="*", size=10**6)(block)
    salted = Hash(columns="*", size=10**6, salted=True)(block)
    assert (plain["a"] == plain["b"]).all()
    assert (salted["a"] == salted["b"]).sum() < 10


def test_a_matrix_of_all_columns(reference: Any) -> None:
    rng = np.random.default_rng(0)
    block = {f"C{i}": rng.integers(-(2**62), 2**62, 9000) for i in range(5)}
    block["C2"] = pa.array([None if i % 7 == 0 else f"{i:08x}" for i in range(9000)])
    block["other"] = np.zeros(9000)
    sizes = [1, 1000, 1 << 20, 999_983, 2**40 + 1]
    apart = Hash(columns="C*", size=sizes, seed=3)(block)
    together = Hash(columns="C*", size=sizes, seed=3, into="sparse")(block)
    assert list(together) == ["other", "sparse"]
    assert together["sparse"].shape == (9000, 5)
    assert together["sparse"].flags.c_contiguous
    np.testing.assert_array_equal(together["sparse"], np.stack([apart[f"C{i}"] for i in range(5)], axis=1))
    assert apart["C3"][4567] == reference.hash(int(block["C3"][4567]), 999_983, 3)


def test_a_suffix_keeps_the_source() -> None:
    made = Hash(columns="x", size=5, suffix="_id")({"x": np.arange(3)})
    assert list(made) == ["x", "x_id"]
    assert made["x"].tolist() == [0, 1, 2]


def test_buckets_fill_evenly() -> None:
    # chi-square of 100,000 consecutive ids over 1,000 rows: mean 999, standard deviation 45.
    made = Hash(columns="x", size=1000)({"x": np.arange(100_000)})["x"]
    counts = np.bincount(made, minlength=1000)
    assert 999 - 5 * 45 < ((counts - 100) ** 2 / 100).sum() < 999 + 5 * 45


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, r"`size`=0 must be a whole number, 1 or more"),
        ({"size": 2**63}, r"`size`=9223372036854775808 is too large; 9223372036854775807 is the most"),
        ({"size": 2.5}, r"`size`=2.5"),
        ({"size": True}, r"`size`=True"),
        ({"size": []}, r"`size`=\[\] must be a sequence with at least one"),
        ({"size": [5, 0]}, r"`size\[1\]`=0"),
        ({"size": {"a": -1}}, r"`size\['a'\]`=-1"),
        ({"size": "big"}, r"`size`='big'"),
        ({"size": 5, "seed": -1}, r"`seed`=-1"),
        ({"size": 5, "first": 5}, r"`size`=5 must exceed `first`=5"),
        ({"size": 5, "null": 7}, r"`size`=5 must exceed `first`=0 and `null`=7"),
        ({"size": 5, "columns": []}, r"`columns`=\[\] names no column"),
        ({"size": 5, "suffix": 3}, r"`suffix`=3"),
        ({"size": 5, "into": ""}, r"`into`=''"),
        ({"size": 5, "into": "m", "suffix": "s"}, r"exclude each other"),
    ],
)
def test_nonsense_is_refused_at_once(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Hash(**{"columns": "x", **arguments})


@pytest.mark.parametrize(
    ("arguments", "block", "message"),
    [
        ({}, {"x": np.zeros(2)}, r"Hash: column `x` holds float64; .*Bucketize"),
        ({}, {"x": np.array(["a"])}, r"Hash: column `x` holds <U1"),
        ({}, {"x": pa.array([1])}, r"Hash: column `x` holds an Arrow array of int64"),
        ({}, {"x": pa.chunked_array([["a"]])}, r"ChunkedArray, use combine_chunks"),
        ({}, {"x": np.zeros((1, 1, 1), int)}, r"one or two dimensions"),
        ({"size": [5, 6]}, {"x": np.arange(2)}, r"`size` lists 2 tables, but 1 columns"),
        ({"size": {"y": 5}}, {"x": np.arange(2)}, r"`size` has no entry for column `x`"),
        ({"into": "m"}, {"x": np.zeros((2, 2), int)}, r"more than one number a row"),
        ({"into": "m"}, {"x": Ragged(np.arange(1), np.array([0, 1]))}, r"lists of int64, more than one"),
        ({"into": "y"}, {"x": np.arange(1), "y": np.arange(1)}, r"already a column `y`"),
        ({"suffix": "y"}, {"x": np.arange(1), "xy": np.arange(1)}, r"already a column `xy`"),
    ],
)
def test_columns_that_cannot_be_hashed(
    arguments: dict[str, Any], block: dict[str, Any], message: str
) -> None:
    with pytest.raises(SchemaError, match=message):
        Hash(**{"columns": "x", "size": 5, **arguments})(block)


def test_columns_of_unequal_length_make_no_matrix() -> None:
    with pytest.raises(SchemaError, match=r"column `b` has 3 rows, but `a` has 2"):
        Hash(columns=["a", "b"], size=5, into="m")({"a": np.arange(2), "b": np.arange(3)})
