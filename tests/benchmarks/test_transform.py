"""The shared transform does the stated arithmetic."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import transform


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20))
def test_ids_are_multiplied_at_64_bits_and_reduced(ids: list[int]) -> None:
    found = transform.hash_ids(np.array(ids, dtype=np.int64))
    assert found.dtype == np.int64
    assert found.tolist() == [value * transform.MULTIPLIER % 2**64 % transform.TABLE_ROWS for value in ids]


def test_dense_columns_take_log1p_and_the_label_passes() -> None:
    columns: dict[str, transform.Array] = {
        "label": np.array([0.0, 1.0], dtype=np.float32),
        "I1": np.array([0.0, 9.0], dtype=np.float32),
        "C1": np.array([5, 6], dtype=np.int64),
    }
    found = transform.transform(columns)
    assert found["label"] is columns["label"]
    assert found["I1"].dtype == np.float32
    np.testing.assert_allclose(found["I1"], [0.0, math.log(10.0)], rtol=1e-6)
    assert columns["C1"].tolist() == [5, 6]
