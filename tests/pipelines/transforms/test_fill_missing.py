from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intune.pipelines.errors import ConfigError, SchemaError
from intune.pipelines.schema import Ragged
from intune.pipelines.transforms import FillMissing


@given(values=st.lists(st.floats(width=32)), value=st.floats(-100, 100, width=32))
def test_nan_gives_way_and_nothing_else_does(values: list[float], value: float) -> None:
    for dtype in (np.float32, np.float64):
        array = np.array(values, dtype)
        made = FillMissing(columns="x", value=value)({"x": array})["x"]
        assert made.dtype == dtype
        np.testing.assert_array_equal(made, np.where(np.isnan(array), dtype(value), array))


def test_null_strings_give_way_also_in_lists() -> None:
    block = {"s": pa.array(["a", None, ""]), "l": Ragged(pa.array([None, "b"]), np.array([0, 2, 2, 2]))}
    made = FillMissing(columns="*", value="none")(block)
    assert made["s"].to_pylist() == ["a", "none", ""]
    assert made["l"].values.to_pylist() == ["none", "b"]
    assert FillMissing(columns="s", value="x")({"s": pa.array([b"a", None])})["s"].to_pylist() == [b"a", b"x"]


def test_lists_and_matrices_of_floats() -> None:
    block = {
        "l": Ragged(np.array([np.nan, 1.0]), np.array([0, 0, 2])),
        "m": np.array([[np.nan, 2.0], [3.0, np.nan]]),
    }
    made = FillMissing(columns=["l", "m"], value=-1)(block)
    assert made["l"].values.tolist() == [-1, 1]
    assert made["m"].tolist() == [[-1, 2], [3, -1]]


def test_integers_have_nothing_missing() -> None:
    made = FillMissing(columns="x", value=5.5)({"x": np.array([0, -1])})["x"]
    assert made.tolist() == [0, -1]
    assert made.dtype == np.int64


def test_a_matrix() -> None:
    block = {"a": np.array([np.nan, 1], np.float32), "b": np.array([2, np.nan], np.float32)}
    made = FillMissing(columns="*", value=9, into="m")(block)
    assert list(made) == ["m"]
    assert made["m"].tolist() == [[9, 2], [1, 9]]


@pytest.mark.parametrize("value", [None, float("nan"), True, [1]])
def test_a_value_that_is_none(value: Any) -> None:
    with pytest.raises(ConfigError, match="`value`="):
        FillMissing(columns="x", value=value)


def test_a_string_makes_no_matrix() -> None:
    with pytest.raises(ConfigError, match="`into`='m' makes a matrix of numbers"):
        FillMissing(columns="x", value="a", into="m")


@pytest.mark.parametrize(
    ("value", "column"), [(0.0, pa.array(["a"])), ("a", np.zeros(1)), ("a", pa.array([1]))]
)
def test_a_value_of_the_wrong_kind(value: float | str, column: Any) -> None:
    with pytest.raises(SchemaError, match=r"column `x` holds .* will not do; give a number"):
        FillMissing(columns="x", value=value)({"x": column})
