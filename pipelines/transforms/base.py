"""What a transform is, how it finds its columns, and how it says that it cannot use one."""

from __future__ import annotations

import difflib
import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar, TypeAlias

import numpy as np
import pyarrow as pa

from intune.pipelines.errors import ConfigError, SchemaError
from intune.pipelines.schema import Array, Block, Column, Ragged, in_order
from intune.pipelines.transforms.layout import Work, interleaved, leave, side_by_side

Values: TypeAlias = Any
"""A column's elements in one dimension, a NumPy or an Arrow array: of a list column those of all rows, one row
after another."""


@dataclass(frozen=True, kw_only=True)
class Transform(ABC):
    """A pure function from a block to a block; small, frozen, picklable.

    Neither the block nor its arrays are changed: what comes out is new, or the very column that came in.

    Attributes:
        rowwise: whether row i of the output depends on row i of the input only, so that it makes no difference
            whether a block is transformed whole or in pieces.
    """

    rowwise: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, block: Mapping[str, Column]) -> Block:
        """The transformed block.

        Raises:
            SchemaError: a column is missing or of a type that cannot be used.
        """


@dataclass(frozen=True, kw_only=True)
class ColumnTransform(Transform):
    """A transform that does the same to each of some columns, element by element.

    Attributes:
        columns: names, or patterns such as ``"C*"`` (as a shell's; matches come in the block's order); of a list
            column the elements are transformed.
        suffix: appended to a column's name to make the result's; empty: the result replaces the column.
        into: put the results, of columns with one number a row, side by side in a matrix of this name, shape
            ``(rows, number of columns)``, C order, which replaces the columns. One step instead of two with `Stack`,
            and faster, since a result is put in its place while it is in the cache.
    """

    columns: str | Sequence[str]
    suffix: str = ""
    into: str | None = None

    def __post_init__(self) -> None:
        freeze(self, "columns", as_patterns("columns", self.columns))
        if not isinstance(self.suffix, str):
            raise ConfigError(f"`suffix`={self.suffix!r} must be a string, such as '_id'")
        if self.into is not None and (not isinstance(self.into, str) or not self.into):
            raise ConfigError(
                f"`into`={self.into!r} must name the matrix, such as 'dense'; None for no matrix"
            )
        if self.into and self.suffix:
            raise ConfigError(
                f"`into`={self.into!r} and `suffix`={self.suffix!r} exclude each other; give one"
            )

    def __call__(self, block: Mapping[str, Column]) -> Block:
        """The block with the results beside or in place of the columns."""
        names = choose(block, self.columns, self.verb)
        values = [flatten(self.verb, name, block[name]) for name in names]
        if self.into is not None:
            sources = set(names)
            made = {name: column for name, column in block.items() if name not in sources}
            require_free(self.verb, self.into, made)
            self._require_lines(names, block, values)
            made[self.into] = self.join(names, values)
            return made
        made = dict(block)
        for name, result in zip(names, self.transform(names, values), strict=True):
            if self.suffix:
                require_free(self.verb, name + self.suffix, block)
            made[name + self.suffix] = shape_like(block[name], result)
        return made

    @property
    def verb(self) -> str:
        """The transform's name, for messages."""
        return type(self).__name__

    @abstractmethod
    def transform(self, names: Sequence[str], values: Sequence[Values]) -> Sequence[Values]:
        """New elements for each column, as many as it has; called with all columns at once since few large
        NumPy calls let other threads run, many small ones make them wait for each other."""

    def join(self, names: Sequence[str], values: Sequence[Values]) -> Array:
        """The new elements as columns of a matrix; for results that are numbers."""
        results = self.transform(names, values)
        return interleaved(Work(arrays=results, dtypes=[array.dtype for array in results], run=leave))

    def _require_lines(
        self, names: Sequence[str], block: Mapping[str, Column], values: Sequence[Values]
    ) -> None:
        """A `SchemaError` unless each column has one element a row and all have the same number of rows."""
        for name, flat in zip(names, values, strict=True):
            if flat is not block[name]:
                raise SchemaError(
                    f"{self.verb}: column `{name}` holds {kind_of(block[name])}, more than one number a row, which "
                    f"`into`={self.into!r} does not take; leave `into` out"
                )
        require_same_rows(self.verb, names, values)


@dataclass(frozen=True, kw_only=True)
class InPlaceTransform(ColumnTransform):
    """A transform whose work is done in place on a copy of the elements."""

    @abstractmethod
    def work(self, names: Sequence[str], values: Sequence[Values]) -> Work:
        """What to copy and to do."""

    def transform(self, names: Sequence[str], values: Sequence[Values]) -> Sequence[Values]:
        """The copies, worked on."""
        return side_by_side(self.work(names, values))

    def join(self, names: Sequence[str], values: Sequence[Values]) -> Array:
        """The copies, worked on, as columns of a matrix."""
        return interleaved(self.work(names, values))


def freeze(owner: Any, name: str, value: Any) -> None:
    """Set a field of a frozen dataclass to its checked form, from `__post_init__`."""
    object.__setattr__(owner, name, value)


def as_patterns(argument: str, value: Any) -> tuple[str, ...]:
    """Names or patterns as a tuple; a `ConfigError` where there are none."""
    patterns = (value,) if isinstance(value, str) else in_order(value) if isinstance(value, Iterable) else ()
    if not patterns or not all(isinstance(pattern, str) and pattern for pattern in patterns):
        raise ConfigError(
            f"`{argument}`={value!r} names no column; give a name, a pattern such as 'C*', or several of them"
        )
    return patterns


def number(argument: str, value: Any) -> float:
    """The value; a `ConfigError` unless it is a number and not NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise ConfigError(f"`{argument}`={value!r} must be a number")
    if math.isnan(value):
        raise ConfigError(f"`{argument}`={value!r} must be a number other than NaN")
    return value if isinstance(value, int | float) else value.item()


def items(argument: str, value: Any) -> tuple[Any, ...]:
    """The members of a sequence; a `ConfigError` where there are none."""
    members = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str | bytes) else ()
    if not members:
        raise ConfigError(f"`{argument}`={value!r} must be a sequence with at least one member")
    return members


def choose(block: Mapping[str, Any], patterns: str | Sequence[str], verb: str) -> tuple[str, ...]:
    """Names of the block's columns that the patterns mean, each once, in the patterns' order.

    Raises:
        SchemaError: a name or pattern that means none of them; the message lists similar names.
    """
    return _choose(as_patterns("columns", patterns), tuple(block), verb)


@functools.lru_cache(maxsize=256)
def _choose(patterns: tuple[str, ...], names: tuple[str, ...], verb: str) -> tuple[str, ...]:
    chosen: dict[str, None] = {}
    for pattern in patterns:
        found = [pattern] if pattern in names else [name for name in names if fnmatchcase(name, pattern)]
        if not found:
            raise SchemaError(f"{verb}: {_unknown(pattern, names)}")
        chosen.update(dict.fromkeys(found))
    return tuple(chosen)


def _unknown(pattern: str, names: Sequence[str]) -> str:
    if any(sign in pattern for sign in "*?["):
        return f"no column matches `{pattern}`; the block has {_listed(names)}"
    close = difflib.get_close_matches(pattern, names, n=3, cutoff=0.5)
    if close:
        return f"there is no column `{pattern}`; did you mean {' or '.join(f'`{name}`' for name in close)}?"
    return f"there is no column `{pattern}`; the block has {_listed(names)}"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:12])
    return (shown or "no column at all") + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def require_free(verb: str, name: str, taken: Iterable[str]) -> None:
    """A `SchemaError` if a result would overwrite a column that is not its own source."""
    if name in taken:
        raise SchemaError(f"{verb}: there is already a column `{name}`; give the result another name")


def require_same_rows(verb: str, names: Sequence[str], columns: Sequence[Any]) -> None:
    """A `SchemaError` unless the columns have as many rows as the first of them."""
    for name, column in zip(names, columns, strict=True):
        if len(column) != len(columns[0]):
            raise SchemaError(
                f"{verb}: column `{name}` has {len(column)} rows, but `{names[0]}` has {len(columns[0])}; "
                f"every column of a block needs the same number of rows"
            )


def kind_of(values: Any) -> str:
    """What a column or its elements are, in words, for messages."""
    if isinstance(values, Ragged):
        return f"lists of {kind_of(values.values)}"
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return str(values.type) if is_text(values) else f"an Arrow array of {values.type}"
    if isinstance(values, np.ndarray):
        return str(values.dtype) if values.ndim == 1 else f"a matrix of {values.dtype}, shape {values.shape}"
    return type(values).__name__


def is_text(values: Any) -> bool:
    """Whether elements are an Arrow array of strings or bytes with 32- or 64-bit offsets."""
    return isinstance(values, pa.Array) and (
        pa.types.is_string(values.type)
        or pa.types.is_large_string(values.type)
        or pa.types.is_binary(values.type)
        or pa.types.is_large_binary(values.type)
    )


def large_type(text: pa.DataType) -> pa.DataType:
    """The type of strings or bytes with 64-bit offsets that holds those of type `text`."""
    binary = pa.types.is_binary(text) or pa.types.is_large_binary(text)
    return pa.large_binary() if binary else pa.large_string()


def require_numbers(
    verb: str, names: Sequence[str], values: Sequence[Any], kinds: str, remedy: str
) -> list[Array]:
    """Columns' elements if they are NumPy arrays of a dtype of one of the `kinds`; else a `SchemaError` with the
    remedy."""
    for name, array in zip(names, values, strict=True):
        if not isinstance(array, np.ndarray) or array.dtype.kind not in kinds:
            raise SchemaError(f"{verb}: column `{name}` holds {kind_of(array)}; {remedy}")
    return list(values)


def flatten(verb: str, name: str, column: Any) -> Values:
    """A column's elements in one dimension; the column itself if it has one element a row."""
    if isinstance(column, np.ndarray) and column.ndim in (1, 2):
        return column if column.ndim == 1 else column.reshape(-1)
    if isinstance(column, Ragged):
        return flatten(verb, name, column.values)
    if isinstance(column, pa.Array):
        return column
    raise SchemaError(
        f"{verb}: column `{name}` holds {kind_of(column)}; a transform takes NumPy arrays of one or two dimensions, "
        f"Ragged and Arrow arrays (of a ChunkedArray, use combine_chunks)"
    )


def shape_like(column: Column, values: Values) -> Column:
    """New elements in the shape of the column that they came from."""
    if isinstance(column, Ragged):
        return Ragged(values, column.offsets)
    if isinstance(column, np.ndarray) and column.ndim == 2:
        return values.reshape(column.shape)
    return values
