from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.preprocessing import KBinsDiscretizer

from intune.pipelines.errors import ConfigError, SchemaError
from intune.pipelines.schema import Ragged
from intune.pipelines.transforms import Bucketize

NUMBER = st.one_of(
    st.floats(-10, 10, width=32), st.integers(-5, 5).map(float), st.sampled_from([math.inf, -math.inf])
)


@given(
    values=st.lists(NUMBER, max_size=50),
    boundaries=st.lists(
        st.one_of(st.integers(-5, 5).map(float), st.floats(-10, 10)), min_size=1, unique=True
    ),
    right=st.booleans(),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_the_buckets_are_torchs(
    values: list[float], boundaries: list[float], right: bool, dtype: str
) -> None:
    array = np.array(values, dtype)
    made = Bucketize(columns="x", boundaries=sorted(boundaries), right=right)({"x": array})["x"]
    edges = torch.from_numpy(np.array(sorted(boundaries), dtype))
    assert made.dtype == np.int64
    assert made.tolist() == torch.bucketize(torch.from_numpy(array), edges, right=right).tolist()


@pytest.mark.parametrize("count", [1, 2, 254, 255, 256, 1000])
@pytest.mark.parametrize("right", [False, True])
def test_any_number_of_boundaries(count: int, right: bool) -> None:
    rng = np.random.default_rng(0)
    boundaries = np.unique(rng.normal(size=count))
    values = np.concatenate([rng.normal(size=5000), boundaries, [1e9, -1e9]])
    made = Bucketize(columns="x", boundaries=boundaries, right=right)({"x": values})["x"]
    np.testing.assert_array_equal(
        made, np.searchsorted(boundaries, values, side="right" if right else "left")
    )
    assert made.max() == len(boundaries)


def test_the_buckets_are_scikit_learns() -> None:
    values = np.random.default_rng(0).lognormal(size=(2000, 1))
    peer = KBinsDiscretizer(n_bins=20, encode="ordinal", strategy="uniform", subsample=None).fit(values)
    made = Bucketize(columns="x", boundaries=peer.bin_edges_[0][1:-1], right=True)({"x": values[:, 0]})["x"]
    np.testing.assert_array_equal(made, peer.transform(values)[:, 0])


@pytest.mark.parametrize("count", [2, 300])
def test_nan_has_a_bucket_of_its_own_or_the_one_that_is_given(count: int) -> None:
    boundaries = np.arange(count)
    block = {"x": np.array([np.nan, -1.0, 1e9])}
    own, given_ = (
        Bucketize(columns="x", boundaries=boundaries),
        Bucketize(columns="x", boundaries=boundaries, nan=0),
    )
    assert own(block)["x"].tolist() == [count + 1, 0, count]
    assert own.buckets == count + 2
    assert given_(block)["x"].tolist() == [0, 0, count]
    assert given_.buckets == count + 1
    assert Bucketize(columns="x", boundaries=[0], nan=7).buckets == 8


def test_a_float32_equals_the_boundary_it_was_rounded_from() -> None:
    block = {"x": np.array([0.1], np.float32)}
    assert Bucketize(columns="x", boundaries=[0.1])(block)["x"].tolist() == [0]
    assert Bucketize(columns="x", boundaries=[0.1], right=True)(block)["x"].tolist() == [1]


def test_integers_lists_and_halves() -> None:
    bucketize = Bucketize(columns="x", boundaries=[1, 3])
    assert bucketize({"x": np.array([0, 1, 2, 3, 4], np.int8)})["x"].tolist() == [0, 0, 1, 1, 2]
    assert bucketize({"x": np.array([0, 2, 4], np.float16)})["x"].tolist() == [0, 1, 2]
    made = bucketize({"x": Ragged(np.array([5.0, np.nan]), np.array([0, 0, 2]))})["x"]
    assert made.values.tolist() == [2, 3]


def test_a_matrix() -> None:
    block = {"a": np.array([0.0, 2.0]), "b": np.array([5, 1])}
    made = Bucketize(columns=["a", "b"], boundaries=[1, 3], into="m")(block)["m"]
    assert made.tolist() == [[0, 2], [1, 0]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"boundaries": []}, r"`boundaries`=\[\] must be a sequence with at least one"),
        ({"boundaries": 3}, r"`boundaries`=3"),
        ({"boundaries": [1, 3, 2]}, r"`boundaries`\[2\]=2 does not exceed the one before it, 3; sort them"),
        ({"boundaries": [1, 1]}, r"`boundaries`\[1\]=1 does not exceed"),
        ({"boundaries": [1, math.nan]}, r"`boundaries`=nan"),
        ({"boundaries": ["a"]}, r"`boundaries`='a' must be a number"),
        ({"boundaries": [1], "nan": -1}, r"`nan`=-1"),
    ],
)
def test_nonsense_is_refused_at_once(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Bucketize(columns="x", **arguments)


def test_strings_have_no_intervals() -> None:
    with pytest.raises(SchemaError, match=r"Bucketize: column `x` holds string"):
        Bucketize(columns="x", boundaries=[1])({"x": pa.array(["1"])})
