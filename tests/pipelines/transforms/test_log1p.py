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
from intune.pipelines.transforms import Log1p


@given(values=st.lists(st.floats(-0.999, 1e30)))
def test_the_logarithm_is_arrows(values: list[float]) -> None:
    array = np.array(values, np.float64)
    made = Log1p(columns="x", clip_negative=False)({"x": array})["x"]
    np.testing.assert_allclose(made, pc.log1p(pa.array(array)).to_numpy(zero_copy_only=False), rtol=1e-12)
    single = Log1p(columns="x")({"x": np.abs(array).astype(np.float32)})["x"]
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, [math.log1p(abs(np.float32(value))) for value in values], rtol=1e-6)


def test_negative_and_missing_numbers() -> None:
    block = {"x": np.array([-3.0, -1.0, np.nan, 0.0, math.e - 1])}
    clipped, filled = Log1p(columns="x"), Log1p(columns="x", fill_missing=True)
    raw = Log1p(columns="x", clip_negative=False)
    np.testing.assert_allclose(clipped(block)["x"], [0, 0, np.nan, 0, 1])
    np.testing.assert_allclose(filled(block)["x"], [0, 0, 0, 0, 1])
    np.testing.assert_allclose(raw(block)["x"], [np.nan, -np.inf, np.nan, 0, 1])


@pytest.mark.parametrize("dtype", ["int8", "uint32", "int64", "bool"])
def test_integers_become_float32(dtype: str) -> None:
    made = Log1p(columns="x")({"x": np.array([0, 1], dtype)})["x"]
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, [0, math.log(2)], rtol=1e-6)


def test_the_type_of_the_result_can_be_chosen() -> None:
    block = {"a": np.array([1.0]), "b": np.array([3], np.int32)}
    assert Log1p(columns="*", into="m")(block)["m"].dtype == np.float64
    made = Log1p(columns="*", into="m", dtype="float32")(block)["m"]
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, [[math.log(2), math.log(4)]], rtol=1e-6)


def test_lists() -> None:
    made = Log1p(columns="x")({"x": Ragged(np.array([1.0, 0.0]), np.array([0, 2, 2]))})["x"]
    np.testing.assert_allclose(made.values, [math.log(2), 0])
    assert made.offsets.tolist() == [0, 2, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fill_missing": True, "clip_negative": False}, "`fill_missing`=True needs `clip_negative`=True"),
        ({"dtype": "int32"}, "`dtype`='int32' must be a type of floats"),
        ({"dtype": "number"}, "`dtype`='number' is no type of numbers"),
    ],
)
def test_nonsense_is_refused_at_once(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Log1p(columns="x", **arguments)


def test_strings_have_no_logarithm() -> None:
    with pytest.raises(SchemaError, match=r"Log1p: column `x` holds string; only numbers have logarithms"):
        Log1p(columns="x")({"x": pa.array(["1"])})
