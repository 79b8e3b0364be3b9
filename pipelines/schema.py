"""What a column is between two stages, and the few operations every stage needs: length, slice, join, take.

How Arrow's columns become these ones lives in `arrow.py`; how these become tensors in `transfer.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from intune.pipelines.errors import SchemaError

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Ragged:
    """A list column: row ``i`` is ``values[offsets[i]:offsets[i + 1]]``, the layout of an embedding bag.

    Attributes:
        values: shape ``(total,)``; NumPy array in the pipeline (an Arrow string array for lists of strings),
            ``torch.Tensor`` once delivered.
        offsets: shape ``(rows + 1,)``, int64, ``offsets[0] == 0``, never decreasing; as ``values``, an array
            in the pipeline and a tensor once delivered (``EmbeddingBag(include_last_offset=True)`` takes it).
    """

    values: Any
    offsets: Any

    def __len__(self) -> int:
        return int(self.offsets.shape[0]) - 1

    @property
    def lengths(self) -> Any:
        """Length of every row, shape ``(rows,)``."""
        return self.offsets[1:] - self.offsets[:-1]

    def to(self, device: Any, non_blocking: bool = False) -> Ragged:
        """The same lists with their tensors on a device, as `torch.Tensor.to`; strings stay where they are.

        Lightning, Accelerate and Ray Train move what has this method; Lightning ends with an error without it.
        """
        parts = [
            part.to(device, non_blocking=non_blocking) if hasattr(part, "to") else part
            for part in (self.values, self.offsets)
        ]
        return Ragged(*parts)


Column: TypeAlias = "Array | Ragged | pa.Array"
"""A numeric column (NumPy, first axis = rows), a list column (`Ragged`), or strings (an Arrow array)."""

Block: TypeAlias = "dict[str, Column]"
"""Rows travelling together: every column has the same number of rows."""


def in_order(names: Iterable[Any]) -> tuple[Any, ...]:
    """Names of columns as they are given; those of a set, whose order is another one in every process, sorted."""
    return tuple(sorted(names, key=str) if isinstance(names, set | frozenset) else names)


def rows_of(column: Any) -> int:
    """Number of rows of one column; a `SchemaError` for something that is not a column."""
    if isinstance(column, Ragged | pa.Array):
        return len(column)
    if not isinstance(column, np.ndarray) and not hasattr(column, "untyped_storage"):
        raise SchemaError(
            "a column must be a NumPy array, a Ragged, an Arrow array or a tensor, "
            f"but {type(column).__name__} was found"
        )
    if column.ndim == 0:
        raise SchemaError("a column must have rows, but a scalar was found; return an array instead")
    return int(column.shape[0])


def block_rows(block: Mapping[str, Any]) -> int:
    """Number of rows of a block; 0 for a block without columns."""
    return rows_of(next(iter(block.values()))) if block else 0


def slice_column(column: Any, start: int, stop: int) -> Any:
    """Rows ``[start, stop)`` as a view; only a list column's offsets are computed anew.

    (Always: neighbours share an offset, and whoever gets one of them may change it.)
    """
    if isinstance(column, Ragged):
        first, last = int(column.offsets[start]), int(column.offsets[stop])
        return Ragged(slice_column(column.values, first, last), column.offsets[start : stop + 1] - first)
    if isinstance(column, pa.Array):
        return column.slice(start, stop - start)
    return column[start:stop]


def slice_block(block: Mapping[str, Any], start: int, stop: int) -> Block:
    """Rows ``[start, stop)`` of every column, as views."""
    if start == 0 and stop == block_rows(block):
        return dict(block)
    return {name: slice_column(column, start, stop) for name, column in block.items()}


def writable(block: Mapping[str, Any]) -> Block:
    """The block, with copies of arrays that may only be read (as those are that come through Ray's store): functions
    may change what they get."""
    return {name: _writable(column) for name, column in block.items()}


def _writable(column: Any) -> Any:
    if isinstance(column, np.ndarray):
        return column if column.flags.writeable else column.copy()
    if isinstance(column, Ragged):
        values, offsets = _writable(column.values), _writable(column.offsets)
        return column if values is column.values and offsets is column.offsets else Ragged(values, offsets)
    return column


def copy_column(column: Any) -> Any:
    """The same rows in memory of their own: of what a view was cut from, nothing is kept."""
    if isinstance(column, Ragged):
        return Ragged(copy_column(column.values), copy_column(column.offsets))
    if isinstance(column, pa.Array):
        return pa.concat_arrays([column])
    return column.copy() if isinstance(column, np.ndarray) else column.clone()


def concat_columns(parts: Sequence[Any]) -> Any:
    """One column from several, in order; a single one is returned as it is, without a copy."""
    if len(parts) == 1:
        return parts[0]
    head = parts[0]
    if isinstance(head, Ragged):
        shifts = np.cumsum([0] + [int(part.offsets[-1]) for part in parts])
        offsets = [parts[0].offsets] + [
            part.offsets[1:] + shift for part, shift in zip(parts[1:], shifts[1:-1], strict=True)
        ]
        return Ragged(concat_columns([part.values for part in parts]), _alike(np.concatenate(offsets), head))
    if isinstance(head, pa.Array):
        return pa.concat_arrays(parts)
    if isinstance(head, np.ndarray):
        return np.concatenate(parts)
    import torch

    return torch.cat(list(parts))


def _alike(offsets: Array, column: Ragged) -> Any:
    """New offsets as an array or a tensor, as those of the column are that they come from."""
    if isinstance(column.offsets, np.ndarray):
        return offsets
    import torch

    return torch.from_numpy(offsets)


def kind_of(column: Any) -> tuple[Any, ...]:
    """What columns must have in common to be joined: what they are, the type of their elements, a row's shape."""
    if isinstance(column, np.ndarray):
        # Fixed-length strings join into the longer type.
        return "array", column.dtype.kind if column.dtype.kind in "SU" else column.dtype, column.shape[1:]
    if isinstance(column, Ragged):
        return "lists, their values", *kind_of(column.values)
    if isinstance(column, pa.Array):
        return "Arrow array", column.type, ()
    return "tensor", column.dtype, tuple(column.shape[1:])


def check_alike(blocks: Sequence[Mapping[str, Any]]) -> None:
    """A `SchemaError` naming a column in which blocks that are to be joined differ."""
    head = blocks[0]
    for block in blocks[1:]:
        if block.keys() != head.keys():
            name = next(name for name in (*head, *block) if name not in head or name not in block)
            raise SchemaError(f"column {name!r} is in some of them only")
        for name, column in head.items():
            other = block[name]
            plain = type(column) is type(other) is np.ndarray and column.ndim == other.ndim == 1
            if plain and column.dtype is other.dtype:
                continue  # the usual case, at little cost
            if (kind := kind_of(column)) != (another := kind_of(other)):
                raise SchemaError(
                    f"column {name!r} is {_in_words(kind)} in one and {_in_words(another)} in another"
                )


def _in_words(kind: tuple[Any, ...]) -> str:
    *what, dtype, shape = kind
    return f"{', '.join(what)} of {dtype}" + (f" with rows of shape {shape}" if shape else "")


def concat_blocks(blocks: Sequence[Mapping[str, Any]]) -> Block:
    """Rows of all blocks, in order; a `SchemaError` where their columns differ."""
    if len(blocks) == 1:
        return dict(blocks[0])
    check_alike(blocks)
    return {name: concat_columns([block[name] for block in blocks]) for name in blocks[0]}


def elements(starts: Array, lengths: Array) -> tuple[Array, Array]:
    """Places of the elements of lists, one list after another, and the offsets of a list column made of them.

    Args:
        starts: place of each list's first element, int64, shape ``(rows,)``.
        lengths: how many elements it has, int64, shape ``(rows,)``.

    Returns:
        int64 arrays of shapes ``(lengths.sum(),)`` and ``(rows + 1,)``.
    """
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    places = np.arange(offsets[-1], dtype=np.int64)
    places += np.repeat(starts - offsets[:-1], lengths)
    return places, offsets


def take_column(column: Any, index: Array) -> Any:
    """Rows at `index` (int64, shape ``(m,)``), in that order, as a copy."""
    if isinstance(column, Ragged):
        edges = np.asarray(column.offsets)  # a tensor where a function made one
        places, offsets = elements(np.take(edges, index), np.take(np.diff(edges), index))
        return Ragged(take_column(column.values, places), _alike(offsets, column))
    if isinstance(column, pa.Array):
        return column.take(pa.array(index))
    if isinstance(column, np.ndarray):
        return np.take(column, index, axis=0)
    return column[index]


def take_block(block: Mapping[str, Any], index: Array) -> Block:
    """Rows at `index` of every column, as a copy."""
    return {name: take_column(column, index) for name, column in block.items()}


def same_bits(block: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two blocks have the same columns, of the same types and bit for bit the same values; not so where that
    cannot be told, as of Python's objects."""
    return list(block) == list(other) and all(
        _same_bits(column, other[name]) for name, column in block.items()
    )


def _same_bits(column: Any, other: Any) -> bool:
    if type(column) is not type(other) or kind_of(column) != kind_of(other) or len(column) != len(other):
        return False
    if isinstance(column, Ragged):
        return _same_bits(column.values, other.values) and _same_bits(column.offsets, other.offsets)
    if isinstance(column, pa.Array):
        return bool(column.equals(other))
    if isinstance(column, np.ndarray):
        return not column.dtype.hasobject and column.tobytes() == other.tobytes()
    import torch

    plain = [tensor.detach().resolve_conj().resolve_neg() for tensor in (column, other)]
    # Copies: a tensor of one element is contiguous whatever its stride, but has no other view then.
    bits = [tensor.clone(memory_format=torch.contiguous_format).view(torch.uint8) for tensor in plain]
    return torch.equal(*bits)


def column_bytes(column: Any) -> int:
    """Bytes of a column's visible data (a view counts what it shows, not what it keeps alive)."""
    if isinstance(column, Ragged):
        return column_bytes(column.values) + column_bytes(column.offsets)
    return int(column.nbytes)


def block_bytes(block: Mapping[str, Any]) -> int:
    """Bytes of a block's visible data."""
    return sum(column_bytes(column) for column in block.values())
