from __future__ import annotations

import datetime
import itertools
import math
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intune.pipelines import arrow
from intune.pipelines.arrow import common, describe, holds_numbers, row_bytes, undecided
from intune.pipelines.errors import SchemaError
from intune.pipelines.schema import Ragged


def to_column(data: pa.ChunkedArray, fill: Any = None) -> Any:
    return arrow.to_column(data, fill)


def plain(column: Any) -> list[Any]:
    """A column as Python values, whatever it is."""
    if isinstance(column, Ragged):
        values, offsets = plain(column.values), column.offsets.tolist()
        return [values[low:high] for low, high in itertools.pairwise(offsets)]
    if isinstance(column, pa.Array):
        return column.to_pylist()  # type: ignore[no-any-return]
    return column.tolist()  # type: ignore[no-any-return]


def extension(type_: pa.DataType, storage: pa.Array) -> pa.Array:
    return pa.ExtensionArray.from_storage(type_, storage)


FLOATS = pa.list_(pa.float32(), 2)
INTEGERS = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()]


def extremes(type_: pa.DataType) -> list[int]:
    limits = np.iinfo(type_.to_pandas_dtype())
    return [int(limits.min), 0, 1, int(limits.max)]


@pytest.mark.parametrize("type_", INTEGERS, ids=str)
def test_integers_keep_width_and_value(type_: pa.DataType) -> None:
    column = to_column(pa.chunked_array([pa.array(extremes(type_), type_)]))
    assert column.dtype == type_.to_pandas_dtype()
    assert column.tolist() == extremes(type_)


@pytest.mark.parametrize("type_", [pa.float16(), pa.float32(), pa.float64()], ids=str)
def test_floats_keep_width_and_a_null_is_nan(type_: pa.DataType) -> None:
    array = pa.array([np.float16(0.5), None, np.float16(-2)], type_)
    column = to_column(pa.chunked_array([array]))
    assert column.dtype == type_.to_pandas_dtype()
    assert column[[0, 2]].tolist() == [0.5, -2.0]
    assert math.isnan(column[1])


def test_nan_infinity_and_negative_zero_pass_through_as_they_are() -> None:
    values = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-300])
    column = to_column(pa.chunked_array([pa.array(values, from_pandas=False)]), fill=7.0)
    assert column.tobytes() == values.tobytes()


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pa.array([True, False, True]), [True, False, True]),
        (pa.array([1, -5], pa.timestamp("ns")), [1, -5]),
        (pa.array([1_700_000_000], pa.timestamp("s", tz="Europe/Berlin")), [1_700_000_000]),
        (pa.array([datetime.date(1970, 1, 3)], pa.date32()), [2]),
        (pa.array([datetime.date(1970, 1, 2)], pa.date64()), [86_400_000]),
        (pa.array([3, 4], pa.time32("ms")), [3, 4]),
        (pa.array([3, 4], pa.time64("us")), [3, 4]),
        (pa.array([7], pa.duration("us")), [7]),
        (pa.array(["a", "", "ü"]), ["a", "", "ü"]),
        (pa.array(["a", None], pa.large_string()), ["a", None]),
        (pa.array([b"\x00", b""], pa.binary()), [b"\x00", b""]),
        (pa.array(["a", None], pa.string_view()), ["a", None]),
        (pa.array([b"a", None], pa.binary_view()), [b"a", None]),
        (pa.array([b"ab", None], pa.binary(2)), [b"ab", None]),
        (pa.array([["a"], None], pa.list_(pa.string_view())), [["a"], []]),
        (pa.array(["x", "y", "x"]).dictionary_encode(), ["x", "y", "x"]),
        (pa.array([10, 20, 10]).dictionary_encode(), [10, 20, 10]),
        (pa.array([[1, 2], [], [3]], pa.list_(pa.int32())), [[1, 2], [], [3]]),
        (pa.array([[1.5], None, [2.5, 3.5]], pa.list_(pa.float32())), [[1.5], [], [2.5, 3.5]]),
        (pa.array([[True], [False, True]], pa.list_(pa.bool_())), [[True], [False, True]]),
        (pa.array([["a", "b"], None, []], pa.list_(pa.string())), [["a", "b"], [], []]),
        (pa.array([[1], [2, 3]], pa.large_list(pa.int64())), [[1], [2, 3]]),
        (pa.array([[1, 2], [3, 4]], pa.list_(pa.int16(), 2)), [[1, 2], [3, 4]]),
        (
            pa.ListArray.from_arrays([0, 2, 3], pa.array(["u", "v", "u"]).dictionary_encode()),
            [["u", "v"], ["u"]],
        ),
        (extension(pa.bool8(), pa.array([1, 0], pa.int8())), [1, 0]),
        (extension(pa.uuid(), pa.array([b"0123456789abcdef"], pa.binary(16))), [b"0123456789abcdef"]),
        (extension(pa.json_(), pa.array(["{}", None])), ["{}", None]),
        (
            extension(pa.fixed_shape_tensor(pa.float32(), [2]), pa.array([[1, 2], [3, 4]], FLOATS)),
            [[1, 2], [3, 4]],
        ),
        (pa.ListArray.from_arrays([0, 1], extension(pa.bool8(), pa.array([1], pa.int8()))), [[1]]),
        (pa.FixedSizeListArray.from_arrays(extension(pa.bool8(), pa.array([1, 0], pa.int8())), 2), [[1, 0]]),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_every_supported_type_keeps_its_values_whole_sliced_and_in_chunks(
    array: pa.Array, expected: list[Any]
) -> None:
    assert plain(to_column(pa.chunked_array([array]))) == expected
    twice = pa.chunked_array([array, array])
    assert plain(to_column(twice)) == expected * 2
    assert plain(to_column(twice.slice(1, len(array)))) == (expected * 2)[1 : len(array) + 1]
    none = pa.chunked_array([], type=array.type)
    assert plain(to_column(none)) == []


NULLABLE = st.one_of(st.none(), st.integers(-100, 100))


@given(
    rows=st.lists(st.one_of(st.none(), st.lists(NULLABLE, max_size=5)), max_size=12),
    cut=st.integers(0, 12),
    fill=st.integers(-9, 9),
)
def test_lists_of_any_lengths_with_nulls_at_both_levels(
    rows: list[list[int | None] | None], cut: int, fill: int
) -> None:
    array = pa.array(rows, pa.list_(pa.int64()))
    chunked = pa.chunked_array([array.slice(0, cut), array.slice(cut)], type=array.type)
    column = to_column(chunked, fill=fill)
    assert isinstance(column, Ragged)
    assert column.offsets.dtype == np.int64
    assert column.offsets[0] == 0
    assert plain(column) == [[fill if v is None else v for v in row or []] for row in rows]


@given(rows=st.lists(NULLABLE, max_size=20), start=st.integers(0, 5), fill=st.integers(-9, 9))
def test_nulls_in_integers_become_the_fill_and_nothing_else_changes(
    rows: list[int | None], start: int, fill: int
) -> None:
    array = pa.array(rows, pa.int32()).slice(start)
    column = to_column(pa.chunked_array([array]), fill=fill)
    assert column.dtype == np.int32
    assert column.tolist() == [fill if v is None else v for v in rows[start:]]


def test_a_fill_that_a_type_cannot_hold_is_refused_and_not_cut_off() -> None:
    for array, fill in (
        (pa.array([1, None]), 0.5),
        (pa.array([1, None]), np.float32(0.5)),
        (pa.array([1, None]), Decimal("0.5")),
        (pa.array([True, None]), -1),
        (pa.array([1, None]), "a"),
    ):
        with pytest.raises(SchemaError, match=r"for which `fill`=.* is no value; give one of its own"):
            to_column(pa.chunked_array([array]), fill=fill)
    for array, fill, expected in (
        (pa.array([1, None]), 2.0, [1, 2]),
        (pa.array([1, None]), np.float32(2), [1, 2]),
        (pa.array([1, None], pa.float16()), np.float32(0.5), [1, 0.5]),
        (pa.array([True, None]), np.int64(0), [True, False]),
        (pa.array([True, None]), 0, [True, False]),
        (pa.array([True, None]), 1.0, [True, True]),
    ):
        assert to_column(pa.chunked_array([array]), fill=fill).tolist() == expected


def test_dictionaries_that_together_are_too_large_for_their_indices_are_joined_as_words() -> None:
    parts = [[f"{part} {word}" for word in range(100)] for part in range(3)]
    small = pa.dictionary(pa.int8(), pa.string())
    data = pa.chunked_array([pa.array(part).dictionary_encode().cast(small) for part in parts])
    assert to_column(data).to_pylist() == parts[0] + parts[1] + parts[2]


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        (pa.string(), pa.large_string(), pa.large_string()),
        (pa.binary(), pa.large_binary(), pa.large_binary()),
        (pa.list_(pa.string()), pa.list_(pa.large_string()), pa.list_(pa.large_string())),
        (pa.null(), pa.list_(pa.null()), pa.list_(pa.null())),
        (pa.list_(pa.null()), pa.list_(pa.int8()), pa.list_(pa.int8())),
        (pa.null(), pa.int8(), pa.int8()),
        (pa.int8(), pa.int16(), None),
        (pa.string(), pa.binary(), None),
        (pa.list_(pa.int8()), pa.list_(pa.int8(), 2), None),
        (pa.list_(pa.int8()), pa.int8(), None),
    ],
    ids=str,
)
def test_what_two_types_can_both_be_read_as(one: pa.DataType, other: pa.DataType, both: pa.DataType) -> None:
    assert common(one, other) == common(other, one) == both
    assert common(one, one) == one
    assert undecided(one) == ("null" in str(one))


@pytest.mark.parametrize("type_", [pa.int64(), pa.string(), pa.list_(pa.string()), pa.bool_()], ids=str)
def test_nulls_without_a_type_are_those_of_the_type_asked_for(type_: pa.DataType) -> None:
    fill = {pa.int64(): 3, pa.bool_(): True}.get(type_)
    typed = to_column(pa.chunked_array([pa.nulls(2, type_)]), fill)
    assert plain(arrow.to_column(pa.chunked_array([pa.nulls(2)]), fill, type_)) == plain(typed)


def test_more_text_than_its_type_can_hold_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def overflow(parts: Any) -> Any:
        raise pa.ArrowInvalid("offset overflow while concatenating arrays")

    monkeypatch.setattr("intune.pipelines.arrow.pa.concat_arrays", overflow)
    with pytest.raises(SchemaError, match="write smaller row groups, or the column as large_string"):
        to_column(pa.chunked_array([["a"], ["b"]]))


def test_a_fill_reaches_strings_booleans_floats_times_and_fixed_lists() -> None:
    cases: list[tuple[pa.Array, Any, list[Any]]] = [
        (pa.array(["a", None]), "?", ["a", "?"]),
        (pa.array(["a", None]).dictionary_encode(), "?", ["a", "?"]),
        (pa.array([True, None]), False, [True, False]),
        (pa.array([1.5, None]), -1, [1.5, -1.0]),
        (pa.array([5, None], pa.timestamp("us")), -1, [5, -1]),
        (pa.array([[1, None]], pa.list_(pa.int8(), 2)), 9, [[1, 9]]),
        (pa.array([["a", None]]), "", [["a", ""]]),
    ]
    for array, fill, expected in cases:
        assert plain(to_column(pa.chunked_array([array]), fill=fill)) == expected


@pytest.mark.parametrize(
    ("array", "fill", "message"),
    [
        (pa.array([1, None], pa.int16()), None, r"holds 1 null\(s\), but int16 has no value.*give `fill=`"),
        (pa.array([True, None]), None, r"holds 1 null\(s\), but bool"),
        (pa.array([[1, None]]), None, r"holds 1 null\(s\)"),
        (pa.array([None, [1, 2]], pa.list_(pa.int8(), 2)), 0, "in place of a list of 2.*write full lists"),
        (pa.array([1, None], pa.int8()), 1000, "has type int8, for which `fill`=1000 is no value"),
        (pa.array([1, None], pa.int64()), "x", "`fill`='x' is no value"),
        (pa.array(["a", None]), 3, "has type string, for which `fill`=3 is no value"),
    ],
)
def test_nulls_that_have_no_value_are_refused_with_what_to_do(
    array: pa.Array, fill: Any, message: str
) -> None:
    with pytest.raises(SchemaError, match=message):
        to_column(pa.chunked_array([array]), fill)


@pytest.mark.parametrize(
    "type_",
    [
        pa.decimal128(10, 2),
        pa.struct([("a", pa.int64())]),
        pa.map_(pa.string(), pa.int64()),
        pa.null(),
        pa.list_(pa.list_(pa.int64())),
        pa.list_(pa.string(), 3),
        pa.list_(pa.struct([("a", pa.int64())])),
        pa.month_day_nano_interval(),
    ],
    ids=str,
)
def test_types_without_a_place_in_a_batch_are_refused(type_: pa.DataType) -> None:
    with pytest.raises(SchemaError, match=r"cannot be batched; leave it out or cast it"):
        describe(type_)


@pytest.mark.parametrize("type_", [*INTEGERS, pa.float32(), pa.float64(), pa.timestamp("us")], ids=str)
def test_numbers_are_taken_over_writable_and_without_a_copy(type_: pa.DataType) -> None:
    array = pa.array([1, 2, 3, 4], pa.int64()).cast(type_).slice(1)
    column = to_column(pa.chunked_array([array]))
    width = type_.bit_width // 8
    assert column.flags.writeable
    assert column.__array_interface__["data"][0] == array.buffers()[1].address + width
    address = array.buffers()[1].address
    del array
    column[:] = [7, 8, 9]
    assert column.tolist() == [7, 8, 9]
    assert column.__array_interface__["data"][0] == address + width


class TooLong:
    """Strings coded by a dictionary that decoded take more than 2 GiB, which a test had better not have."""

    type = pa.dictionary(pa.int32(), pa.string())
    num_chunks = 1

    def chunk(self, number: int) -> TooLong:
        return self

    def dictionary_decode(self) -> pa.Array:
        raise pa.ArrowInvalid("Take operation overflowed binary array capacity")


def test_coded_strings_that_decoded_are_too_long_are_told_by_their_type() -> None:
    with pytest.raises(
        SchemaError, match=r"holds more than string can in one piece.*write smaller row groups"
    ):
        to_column(TooLong())


def test_a_column_stays_alive_after_the_table_it_came_from_is_gone() -> None:
    columns = [to_column(pa.chunked_array([pa.array(np.arange(50_000) + i)])) for i in range(20)]
    for i, column in enumerate(columns):
        assert column[0] == i
        assert column.sum() == 50_000 * 49_999 // 2 + i * 50_000


@pytest.mark.parametrize(
    ("type_", "numbers", "size"),
    [
        (pa.int16(), True, 2.0),
        (pa.bool_(), True, 1.0),
        (pa.timestamp("ns"), True, 8.0),
        (pa.list_(pa.float32(), 4), True, 16.0),
        (pa.list_(pa.bool_(), 4), True, 4.0),
        (pa.list_(pa.int64()), True, None),
        (pa.string(), False, None),
        (pa.list_(pa.string()), False, None),
        (pa.dictionary(pa.int8(), pa.string()), False, None),
        (pa.dictionary(pa.int8(), pa.int64()), True, 8.0),
        (pa.list_(pa.dictionary(pa.int8(), pa.int64())), True, None),
        (arrow.plain(pa.fixed_shape_tensor(pa.float32(), [2, 3])), True, 24.0),
    ],
    ids=str,
)
def test_what_is_known_of_a_type_before_it_is_read(
    type_: pa.DataType, numbers: bool, size: float | None
) -> None:
    assert holds_numbers(type_) is numbers
    assert row_bytes(type_) == size
