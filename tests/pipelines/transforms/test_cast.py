from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from intune.pipelines.errors import ConfigError, SchemaError
from intune.pipelines.schema import Ragged
from intune.pipelines.transforms import Cast


def test_numbers_change_their_type() -> None:
    block = {
        "a": np.array([1, 0]),
        "l": Ragged(np.array([1.9]), np.array([0, 1, 1])),
        "m": np.ones((2, 3), np.int8),
    }
    made = Cast(columns="*", dtype=np.float32)(block)
    assert made["a"].dtype == made["l"].values.dtype == made["m"].dtype == np.float32
    assert made["m"].shape == (2, 3)
    assert Cast(columns="l", dtype="int64")(block)["l"].values.tolist() == [1]


def test_what_has_the_type_already_is_not_copied() -> None:
    block = {"a": np.zeros(3, np.float32)}
    assert Cast(columns="a", dtype="float32")(block)["a"] is block["a"]


def test_a_result_beside_its_column_has_memory_of_its_own() -> None:
    """A function that comes next may work in place on one of the two."""
    made: Any = Cast(columns="a", dtype="int64", suffix="_day")({"a": np.array([90_000, 1])})
    made["a_day"] //= 86_400
    assert made["a_day"].tolist() == [1, 0]
    assert made["a"].tolist() == [90_000, 1]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_has_no_integer(value: float) -> None:
    with pytest.raises(
        SchemaError, match="column `a` holds NaN or infinity, which int64 does not have; use FillMissing"
    ):
        Cast(columns="a", dtype="int64")({"a": np.array([value])})


@pytest.mark.parametrize(
    ("dtype", "inside", "beyond"),
    [
        ("int8", [-128.9, 127.9], [-129.0, 128.0]),
        ("uint8", [-0.9, 255.0], [-1.0, 256.0]),
        ("int32", [-(2.0**31), 2.0**31 - 1], [-(2.0**31) - 1, 3e9]),
        ("int64", [-(2.0**63), 2.0**62], [2.0**63, -1e19]),
    ],
)
def test_floats_that_the_integers_do_not_reach_are_refused(
    dtype: str, inside: list[float], beyond: list[float]
) -> None:
    made = Cast(columns="a", dtype=dtype)({"a": np.array(inside)})["a"]
    assert made.tolist() == [int(value) for value in inside]
    for value in beyond:
        with pytest.raises(SchemaError, match=rf"column `a` holds .*, which {dtype} does not have; use"):
            Cast(columns="a", dtype=dtype)({"a": np.array([0.0, value])})
    assert Cast(columns="a", dtype=dtype)({"a": np.zeros(0)})["a"].dtype == dtype


@pytest.mark.parametrize("dtype", ["text", "str", object, "datetime64[s]", None.__class__])
def test_types_that_are_no_numbers(dtype: Any) -> None:
    with pytest.raises(ConfigError, match=r"`dtype`=.* is no type of numbers"):
        Cast(columns="a", dtype=dtype)


def test_strings_cannot_be_cast() -> None:
    with pytest.raises(SchemaError, match="Cast: column `a` holds string; only numbers can be cast"):
        Cast(columns="a", dtype="int64")({"a": pa.array(["1"])})
