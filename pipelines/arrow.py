"""How Arrow's columns become the pipeline's columns. Which rows are read lives in `reading/`.

Numbers without nulls are taken over without a copy and writable: a block read from Parquet belongs to one task
at a time, so user code may work in place.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from intune.pipelines.errors import SchemaError
from intune.pipelines.schema import Array, Column, Ragged, concat_columns


class _Exposed:
    """Lends an Arrow buffer's memory to NumPy as writable and keeps it alive."""

    __slots__ = ("__array_interface__", "owner")

    def __init__(self, owner: pa.Array, address: int, length: int, dtype: np.dtype[Any]) -> None:
        self.owner = owner
        self.__array_interface__ = {
            "data": (address, False),
            "shape": (length,),
            "typestr": dtype.str,
            "version": 3,
        }


def describe(type_: pa.DataType) -> str:
    """What a column of this Arrow type becomes: ``number``, ``string``, ``list`` or ``matrix``.

    Raises:
        SchemaError: for a type that has no place in a batch; the message says what to do.
    """
    if isinstance(type_, pa.BaseExtensionType):
        return describe(type_.storage_type)
    if pa.types.is_dictionary(type_):
        return describe(type_.value_type)
    if _is_number(type_):
        return "number"
    if _is_string(type_):
        return "string"
    if pa.types.is_fixed_size_list(type_) and describe(type_.value_type) == "number":
        return "matrix"
    if is_list(type_) and describe(type_.value_type) in ("number", "string"):
        return "list"
    raise SchemaError(f"has type {type_}, which cannot be batched; leave it out or cast it when writing")


def is_list(type_: pa.DataType) -> bool:
    """Whether a column of this type holds lists of varying length."""
    return bool(
        pa.types.is_list(type_)
        or pa.types.is_large_list(type_)
        or pa.types.is_list_view(type_)
        or pa.types.is_large_list_view(type_)
    )


def plain(type_: pa.DataType) -> pa.DataType:
    """The type of a column's values once read: how they were stored, and whether a list's may be null, is no
    difference between two files. Of an extension type it is what it is stored as: whether Arrow tells more depends on
    what a program has imported by then."""
    if isinstance(type_, pa.BaseExtensionType):
        return plain(type_.storage_type)
    if pa.types.is_dictionary(type_):
        return plain(type_.value_type)
    if is_list(type_):
        return pa.list_(plain(type_.value_type))
    if pa.types.is_fixed_size_list(type_):
        return pa.list_(plain(type_.value_type), type_.list_size)
    if pa.types.is_timestamp(type_) and type_.tz is not None:
        return pa.timestamp(type_.unit, "UTC")  # stored are instants; a zone says how to show them
    if pa.types.is_string_view(type_):
        return pa.string()
    if pa.types.is_binary_view(type_) or pa.types.is_fixed_size_binary(type_):
        return pa.binary()
    return type_


def common(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The plain type that columns of two plain types can both be read as, or None."""
    if one.equals(other) or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    for large in (pa.large_string(), pa.large_binary()):
        small = pa.string() if large == pa.large_string() else pa.binary()
        if {one, other} == {small, large}:
            return large
    if pa.types.is_list(one) and pa.types.is_list(other):
        inner = common(one.value_type, other.value_type)
        return None if inner is None else pa.list_(inner)
    return None


def undecided(type_: pa.DataType) -> bool:
    """Whether a column holds nothing but nulls or empty lists, so that another file has to tell its type."""
    return bool(pa.types.is_null(type_) or (pa.types.is_list(type_) and undecided(type_.value_type)))


def holds_numbers(type_: pa.DataType) -> bool:
    """Whether a column's values, or those of its lists, are numbers."""
    if pa.types.is_dictionary(type_) or describe(type_) in ("matrix", "list"):
        return holds_numbers(type_.value_type)
    return describe(type_) == "number"


def row_bytes(type_: pa.DataType) -> float | None:
    """Bytes of one decoded value, or None where the length varies."""
    if pa.types.is_dictionary(type_):
        return row_bytes(type_.value_type)
    if pa.types.is_boolean(type_):
        return 1.0
    if pa.types.is_fixed_size_list(type_):
        inner = row_bytes(type_.value_type)
        return None if inner is None else inner * type_.list_size
    if _is_number(type_):
        return float(type_.bit_width) / 8
    return None


def to_column(data: pa.ChunkedArray, fill: Any = None, type_: pa.DataType | None = None) -> Column:
    """One pipeline column from one of Arrow's.

    Args:
        data: as read from Parquet.
        fill: what stands for a null; without it, null is NaN in floats, stays null in strings, is an empty
            list where a whole list is null, and is refused in integers.
        type_: what it is to be read as, of what `common` allows; its own `plain` type by default.

    Raises:
        SchemaError: nulls in an integer column without `fill`, or a type that cannot be used. The message lacks
            the column's name, which the caller knows.
    """
    type_ = plain(data.type) if type_ is None else type_
    if data.num_chunks > 1 and _coded(data.type):
        # Each has a dictionary of its own; joined, they may be more than its indices can count.
        parts = [_convert(chunk, fill, type_) for chunk in data.chunks]
        try:
            return concat_columns(parts)
        except pa.ArrowInvalid as error:
            raise _too_long(type_, error) from error
    return _convert(_whole(data), fill, type_)


def _coded(type_: pa.DataType) -> bool:
    if isinstance(type_, pa.BaseExtensionType):
        return _coded(type_.storage_type)
    if is_list(type_):
        return _coded(type_.value_type)
    return bool(pa.types.is_dictionary(type_))


def _whole(data: pa.ChunkedArray) -> pa.Array:
    if data.num_chunks == 1:
        return data.chunk(0)
    try:
        return pa.concat_arrays(data.chunks or [pa.array([], plain(data.type))])
    except pa.ArrowInvalid as error:
        raise _too_long(data.type, error) from error


def _too_long(type_: pa.DataType, error: pa.ArrowInvalid) -> SchemaError:
    return SchemaError(
        f"holds more than {type_} can in one piece ({error}); write smaller row groups, or the column as "
        "large_string or large_list"
    )


def _convert(array: pa.Array, fill: Any, type_: pa.DataType) -> Column:
    if isinstance(array, pa.ExtensionArray):
        return _convert(array.storage, fill, type_)
    if pa.types.is_dictionary(array.type):
        try:
            decoded = array.dictionary_decode()
        except pa.ArrowInvalid as error:
            raise _too_long(type_, error) from error
        return _convert(decoded, fill, type_)
    if pa.types.is_null(array.type):
        array = pa.nulls(len(array), type_)
    kind = describe(type_)
    if kind == "string":
        array = _text(array, type_)
        return _filled(array, fill) if fill is not None else array
    if kind == "list":
        return _ragged(array, fill, type_)
    if kind == "matrix":
        return _matrix(array, fill, type_)
    return _numbers(array, fill, type_)


def _text(array: pa.Array, type_: pa.DataType) -> pa.Array:
    if array.type.equals(type_):
        return array
    try:
        return array.cast(type_)
    except pa.ArrowInvalid as error:
        raise _too_long(type_, error) from error


def _numbers(array: pa.Array, fill: Any, type_: pa.DataType) -> Array:
    if pa.types.is_boolean(array.type):
        array = array.cast(type_)
    if pa.types.is_temporal(type_):
        array = array.view(pa.int64() if type_.bit_width == 64 else pa.int32())
        type_ = array.type
    if array.null_count:
        if fill is None:
            if not pa.types.is_floating(type_):
                raise SchemaError(
                    f"holds {array.null_count} null(s), but {type_} has no value for them; "
                    "give `fill=` to from_parquet"
                )
            fill = math.nan
        array = _filled(array, fill)
    if pa.types.is_boolean(type_):
        return np.asarray(array.to_numpy(zero_copy_only=False))
    return _expose(array)


_NAMES = {"halffloat": "float16", "float": "float32", "double": "float64"}
"""What NumPy calls Arrow's types, where names differ. (Arrow 25 wants pandas to tell.)"""


def _expose(array: pa.Array) -> Array:
    """The values of a primitive array without nulls, without a copy."""
    name = str(array.type)
    dtype = np.dtype(_NAMES.get(name, name))
    if len(array) == 0:
        return np.empty(0, dtype)
    address = array.buffers()[1].address + array.offset * dtype.itemsize
    return np.asarray(_Exposed(array, address, len(array), dtype))


def _filled(array: pa.Array, fill: Any) -> pa.Array:
    if not array.null_count:
        return array
    type_ = array.type
    if isinstance(fill, np.generic):
        fill = fill.item()
    if pa.types.is_boolean(type_) and isinstance(fill, int | float) and fill in (0, 1):
        fill = bool(fill)
    try:
        value = pa.scalar(fill, type=type_)
        if pa.types.is_integer(type_) and value.as_py() != fill:
            raise ValueError(fill)  # Arrow cuts off what is behind the point
        return pc.fill_null(array, value)
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError, ValueError, OverflowError) as error:
        raise _unfit(fill, type_) from error


def filled_type(type_: pa.DataType, fill: Any) -> pa.DataType:
    """As what a column of a plain type is read whose nulls `fill` stands for: as int8 where booleans get a third
    value, else as what it is."""
    if is_list(type_):
        return pa.list_(filled_type(type_.value_type, fill))
    third = isinstance(fill, int | np.integer) and fill not in (0, 1) and -128 <= fill < 128
    return pa.int8() if third and pa.types.is_boolean(type_) else type_


def check_fill(fill: Any, type_: pa.DataType) -> None:
    """A `SchemaError` where `fill` is text for numbers or the other way round. A number that the type cannot hold may
    be given, as long as there are no nulls: the same for columns of several data sets."""
    if isinstance(fill, str | bytes) == holds_numbers(type_):
        raise _unfit(fill, type_)


def _unfit(fill: Any, type_: pa.DataType) -> SchemaError:
    return SchemaError(
        f"has type {type_}, for which `fill`={fill!r} is no value; give one of its own: `fill={{column: value}}`"
    )


def _ragged(array: pa.Array, fill: Any, type_: pa.DataType) -> Ragged:
    values = _convert(
        array.flatten(), fill, type_.value_type
    )  # drops what null lists or a slice leave in between
    lengths = pc.list_value_length(array)
    if lengths.null_count:
        lengths = pc.fill_null(lengths, 0)
    offsets = np.zeros(len(array) + 1, dtype=np.int64)
    np.cumsum(lengths.to_numpy(zero_copy_only=False), out=offsets[1:])
    return Ragged(values, offsets)


def _matrix(array: pa.Array, fill: Any, type_: pa.DataType) -> Array:
    if array.null_count:
        raise SchemaError(
            f"holds {array.null_count} null(s) in place of a list of {array.type.list_size}; "
            "write full lists, or lists of varying length"
        )
    values: Any = _convert(array.flatten(), fill, type_.value_type)
    made: Array = values.reshape(len(array), array.type.list_size)
    return made


def _is_number(type_: pa.DataType) -> bool:
    return bool(
        pa.types.is_integer(type_)
        or pa.types.is_floating(type_)
        or pa.types.is_boolean(type_)
        or (pa.types.is_temporal(type_) and not pa.types.is_interval(type_))
    )


def _is_string(type_: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(type_)
        or pa.types.is_large_string(type_)
        or pa.types.is_binary(type_)
        or pa.types.is_large_binary(type_)
        or pa.types.is_string_view(type_)
        or pa.types.is_binary_view(type_)
        or pa.types.is_fixed_size_binary(type_)
    )
