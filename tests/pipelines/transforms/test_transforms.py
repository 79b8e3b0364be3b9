"""What every transform promises: pure, frozen, picklable, indifferent to how a block is cut, fine with no rows."""

from __future__ import annotations

import dataclasses
import itertools
import pickle
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intune.pipelines import transforms
from intune.pipelines.schema import Block, Ragged, block_rows, slice_block, slice_column
from intune.pipelines.transforms import (
    Bucketize,
    Cast,
    Clip,
    Compose,
    Drop,
    FillMissing,
    FirstX,
    Hash,
    Log1p,
    NGram,
    Rename,
    Select,
    Stack,
    Transform,
    Vocabulary,
    VocabularyBuilder,
)


def block_of(rows: int, seed: int) -> Block:
    """A column of each kind there is."""
    rng = np.random.default_rng(seed)
    offsets = np.cumsum([0, *rng.integers(0, 4, rows)])
    words = np.array(["", "a", "bb", "a longer word", "éé"], object)

    def strings(count: int) -> pa.Array:
        return pa.array(np.where(rng.random(count) < 0.2, None, rng.choice(words, count)), pa.string())

    def floats(count: int, dtype: str) -> Any:
        return np.where(rng.random(count) < 0.2, np.nan, rng.normal(size=count) * 3).astype(dtype)

    return {
        "f": floats(rows, "float32"),
        "d": floats(rows, "float64"),
        "i": rng.integers(-9, 9, rows),
        "j": rng.integers(0, 200, rows, np.uint8),
        "m": floats(rows * 2, "float32").reshape(rows, 2),
        "s": strings(rows),
        "lf": Ragged(floats(int(offsets[-1]), "float32"), offsets),
        "li": Ragged(rng.integers(-9, 9, offsets[-1]), offsets),
        "ls": Ragged(strings(int(offsets[-1])), offsets),
    }


def some_vocabulary() -> Vocabulary:
    builder = VocabularyBuilder(["i", "j", "s", "li", "ls"])
    builder.update(block_of(30, 0))
    return builder.build(min_count=2, first=2, null=1)


NUMBERS = ["f", "d", "i", "j", "m", "lf", "li"]
IDS = ["i", "j", "s", "li", "ls"]
ALL: list[Transform] = [
    Bucketize(columns=NUMBERS, boundaries=[-1, 0, 2.5]),
    Bucketize(columns=["f", "i"], boundaries=range(300), into="M"),
    Cast(columns=NUMBERS, dtype="float64"),
    Clip(columns=NUMBERS, min=0, max=2),
    Clip(columns=["f", "d", "j"], min=0, into="M"),
    Compose(Hash(columns="i", size=9), Rename(names={"i": "k"}), Drop(columns="m")),
    Drop(columns=["f", "ls"]),
    FillMissing(columns=NUMBERS, value=1.5),
    FillMissing(columns=["s", "ls"], value="none"),
    FillMissing(columns=["d", "i"], value=0, into="M"),
    FirstX(columns="l*", x=2),
    Hash(columns=IDS, size=1000),
    Hash(columns=IDS, size=[5, 6, 1 << 10, 7, 8], seed=3, salted=True, first=2, null=1),
    Hash(columns=["i", "s", "j"], size=10**9, into="M"),
    Log1p(columns=NUMBERS),
    Log1p(columns=NUMBERS, clip_negative=False),
    Log1p(columns=["f", "i"], fill_missing=True, dtype="float32", into="M"),
    NGram(columns=["li", "ls"], n=2, size=1000),
    NGram(columns=["li", "s", "j"], n=3, size=1000, into="M"),
    Rename(names={"f": "d", "d": "f"}),
    Select(columns=["s", "l*"]),
    Stack(columns=["f", "m", "i"], into="M", dtype="float32", keep=True),
    some_vocabulary(),
    dataclasses.replace(some_vocabulary(), columns=["s", "i"], into="M"),
]
each = pytest.mark.parametrize("transform", ALL, ids=[f"{i}-{type(t).__name__}" for i, t in enumerate(ALL)])


def assert_same(first: Any, second: Any) -> None:
    if isinstance(first, Ragged):
        np.testing.assert_array_equal(first.offsets, second.offsets)
        assert_same(first.values, second.values)
    elif isinstance(first, pa.Array):
        assert first.type == second.type
        assert first.equals(second)
    else:
        assert first.dtype == second.dtype
        np.testing.assert_array_equal(first, second)


def assert_same_blocks(first: Block, second: Block) -> None:
    assert list(first) == list(second)
    for name in first:
        assert_same(first[name], second[name])


@each
@settings(max_examples=8)
@given(rows=st.integers(0, 25), cuts=st.lists(st.integers(0, 25), max_size=2), seed=st.integers(0, 100))
def test_a_slice_of_the_result_is_the_result_of_the_slice(
    transform: Transform, rows: int, cuts: list[int], seed: int
) -> None:
    assert transform.rowwise
    block = block_of(rows, seed)
    whole = transform(block)
    assert all(block_rows({name: column}) == rows for name, column in whole.items())
    edges = [0, *sorted(min(cut, rows) for cut in cuts), rows]
    for start, stop in itertools.pairwise(edges):
        part = transform(slice_block(block, start, stop))
        assert_same_blocks(part, {name: slice_column(column, start, stop) for name, column in whole.items()})


@each
def test_a_list_column_is_each_row_by_itself(transform: Transform) -> None:
    block = block_of(8, 5)
    whole = transform(block)
    for row in range(8):
        one = transform(slice_block(block, row, row + 1))
        for name, column in whole.items():
            assert_same(one[name], slice_column(column, row, row + 1))


@each
def test_neither_the_block_nor_its_arrays_change(transform: Transform) -> None:
    block, twin = block_of(20, 1), block_of(20, 1)
    for column in block.values():
        for array in (column.values, column.offsets) if isinstance(column, Ragged) else (column,):
            if isinstance(array, np.ndarray):
                array.flags.writeable = False
    transform(block)
    assert_same_blocks(block, twin)


@each
def test_it_is_frozen_and_survives_pickling(transform: Transform) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        transform.columns = "x"  # type: ignore[attr-defined]
    block = block_of(20, 2)
    assert_same_blocks(pickle.loads(pickle.dumps(transform))(block), transform(block))


@each
def test_no_rows_give_no_rows_of_the_same_types(transform: Transform) -> None:
    some, none = transform(block_of(20, 3)), transform(block_of(0, 3))
    assert list(some) == list(none)
    for name, column in none.items():
        assert_same(column, slice_column(some[name], 0, 0))


def test_every_verb_is_exported_and_tested_here() -> None:
    assert sorted(transforms.__all__) == transforms.__all__
    public = {getattr(transforms, name) for name in transforms.__all__}
    verbs = {kind for kind in public if isinstance(kind, type) and issubclass(kind, Transform)}
    assert {type(transform) for transform in ALL} == verbs - {Transform, transforms.ColumnTransform}
