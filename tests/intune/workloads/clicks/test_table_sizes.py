from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intune.errors import ConfigError
from intune.workloads.clicks.table_sizes import (
    KAGGLE_SIZES,
    LEAST_ROWS,
    MLPERF_SIZES,
    MLPERF_V2_SIZES,
    ROOMY_ROWS,
    TERABYTE_SIZES,
    hashed_rows,
    shared_rows,
)


def test_tables_have_room_where_ids_are_few_and_are_capped() -> None:
    assert hashed_rows([3, 500, 10_000, 10_131_227]) == (LEAST_ROWS, 8000, ROOMY_ROWS, 10_131_227)
    assert hashed_rows([3, 500, 10_000, 10_131_227], most=6000) == (LEAST_ROWS, 6000, 6000, 6000)


@given(counts=st.lists(st.integers(1, 10**7), min_size=1, max_size=30), spare=st.integers(0, 10**8))
def test_shared_rows_use_up_the_budget_and_follow_the_ids(counts: list[int], spare: int) -> None:
    total = len(counts) + spare
    rows = shared_rows(counts, total)
    assert sum(rows) == total
    assert min(rows) >= 1
    exact = 1 + spare * np.array(counts) / sum(counts)
    assert np.abs(np.array(rows) - exact).max() < 1 + 1e-6 * spare


def test_shared_rows_worked_out_by_hand() -> None:
    # A row each, and 7 more at 3 : 1 : 1 = 4.2, 1.4, 1.4; the one left over goes to the larger remainder, the first.
    assert shared_rows([30, 10, 10], 10) == (5, 3, 2)


def test_fewer_rows_than_tables_are_refused() -> None:
    with pytest.raises(ConfigError, match="3 tables need a row each, but 2 rows"):
        shared_rows([5, 5, 5], 2)


def test_there_is_a_published_size_for_each_of_criteos_features() -> None:
    for sizes in (KAGGLE_SIZES, TERABYTE_SIZES, MLPERF_SIZES, MLPERF_V2_SIZES):
        assert len(sizes) == 26
    assert sum(MLPERF_V2_SIZES) == 204_184_588
