from __future__ import annotations

import itertools
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from intune.pipelines.errors import SchemaError
from intune.pipelines.memory import roots
from intune.pipelines.schema import (
    Ragged,
    block_bytes,
    block_rows,
    column_bytes,
    concat_blocks,
    concat_columns,
    copy_column,
    rows_of,
    same_bits,
    slice_block,
    slice_column,
    take_block,
    take_column,
    writable,
)

ROWS = st.lists(st.lists(st.integers(-5, 5), max_size=4), min_size=1, max_size=10)


def ragged(rows: list[list[int]]) -> Ragged:
    offsets = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    return Ragged(np.array([value for row in rows for value in row], dtype=np.int32), offsets)


def lists(column: Any) -> list[Any]:
    """Rows as Python values."""
    if isinstance(column, Ragged):
        ends = [int(offset) for offset in column.offsets]
        values = lists(column.values)
        return [values[low:high] for low, high in itertools.pairwise(ends)]
    return column.to_pylist() if isinstance(column, pa.Array) else column.tolist()  # type: ignore[no-any-return]


def kinds(rows: list[list[int]]) -> dict[str, Any]:
    """The same number of rows as every kind of column."""
    sums = [sum(row) for row in rows]
    text = pa.array([str(row) for row in rows])
    words = pa.array([str(value) for row in rows for value in row], pa.string())
    return {
        "number": np.array(sums),
        "matrix": np.array([[total, 2 * total] for total in sums]),
        "list": ragged(rows),
        "text": text,
        "words": Ragged(words, ragged(rows).offsets),
        "lists of lists": Ragged(
            ragged([row[: value % 3] for row in rows for value in row]), ragged(rows).offsets
        ),
        "tensor": torch.tensor(sums),
        "tensors": Ragged(torch.from_numpy(ragged(rows).values), torch.from_numpy(ragged(rows).offsets)),
    }


@given(rows=ROWS, data=st.data())
def test_every_kind_of_column_is_sliced_joined_and_taken_as_python_lists_are(
    rows: list[list[int]], data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(rows)))
    stop = data.draw(st.integers(start, len(rows)))
    index = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=12))
    for column in kinds(rows).values():
        whole = lists(column)
        assert rows_of(column) == len(rows)
        part = slice_column(column, start, stop)
        assert lists(part) == whole[start:stop]
        assert rows_of(part) == stop - start
        assert lists(take_column(part, np.arange(stop - start)[::-1].copy())) == whole[start:stop][::-1]
        assert lists(take_column(column, np.array(index, dtype=np.int64))) == [whole[i] for i in index]
        parts = [slice_column(column, 0, start), part, slice_column(column, stop, len(rows))]
        assert lists(concat_columns(parts)) == whole
        if isinstance(part, Ragged):
            assert int(part.offsets[0]) == 0
            joined, taken = concat_columns(parts), take_column(part, np.arange(0))
            assert type(joined.offsets) is type(taken.offsets) is type(column.offsets)


@given(rows=ROWS, cut=st.integers(0, 10))
def test_blocks_move_all_columns_alike(rows: list[list[int]], cut: int) -> None:
    block = kinds(rows)
    cut = min(cut, len(rows))
    again = concat_blocks([slice_block(block, 0, cut), slice_block(block, cut, len(rows))])
    backwards = take_block(block, np.arange(len(rows))[::-1].copy())
    assert list(again) == list(block)
    for name, column in block.items():
        assert lists(again[name]) == lists(column)
        assert lists(backwards[name]) == lists(column)[::-1]
    assert block_rows(again) == len(rows)


def test_slices_show_the_same_memory_and_taking_copies() -> None:
    block: dict[str, Any] = {"x": np.arange(10), "bag": ragged([[1, 2]] * 10)}
    part: dict[str, Any] = slice_block(block, 2, 5)
    assert np.shares_memory(part["x"], block["x"])
    assert np.shares_memory(part["bag"].values, block["bag"].values)
    taken = take_block(block, np.array([1, 2]))
    assert not np.shares_memory(taken["x"], block["x"])
    single = concat_columns([block["x"]])
    assert single is block["x"]
    assert concat_blocks([block])["x"] is block["x"]


@pytest.mark.parametrize("kind", ["number", "matrix", "list", "text", "words", "lists of lists", "tensors"])
def test_a_copy_shows_the_same_rows_and_keeps_nothing_else(kind: str) -> None:
    whole = kinds([[number] * (number % 4) for number in range(1000)])[kind]
    copy = copy_column(slice_column(whole, 5, 8))
    assert lists(copy) == lists(slice_column(whole, 5, 8))
    assert sum(roots(copy).values()) < sum(roots(whole).values()) / 10


def test_a_block_without_columns_has_no_rows() -> None:
    assert block_rows({}) == 0
    assert slice_block({}, 0, 0) == {}


@pytest.mark.parametrize("column", [[1, 2], (1,), "text", 3, None, pa.chunked_array([[1]]), {"a": 1}])
def test_what_is_no_column_is_refused_by_name(column: Any) -> None:
    with pytest.raises(SchemaError, match=f"but {type(column).__name__} was found"):
        rows_of(column)


@pytest.mark.parametrize("column", [np.array(3), torch.tensor(3)])
def test_a_scalar_is_no_column(column: Any) -> None:
    with pytest.raises(SchemaError, match="a scalar was found; return an array"):
        rows_of(column)


def test_bytes_are_those_that_can_be_seen() -> None:
    numbers = np.zeros(100, dtype=np.float32)
    assert column_bytes(numbers) == 400
    assert column_bytes(numbers[10:20]) == 40
    assert column_bytes(ragged([[1, 2], [3]])) == 3 * 4 + 3 * 8
    assert block_bytes({"a": numbers, "b": torch.zeros(3, dtype=torch.int64)}) == 424


def test_lengths_of_lists() -> None:
    assert ragged([[1], [], [2, 3]]).lengths.tolist() == [1, 0, 2]
    assert len(ragged([])) == 0


def test_neighbouring_slices_of_lists_share_no_offset() -> None:
    """A function may change the arrays it gets: the last offset of one batch is the first of the next."""
    column = Ragged(np.arange(12), np.arange(0, 13, 3))
    first, second = slice_column(column, 0, 2), slice_column(column, 2, 4)
    first.offsets[:] = [0, 1, 2]
    assert second.offsets.tolist() == [0, 3, 6]
    assert slice_column(column, 2, 4).offsets.tolist() == [0, 3, 6]


def test_what_may_only_be_read_is_copied_and_nothing_else() -> None:
    """Arrays that come through Ray's store are read-only, and functions may change what they get."""
    locked, free = np.arange(3), np.arange(3)
    locked.flags.writeable = False
    text = pa.array(["a", "b", "c"])
    lists = Ragged(locked, np.arange(4))
    made = writable({"locked": locked, "free": free, "text": text, "lists": lists, "own": Ragged(free, free)})
    made["locked"] += 1
    made["lists"].values[:] = 0
    assert locked.tolist() == [0, 1, 2]
    assert made["free"] is free
    assert made["text"] is text
    assert made["own"].values is free


def test_lists_of_tensors_are_taken_like_lists_of_arrays() -> None:
    lists = ragged([[1, 2], [], [3]])
    made = take_column(
        Ragged(torch.from_numpy(lists.values), torch.from_numpy(lists.offsets)), np.array([2, 0, 1])
    )
    assert made.values.tolist() == [3, 1, 2]
    assert made.offsets.tolist() == [0, 1, 3, 3]


def test_blocks_whose_columns_differ_are_not_joined() -> None:
    block = {"x": np.arange(3), "y": np.zeros((3, 2))}
    for other, message in (
        ({"x": np.arange(3)}, "column 'y' is in some of them only"),
        ({**block, "z": np.arange(3)}, "column 'z' is in some of them only"),
        ({**block, "x": np.zeros(3)}, "column 'x' is array of int64 in one and array of float64 in another"),
        (
            {**block, "y": np.zeros((3, 4))},
            r"float64 with rows of shape \(2,\) in one and .* of shape \(4,\) in",
        ),
    ):
        with pytest.raises(SchemaError, match=message):
            concat_blocks([block, block, other])
    assert list(concat_blocks([block, {"y": block["y"], "x": block["x"]}])) == ["x", "y"]


@pytest.mark.parametrize(
    ("column", "other", "same"),
    [
        (np.array([1.0, np.nan]), np.array([1.0, np.nan]), True),
        (np.array([0.0]), np.array([-0.0]), False),
        (np.array([1.0]), np.array([np.nextafter(1.0, 2.0)]), False),
        (np.array([1.0]), np.array([1.0], dtype=np.float32), False),
        (np.array([1, 2]), np.array([1, 2, 3]), False),
        (np.arange(4)[::2], np.array([0, 2]), True),
        (np.array(["a"], dtype=object), np.array(["a"], dtype=object), False),
        (np.array([[1, 2]]), np.array([[1], [2]]), False),
        (pa.array(["a", None]), pa.array(["a", None]), True),
        (pa.array(["a", None]), pa.array(["a", "b"]), False),
        (torch.tensor([float("nan")]), torch.tensor([float("nan")]), True),
        (torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([2.0], dtype=torch.bfloat16), False),
        (torch.tensor([1]), np.array([1]), False),
        (torch.tensor([1 + 2j]).conj(), torch.tensor([1 - 2j]), True),
        (torch.tensor([1 + 2j]).conj().imag, torch.tensor([2.0]), False),
        (torch.arange(2)[::2], torch.arange(1), True),
        (torch.zeros(3, 0), torch.zeros(3, 0), True),
        (Ragged(np.array([1, 2]), np.array([0, 2])), Ragged(np.array([1, 2]), np.array([0, 2])), True),
        (Ragged(np.array([1, 2]), np.array([0, 1, 2])), Ragged(np.array([1, 2]), np.array([0, 0, 2])), False),
    ],
)
def test_blocks_are_the_same_if_every_bit_is(column: Any, other: Any, same: bool) -> None:
    assert same_bits({"x": column}, {"x": other}) is same
    assert not same_bits({"x": column}, {"y": column})
    assert not same_bits({"x": column}, {})


@runtime_checkable
class Movable(Protocol):
    """What Lightning moves to the device (`lightning.fabric.utilities.apply_func`): all that has a method `to`."""

    def to(self, device: Any) -> Any: ...


def test_lists_go_to_a_device_as_lightning_moves_batches() -> None:
    collections = pytest.importorskip("lightning_utilities.core.apply_func")
    offsets = torch.tensor([0, 2, 3])
    batch = {
        "list": Ragged(torch.arange(3), offsets),
        "words": Ragged(pa.array(["a", "b", "c"]), offsets),
        "text": pa.array(["a", "b"]),
    }
    moved = collections.apply_to_collection(batch, dtype=Movable, function=lambda part: part.to("meta"))
    assert moved["list"].values.device == moved["list"].offsets.device == torch.device("meta")
    assert moved["words"].offsets.device == torch.device("meta")
    assert moved["words"].values is batch["words"].values  # type: ignore[union-attr]
    assert moved["text"] is batch["text"]


def test_lists_go_to_a_device_whatever_they_hold() -> None:
    inner = Ragged(torch.arange(3), torch.tensor([0, 1, 3]))
    moved = Ragged(inner, torch.tensor([0, 1, 2])).to("meta", non_blocking=True)
    assert moved.values.values.device == moved.offsets.device == torch.device("meta")
