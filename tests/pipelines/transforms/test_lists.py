from __future__ import annotations

from itertools import chain

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from intune.pipelines.schema import Ragged, elements
from intune.pipelines.transforms.lists import join_rows

ROWS = st.lists(st.lists(st.integers(0, 99), max_size=5), max_size=8)


def ragged(rows: list[list[int]]) -> Ragged:
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    return Ragged(np.array(list(chain.from_iterable(rows)), np.int64), offsets)


def rows_of(column: Ragged) -> list[list[int]]:
    return [
        column.values[start:stop].tolist()
        for start, stop in zip(column.offsets[:-1], column.offsets[1:], strict=True)
    ]


@given(rows=ROWS, most=st.integers(0, 4))
def test_elements_are_the_first_places_of_each_row(rows: list[list[int]], most: int) -> None:
    column = ragged(rows)
    places, offsets = elements(column.offsets[:-1], np.minimum(column.lengths, most))
    assert rows_of(Ragged(column.values[places], offsets)) == [row[:most] for row in rows]


@given(rows=st.lists(st.tuples(*[st.lists(st.integers(0, 99), max_size=3)] * 3), max_size=8))
def test_rows_are_joined_in_the_columns_order(rows: list[tuple[list[int], ...]]) -> None:
    columns = [ragged([row[position] for row in rows]) for position in range(3)]
    assert rows_of(join_rows(columns)) == [list(chain.from_iterable(row)) for row in rows]
