from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intune.errors import ConfigError, DataError
from intune.workloads.data.interactions import CleaningOptions, Interactions, clean
from intune.workloads.data.text import item_table


def interactions(
    rows: list[tuple[int, int, float, int]], users: int | None = None, items: int | None = None
) -> Interactions:
    """Rows of user, item, rating, time."""
    users = users if users is not None else 1 + max((row[0] for row in rows), default=0)
    items = items if items is not None else 1 + max((row[1] for row in rows), default=0)
    names = [f"i{item}" for item in range(items)]
    return Interactions(
        user=np.array([row[0] for row in rows], dtype=np.int64),
        item=np.array([row[1] for row in rows], dtype=np.int64),
        rating=np.array([row[2] for row in rows], dtype=np.float32),
        timestamp=np.array([row[3] for row in rows], dtype=np.int64),
        users=pa.table({"user_id": [f"u{user}" for user in range(users)]}),
        items=item_table(names, [None] * items, [None] * items, [()] * items),
        source="a test",
    )


def triples(found: Interactions) -> list[tuple[str, str, int]]:
    """Original names and times."""
    users = found.users.column("user_id").to_pylist()
    items = found.items.column("item_id").to_pylist()
    return [
        (users[user], items[item], int(moment))
        for user, item, moment in zip(found.user, found.item, found.timestamp, strict=True)
    ]


ROWS = st.lists(
    st.tuples(st.integers(0, 6), st.integers(0, 8), st.sampled_from([1.0, 3.0, 5.0]), st.integers(0, 30)),
    min_size=1,
    max_size=60,
)


def test_rows_are_sorted_by_user_and_time_whatever_their_order_in_the_file() -> None:
    found, _ = clean(
        interactions([(1, 0, 1, 50), (0, 2, 1, 9), (1, 1, 1, 20), (0, 1, 1, 30)]), CleaningOptions()
    )
    assert triples(found) == [("u0", "i2", 9), ("u0", "i1", 30), ("u1", "i1", 20), ("u1", "i0", 50)]


def test_rows_of_the_same_second_stay_in_the_order_of_the_file() -> None:
    found, _ = clean(
        interactions([(0, 3, 1, 5), (0, 1, 1, 5), (0, 2, 1, 5), (1, 1, 1, 5)]), CleaningOptions()
    )
    assert [item for _, item, _ in triples(found)] == ["i3", "i1", "i2", "i1"]


def test_of_repeated_interactions_the_first_in_time_counts() -> None:
    found, left = clean(
        interactions([(0, 0, 1, 50), (0, 0, 5, 20), (0, 1, 1, 30), (1, 0, 1, 1)]), CleaningOptions()
    )
    assert triples(found) == [("u0", "i0", 20), ("u0", "i1", 30), ("u1", "i0", 1)]
    assert left.repeated == 1


@given(ROWS, st.integers(1, 3), st.sampled_from([None, 3.0]))
def test_what_is_left_is_liked_unique_in_the_core_and_numbered_without_gaps(
    rows: list[tuple[int, int, float, int]], core: int, min_rating: float | None
) -> None:
    try:
        found, left = clean(interactions(rows), CleaningOptions(core=core, min_rating=min_rating))
    except DataError:
        return  # too little is left, which a test of its own looks at
    assert len(found) + left.low_rating + left.repeated + left.outside_core == len(rows)
    pairs = list(zip(found.user, found.item, strict=True))
    assert len(set(pairs)) == len(pairs)
    for ids, table in ((found.user, found.users), (found.item, found.items)):
        counts = np.bincount(ids)
        assert len(counts) == table.num_rows
        assert counts.min() >= core
    if min_rating is not None:
        assert found.rating.min() >= min_rating
    wanted = {(f"u{user}", f"i{item}") for user, item, rating, _ in rows if rating >= (min_rating or 0)}
    assert {(user, item) for user, item, _ in triples(found)} <= wanted


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(0, 0, float("nan"), 1), (1, 1, 1, 1)], "interaction 1: the rating is nan"),
        ([(0, 0, 1, 1), (1, 1, float("inf"), 1)], "interaction 2: the rating is inf"),
        ([(0, 0, 1, -5), (1, 1, 1, 1)], "interaction 1: the time is -5"),
        ([(0, 0, 1, 881250949000), (1, 1, 1, 1)], r"must be seconds \(not milliseconds\) since 1970"),
    ],
)
def test_values_that_cannot_be_are_refused_with_their_place(
    rows: list[tuple[int, int, float, int]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        clean(interactions(rows), CleaningOptions())


@pytest.mark.parametrize("column", ["user", "item"])
def test_ids_outside_their_table_are_refused(column: str) -> None:
    found = interactions([(0, 0, 1, 1), (1, 1, 1, 1)])
    with pytest.raises(DataError, match=rf"interaction 2: the {column} is 7, but must be ids from 0 to 1"):
        clean(replace(found, **{column: np.array([0, 7])}), CleaningOptions())


@pytest.mark.parametrize(
    ("rows", "what"),
    [([(0, 0, 1, 1), (0, 1, 1, 2)], "1 user left"), ([(0, 0, 1, 1), (1, 0, 1, 2)], "1 item left")],
)
def test_one_user_or_one_item_is_refused(rows: list[tuple[int, int, float, int]], what: str) -> None:
    with pytest.raises(DataError, match=what):
        clean(interactions(rows), CleaningOptions())


def test_options_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="`core`=0 must be a whole number, 1 or more"):
        CleaningOptions(core=0)
    with pytest.raises(ConfigError, match="`min_rating` must be a number"):
        CleaningOptions(min_rating=float("nan"))
