"""What a user's function returned: whether it is a block, and what in it must become a column first.

A batch is the trainer's to change. So what may only be read (a file mapped into memory, a constant, what Arrow
holds) is copied. Numbers of Arrow become arrays, as they do when they are read from a file. And a batch is to hold
no more than itself: a small part of something large, such as an array made once for all batches, is copied too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from intune.pipelines import arrow
from intune.pipelines.errors import SchemaError, StageError
from intune.pipelines.schema import Block, Ragged, copy_column, rows_of

LARGE_BYTES = 1 << 20
"""Of a part of less than this, it does not matter what else it keeps."""

SMALL_PART = 4
"""A part is small if it would fit so many times into what it keeps: then a copy costs little beside making that."""

_CODES = "?bBhHiIlLqQefdFD"
"""Booleans, integers, floats and complex numbers of up to 64 bits a part: what tensors hold."""


def checked(made: Any, rows: int, *, last: bool = True) -> Block:
    """What a user's function returned, if it is a block of `rows` rows; else a `StageError` saying why not.

    Args:
        last: no other function follows, so that every column must be one that a tensor can hold.
    """
    if not isinstance(made, dict) or not made:
        raise StageError(
            f"the function returned {'an empty dict' if isinstance(made, dict) else type(made).__name__} where a "
            "non-empty dict of columns is wanted; return dict[str, column]"
        )
    others: Block = {}
    for name, column in made.items():
        try:
            kept = _usable(column, last)
            length = rows_of(kept)
        except SchemaError as error:
            raise StageError(
                f"the function returned a column {name!r} that cannot be used: {error}"
            ) from None
        if length != rows:
            raise StageError(
                f"the function returned {length} rows in column {name!r} for a batch of {rows}; "
                "every column must have as many rows as the batch; to leave rows out, give them a weight of 0, or "
                "write the data without them"
            )
        if kept is not column:
            others[name] = kept
    return {**made, **others} if others else made


def owned(made: Block, given: Mapping[str, Any]) -> Block:
    """A block without small parts of large arrays or tensors: copies stand for those.

    A slice of an array that the function keeps would count with the whole array, as long as any batch has one, and a
    trainer that works in place would change the batches to come.

    Args:
        made: what a function returned.
        given: the block it got. Parts of its columns stay: what they are parts of is kept for other batches anyway.
    """
    # Nearly all are those it got or have memory of their own; telling that must cost next to nothing.
    others = [
        name
        for name, column in made.items()
        if column is not given.get(name) and (type(column) is not np.ndarray or column.base is not None)
    ]
    if not others:
        return made
    parts: dict[int, list[str]] = {}
    left: dict[int, int] = {}  # bytes of what is large, less so many times those of its parts
    for name in others:
        for part in _arrays(made[name]):
            key, size = _kept(part)
            if size >= LARGE_BYTES:
                parts.setdefault(key, []).append(name)
                left[key] = left.get(key, size) - SMALL_PART * part.nbytes
    small = {key for key, size in left.items() if size >= 0}
    if small:
        small -= {_kept(part)[0] for column in given.values() for part in _arrays(column)}
    copies = {name: copy_column(made[name]) for key in small for name in parts[key]}
    return {**made, **copies} if copies else made


def _arrays(column: Any) -> tuple[Any, ...]:
    return (column.values, column.offsets) if isinstance(column, Ragged) else (column,)


def _kept(part: Any) -> tuple[int, int]:
    """What an array or a tensor keeps in memory: a number that tells it from others, and its bytes. Arrow's strings,
    which nobody changes, are left as they are."""
    if isinstance(part, np.ndarray):
        base = part.base
        while isinstance(base, np.ndarray):
            part, base = base, base.base
        return id(part), part.nbytes
    if hasattr(part, "untyped_storage"):
        storage = part.untyped_storage()
        return storage.data_ptr(), storage.nbytes()
    return 0, 0


def _usable(column: Any, last: bool) -> Any:
    """The column, or what stands for it; a `SchemaError` for values that would be lost or that no tensor holds."""
    if isinstance(column, np.ndarray):
        if isinstance(column, np.ma.MaskedArray):
            raise SchemaError("it is a masked array, whose mask would be lost; return its filled(value)")
        if not last:
            return column  # the next function gets a copy of what may only be read
        if column.dtype.char not in _CODES or not column.dtype.isnative:
            raise SchemaError(f"it holds {column.dtype}, which no tensor can; convert it to numbers")
        return column if column.flags.writeable else np.array(column)
    if isinstance(column, Ragged):
        _check_offsets(column)
        values, offsets = _usable(column.values, last), _wide(_usable(column.offsets, last))
        return column if values is column.values and offsets is column.offsets else Ragged(values, offsets)
    if hasattr(column, "untyped_storage") and (column.is_nested or str(column.layout) != "torch.strided"):
        kind = "nested" if column.is_nested else column.layout
        raise SchemaError(
            f"it is a {kind} tensor, of which no rows can be cut; return its to_dense(), or a Ragged for lists"
        )
    if isinstance(column, pa.Array):
        if pa.types.is_string_view(column.type) or pa.types.is_binary_view(column.type):
            column = column.cast(arrow.plain(column.type))  # of views, Arrow cannot take rows
        return _of_arrow(column) if last else column
    return column


def _check_offsets(column: Ragged) -> None:
    """A `SchemaError` for lists that do not fit together."""
    offsets, values = column.offsets, rows_of(column.values)
    if not _whole_numbers(offsets):
        found = getattr(offsets, "dtype", type(offsets).__name__)
        raise SchemaError(
            f"its offsets must be an array of int64 with one dimension, but {found} was found; "
            "convert them with numpy.asarray(offsets, numpy.int64)"
        )
    if len(offsets) == 0 or int(offsets[0]) != 0 or int(offsets[-1]) != values:
        raise SchemaError(
            f"its offsets must go from 0 to {values}, the number of its values; "
            "row i is values[offsets[i]:offsets[i + 1]]"
        )
    if bool((offsets[1:] < offsets[:-1]).any()):
        raise SchemaError("its offsets decrease; row i is values[offsets[i]:offsets[i + 1]]")


def _whole_numbers(offsets: Any) -> bool:
    """Whether it is one row of signed integers: unsigned ones joined with others would become floats."""
    if isinstance(offsets, np.ndarray):
        signed = offsets.dtype.kind == "i"
    elif hasattr(offsets, "untyped_storage"):
        dtype = offsets.dtype
        signed = dtype.is_signed and not dtype.is_floating_point and not dtype.is_complex
    else:
        return False
    return bool(signed) and offsets.ndim == 1


def _wide(offsets: Any) -> Any:
    """Offsets as int64: of batches that were put together they would be, and of others not."""
    return offsets.astype(np.int64, copy=False) if isinstance(offsets, np.ndarray) else offsets.long()


def _of_arrow(column: pa.Array) -> Any:
    """Arrow's strings as they are, its numbers and lists as arrays: copies, since who made them may keep them."""
    type_ = column.type
    try:
        kind = arrow.describe(type_)
    except SchemaError:
        raise SchemaError(
            f"it is an Arrow array of {type_}, which no tensor can hold; cast it to numbers or strings"
        ) from None
    if kind == "string":
        return column if type_.equals(arrow.plain(type_)) else arrow.to_column(pa.chunked_array([column]))
    try:
        made = arrow.to_column(pa.chunked_array([column]))
    except SchemaError:
        raise SchemaError(
            f"it is an Arrow array of {type_} with nulls, for which there is no number; "
            "fill them with pyarrow.compute.fill_null"
        ) from None
    if isinstance(made, Ragged):
        return Ragged(_copied(made.values), made.offsets)
    return _copied(made)


def _copied(column: Any) -> Any:
    return np.array(column) if isinstance(column, np.ndarray) else column
