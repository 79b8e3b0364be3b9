from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intune.pipelines.errors import ConfigError, SchemaError
from intune.pipelines.schema import Ragged
from intune.pipelines.transforms import Stack


@given(
    kinds=st.lists(st.sampled_from(["int8", "int64", "float32", "bool"]), min_size=1, max_size=30),
    rows=st.sampled_from([0, 1, 7, 3000]),
)
def test_the_matrix_is_numpys(kinds: list[str], rows: int) -> None:
    rng = np.random.default_rng(0)
    block = {f"x{i:02}": rng.integers(0, 2, rows).astype(kind) for i, kind in enumerate(kinds)}
    made = Stack(columns="x*", into="m")(block)
    expected = np.stack(list(block.values()), axis=1)
    assert list(made) == ["m"]
    assert made["m"].dtype == expected.dtype
    assert made["m"].flags.c_contiguous
    np.testing.assert_array_equal(made["m"], expected)


def test_the_order_is_that_of_the_names_and_others_stay() -> None:
    block = {"a": np.array([1, 2]), "b": np.array([3, 4]), "c": np.array([5, 6])}
    made = Stack(columns=["c", "a"], into="m", dtype="float32")(block)
    assert list(made) == ["b", "m"]
    assert made["m"].dtype == np.float32
    assert made["m"].tolist() == [[5, 1], [6, 2]]
    assert list(Stack(columns=["c", "a"], into="m", keep=True)(block)) == ["a", "b", "c", "m"]


def test_columns_of_a_set_are_put_in_the_same_places_in_every_process() -> None:
    block = {f"C{number:02}": np.array([number]) for number in range(26)}
    assert Stack(columns=set(block), into="m")(block)["m"].tolist() == [list(range(26))]


def test_a_matrix_takes_as_many_places_as_it_is_wide() -> None:
    made = Stack(columns=["m", "a"], into="m")({"a": np.array([9, 8]), "m": np.array([[1, 2], [3, 4]])})
    assert made["m"].tolist() == [[1, 2, 9], [3, 4, 8]]


@pytest.mark.parametrize(
    ("block", "arguments", "message"),
    [
        ({"a": pa.array(["x"])}, {}, "Stack: column `a` holds string; hash strings first"),
        ({"a": Ragged(np.arange(1), np.array([0, 1]))}, {}, "holds lists of int64"),
        ({"a": np.zeros((1, 2, 2))}, {}, r"holds a matrix of float64, shape \(1, 2, 2\), but a row"),
        ({"a": np.zeros(1), "b": np.zeros(2)}, {}, "column `b` has 2 rows, but `a` has 1"),
        ({"a": np.zeros(1)}, {"dtype": "int64"}, "holds float64, but `dtype`=int64 is of another kind"),
        ({"a": np.zeros(1), "m": np.zeros(1)}, {"columns": "a"}, "already a column `m`"),
    ],
)
def test_columns_that_do_not_stack(block: dict[str, Any], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        Stack(**{"columns": "*", "into": "m", **arguments})(block)


def test_whole_numbers_become_floats_only_where_it_is_said() -> None:
    block = {"i": np.array([2**62 + 1]), "u": np.array([2**63 + 1], np.uint64)}
    with pytest.raises(SchemaError, match=r"holds the int64 and uint64 of i, u, .*`dtype`='float64'"):
        Stack(columns=["i", "u"], into="m")(block)
    made = Stack(columns=["i", "u"], into="m", dtype="float64")(block)["m"]
    assert made.tolist() == [[float(2**62), float(2**63)]]


def test_nonsense_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="`into`='' must name the matrix"):
        Stack(columns="a", into="")
    with pytest.raises(ConfigError, match="`dtype`='nothing' is no type of numbers"):
        Stack(columns="a", into="m", dtype="nothing")
