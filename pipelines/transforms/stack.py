"""Several columns of numbers to one matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from intune.pipelines.errors import ConfigError, SchemaError
from intune.pipelines.schema import Array, Block, Column
from intune.pipelines.transforms.base import (
    Transform,
    as_patterns,
    choose,
    freeze,
    kind_of,
    require_free,
    require_numbers,
    require_same_rows,
)
from intune.pipelines.transforms.cast import as_dtype
from intune.pipelines.transforms.layout import Work, interleaved, leave


@dataclass(frozen=True, kw_only=True)
class Stack(Transform):
    """Put `columns` side by side in one matrix, shape ``(rows, number of columns)``, C order.

    A column that is a matrix itself, shape ``(rows, width)``, takes as many places as it is wide.

    Attributes:
        columns: names or patterns, in the matrix's order.
        into: the matrix's name.
        dtype: of the matrix; None: the smallest that holds the columns' (`numpy.result_type`). Numbers are not
            changed in kind: floats do not become integers (see `Cast`), nor, unless asked for, integers floats.
        keep: whether the columns stay in the block as well.
    """

    columns: str | Sequence[str]
    into: str
    dtype: DTypeLike | None = None
    keep: bool = False

    def __post_init__(self) -> None:
        freeze(self, "columns", as_patterns("columns", self.columns))
        if not isinstance(self.into, str) or not self.into:
            raise ConfigError(f"`into`={self.into!r} must name the matrix, such as 'dense'")
        if self.dtype is not None:
            freeze(self, "dtype", as_dtype(self.dtype).name)

    def __call__(self, block: Mapping[str, Column]) -> Block:
        """The block with the matrix."""
        names = choose(block, self.columns, "Stack")
        remedy = "hash strings first, and keep list columns apart"
        dense = require_numbers("Stack", names, [block[name] for name in names], "biuf", remedy)
        dtype = self._common(names, dense) if self.dtype is None else np.dtype(self.dtype)
        require_same_rows("Stack", names, dense)
        for name, array in zip(names, dense, strict=True):
            if array.ndim > 2:
                raise SchemaError(
                    f"Stack: column `{name}` holds {kind_of(array)}, but a row must be a number or a vector; reshape it"
                )
            if not np.can_cast(array.dtype, dtype, "same_kind"):
                raise SchemaError(
                    f"Stack: column `{name}` holds {kind_of(array)}, but `dtype`={dtype.name} is of another kind; "
                    f"take another dtype, or Cast the column first"
                )
        lines = [line for array in dense for line in _lines(array)]
        gone = set() if self.keep else set(names)
        made = {name: column for name, column in block.items() if name not in gone}
        require_free("Stack", self.into, made)
        made[self.into] = interleaved(Work(arrays=lines, dtypes=[dtype] * len(lines), run=leave))
        return made

    @staticmethod
    def _common(names: Sequence[str], dense: Sequence[Array]) -> np.dtype[Any]:
        """The smallest type that holds the columns'; a `SchemaError` where whole numbers would have to be floats."""
        dtype: np.dtype[Any] = np.result_type(*{array.dtype for array in dense})
        if dtype.kind == "f" and all(array.dtype.kind in "biu" for array in dense):
            kinds = sorted({array.dtype.name for array in dense})
            raise SchemaError(
                f"Stack: no type of whole numbers holds the {' and '.join(kinds)} of {', '.join(names)}, and as floats "
                f"large ones would change; Cast some, or give `dtype`='{dtype.name}'"
            )
        return dtype


def _lines(array: Array) -> list[Array]:
    """A column, or those of a matrix, each of one dimension."""
    return [array] if array.ndim == 1 else list(array.T)
