from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from intune.workloads.pairs.distinct import among, distinct

NUMBERS = st.lists(st.integers(0, 12) | st.integers(-(2**63), 2**63 - 1)).map(
    lambda numbers: np.array(numbers, dtype=np.int64)
)


@given(NUMBERS)
def test_distinct_numbers_are_those_of_numpy(numbers: np.ndarray) -> None:
    np.testing.assert_array_equal(distinct(numbers), np.unique(numbers))


@given(NUMBERS, NUMBERS)
def test_what_is_among_others_is_what_numpy_finds(numbers: np.ndarray, known: np.ndarray) -> None:
    np.testing.assert_array_equal(among(numbers, np.sort(known)), np.isin(numbers, known))
