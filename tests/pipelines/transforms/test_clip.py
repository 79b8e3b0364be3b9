from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intune.pipelines.errors import ConfigError, SchemaError
from intune.pipelines.schema import Ragged
from intune.pipelines.transforms import Clip

BOUND = st.one_of(st.none(), st.floats(-100, 100, width=32), st.just(math.inf), st.just(-math.inf))


@given(values=st.lists(st.floats(width=32)), low=BOUND, high=BOUND)
def test_floats_as_arrow_does_it(values: list[float], low: float | None, high: float | None) -> None:
    if low is None and high is None:
        return
    if low is not None and high is not None and low > high:
        return
    array = np.array(values, np.float32)
    expected: Any = pa.array(array)
    if low is not None:
        expected = pc.if_else(
            pc.less(expected, pa.scalar(low, pa.float32())), pa.scalar(low, pa.float32()), expected
        )
    if high is not None:
        expected = pc.if_else(
            pc.greater(expected, pa.scalar(high, pa.float32())), pa.scalar(high, pa.float32()), expected
        )
    made = Clip(columns="x", min=low, max=high)({"x": array})["x"]
    assert made.dtype == np.float32
    np.testing.assert_array_equal(made, expected.to_numpy(zero_copy_only=False))


@given(
    values=st.lists(st.integers(-128, 127)),
    low=st.one_of(st.integers(-300, 0), st.just(-math.inf)),
    high=st.one_of(st.integers(0, 300), st.just(math.inf)),
)
def test_integers_keep_their_type_whatever_the_bounds(values: list[int], low: float, high: float) -> None:
    made = Clip(columns="x", min=low, max=high)({"x": np.array(values, np.int8)})["x"]
    assert made.dtype == np.int8
    assert made.tolist() == [min(max(value, low), high) for value in values]


def test_columns_of_several_types_at_once() -> None:
    block = {
        "f": np.array([-1.5, np.nan, 9], np.float32),
        "i": np.array([-1, 5, 9]),
        "u": np.array([0, 5, 9], np.uint8),
        "l": Ragged(np.array([-1.0, 9.0]), np.array([0, 1, 2, 2])),
    }
    made = Clip(columns="*", min=0, max=7)(block)
    np.testing.assert_array_equal(made["f"], np.array([0, np.nan, 7], np.float32))
    assert made["i"].tolist() == [0, 5, 7]
    assert made["u"].tolist() == [0, 5, 7]
    assert made["l"].values.tolist() == [0, 7]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "`min` and `max` are both None"),
        ({"min": 2, "max": 1}, "`min`=2 is above `max`=1"),
        ({"min": math.nan}, "`min`=nan must be a number other than NaN"),
        ({"max": "1"}, "`max`='1' must be a number"),
    ],
)
def test_nonsense_is_refused_at_once(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Clip(columns="x", **arguments)


def test_a_bound_that_the_type_does_not_have() -> None:
    with pytest.raises(
        SchemaError, match=r"Clip: column `x` holds int64, which does not have `max`=2.5; give a whole"
    ):
        Clip(columns="x", max=2.5)({"x": np.arange(3)})
    with pytest.raises(SchemaError, match=r"Clip: column `x` holds string; only numbers can be clipped"):
        Clip(columns="x", max=2.5)({"x": pa.array(["a"])})
