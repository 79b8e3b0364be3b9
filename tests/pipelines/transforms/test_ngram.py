from __future__ import annotations

from itertools import chain, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intune.pipelines.errors import ConfigError, SchemaError
from intune.pipelines.schema import Ragged
from intune.pipelines.transforms import Hash, NGram


def ragged(rows: list[list[Any]], kind: pa.DataType | None = None) -> Ragged:
    flat = list(chain.from_iterable(rows))
    values = np.array(flat, np.int64) if kind is None else pa.array(flat, kind)
    return Ragged(values, np.cumsum([0, *map(len, rows)], dtype=np.int64))


def rows_of(column: Ragged) -> list[list[int]]:
    return [
        column.values[start:stop].tolist()
        for start, stop in zip(column.offsets[:-1], column.offsets[1:], strict=True)
    ]


def test_worked_by_hand(reference: Any) -> None:
    # [7, 8, 9] has the 2-grams (7, 8) and (8, 9); [5] and [] have none; [7, 8] shares the first one.
    made = rows_of(NGram(columns="x", n=2, size=1000)({"x": ragged([[7, 8, 9], [5], [], [7, 8]])})["x"])
    seven_eight = reference.mix(reference.mix(7) + 8) % 1000
    eight_nine = reference.mix(reference.mix(8) + 9) % 1000
    assert made == [[seven_eight, eight_nine], [], [], [seven_eight]]
    assert seven_eight != eight_nine


@given(
    rows=st.lists(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=7), max_size=8),
    n=st.integers(1, 4),
    size=st.sampled_from([1, 1000, 1 << 20, 2**62 + 1]),
    seed=st.integers(0, 5),
)
def test_integers_as_in_plain_python(
    reference: Any, rows: list[list[int]], n: int, size: int, seed: int
) -> None:
    made = NGram(columns="x", n=n, size=size, seed=seed)({"x": ragged(rows)})["x"]
    assert made.values.dtype == np.int64
    assert rows_of(made) == [reference.grams(row, n, size, seed) for row in rows]


@given(
    rows=st.lists(st.lists(st.sampled_from(["a", "bb", None, "longer than eight"]), max_size=6), max_size=6)
)
def test_strings_as_in_plain_python_and_nulls_have_their_id(
    reference: Any, rows: list[list[str | None]]
) -> None:
    made = rows_of(NGram(columns="x", n=2, size=10**6, null=3)({"x": ragged(rows, pa.string())})["x"])
    for row, ids in zip(rows, made, strict=True):
        expected = [3 if None in pair else reference.grams(list(pair), 2, 10**6)[0] for pair in pairwise(row)]
        assert ids == expected


def test_order_matters() -> None:
    ab, ba = rows_of(NGram(columns="x", n=2, size=10**9)({"x": ragged([[1, 2], [2, 1]])})["x"])
    assert ab != ba


def test_one_grams_are_hashes() -> None:
    block = {"x": ragged([[1, 2], [], [3]]), "s": ragged([["a"], [None, "b"], []], pa.string())}
    grams, hashes = NGram(columns="*", n=1, size=99, seed=4)(block), Hash(columns="*", size=99, seed=4)(block)
    for name in block:
        assert rows_of(grams[name]) == rows_of(hashes[name])


def test_across_features_rows_are_joined_in_the_order_given(reference: Any) -> None:
    block = {
        "user": np.array([1, 2], np.int32),
        "words": ragged([["a", "b"], []], pa.string()),
        "pair": np.array([[3, 4], [5, 6]]),
        "tag": pa.array(["t", None]),
    }
    made = NGram(columns=["words", "user", "pair", "tag"], n=2, size=10**6, into="cross")(block)
    assert list(made) == [*block, "cross"]
    first, second = rows_of(made["cross"])
    assert first == reference.grams(["a", "b", 1, 3, 4, "t"], 2, 10**6)
    assert second == [*reference.grams([2, 5, 6], 2, 10**6), 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "`n`=0"),
        ({"size": 0}, "`size`=0"),
        ({"null": 10}, "`null`=10 is too large; 9 is the most"),
        ({"seed": -1}, "`seed`=-1"),
        ({"into": ""}, "`into`='' must name a column"),
    ],
)
def test_nonsense_is_refused_at_once(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        NGram(**{"columns": "x", "n": 2, "size": 10, **arguments})


def test_columns_that_have_no_ngrams() -> None:
    with pytest.raises(SchemaError, match="NGram: column `x` holds int64, but it takes list columns"):
        NGram(columns="x", n=2, size=10)({"x": np.arange(3)})
    with pytest.raises(SchemaError, match="NGram: column `x` holds float64; it takes integers and strings"):
        NGram(columns="x", n=2, size=10)({"x": Ragged(np.zeros(1), np.array([0, 1]))})
    with pytest.raises(SchemaError, match="column `y` has 1 rows, but `x` has 2"):
        NGram(columns=["x", "y"], n=2, size=10, into="z")({"x": np.arange(2), "y": np.arange(1)})
    with pytest.raises(SchemaError, match="already a column `x`"):
        NGram(columns="x", n=2, size=10, into="x")({"x": np.arange(2)})
