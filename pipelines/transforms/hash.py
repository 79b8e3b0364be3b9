"""Any ids to the rows of a table of fixed size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from intune.pipelines.errors import ConfigError, SchemaError
from intune.pipelines.schema import Array
from intune.pipelines.transforms.base import InPlaceTransform, Values, freeze, is_text, items, require_numbers
from intune.pipelines.transforms.layout import Work, empty
from intune.pipelines.transforms.mixing import as_words, key_of, mix, modulo
from intune.pipelines.transforms.text import fingerprints
from intune.pipelines.whole import at_least


@dataclass(frozen=True, kw_only=True)
class Hash(InPlaceTransform):
    """Replace an id x by ``first + mix(x + key) mod (size - first)``, int64, the same in every run on every machine.

    The mixing, of 64 bits, is splitmix64's finaliser (`mixing.py`); the key comes from `seed` and is 0 for seed 0. Of
    an integer, x is its value, whatever its width (modulo 2^64); of a string, the fingerprint of its bytes (`text.py`).
    The remainder is a true one: for tables far smaller than 2^64 no row is preferred.

    Attributes:
        size: rows of the table: one number for all columns, one for each in their order, or by name.
        seed: 0 or more; another seed gives another, independent hash.
        salted: whether a column's name enters its key, so that features that share a table do not collide only
            because they share values. Without, equal values have equal rows in all columns.
        first: rows ``0`` to ``first - 1`` are kept free of hashed ids.
        null: the row of a null string. Others share it, unless it is below `first`. (A null in a column of integers
            has become the loader's ``fill=``, an id like any other.)
    """

    size: int | Sequence[int] | Mapping[str, int]
    seed: int = 0
    salted: bool = False
    first: int = 0
    null: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        freeze(self, "seed", at_least("seed", self.seed, 0))
        freeze(self, "first", at_least("first", self.first, 0))
        freeze(self, "null", at_least("null", self.null, 0))
        freeze(self, "size", _checked_size(self.size, self.first, self.null))

    def work(self, names: Sequence[str], values: Sequence[Values]) -> Work:
        """Hash words in place."""
        sizes = np.array(self._sizes(names), dtype=np.uint64)[:, None] - np.uint64(self.first)
        keys = np.array([key_of(self.seed, name if self.salted else "") for name in names], np.uint64)[
            :, None
        ]
        masks = {
            i: np.asarray(column.is_null())
            for i, column in enumerate(values)
            if is_text(column) and column.null_count
        }

        def run(piece: Array, which: Sequence[int], elements: slice) -> None:
            words, scratch = piece.view(np.uint64), empty(piece.shape, np.uint64)
            if keys.any():
                np.add(words, keys[which], out=words)
            mix(words, scratch)
            modulo(words, sizes[which], scratch)
            if self.first:
                np.add(words, np.uint64(self.first), out=words)
            for row, column in enumerate(which):
                if column in masks:
                    np.copyto(piece[row], self.null, where=masks[column][elements])

        arrays = words_of("Hash", names, values)
        return Work(arrays=arrays, dtypes=[np.dtype(np.int64)] * len(arrays), run=run)

    def _sizes(self, names: Sequence[str]) -> list[int]:
        if isinstance(self.size, int):
            return [self.size] * len(names)
        if isinstance(self.size, Mapping):
            for name in names:
                if name not in self.size:
                    raise SchemaError(f"Hash: `size` has no entry for column `{name}`; add one")
            return [self.size[name] for name in names]
        if len(self.size) != len(names):
            raise SchemaError(
                f"Hash: `size` lists {len(self.size)} tables, but {len(names)} columns were found; "
                f"give one size for each column, or one for all"
            )
        return list(self.size)


def words_of(verb: str, names: Sequence[str], values: Sequence[Values]) -> list[Array]:
    """Each element as 64 bits: integers as they are, strings as their fingerprints."""
    texts = [position for position, column in enumerate(values) if is_text(column)]
    printed = dict(zip(texts, fingerprints([values[position] for position in texts]), strict=True))
    remedy = "it takes integers and strings: Bucketize floats, or Cast them if they are ids"
    return [
        printed[position].view(np.int64)
        if position in printed
        else as_words(*require_numbers(verb, [name], [values[position]], "biu", remedy))
        for position, name in enumerate(names)
    ]


def _checked_size(size: Any, first: int, null: int) -> int | tuple[int, ...] | dict[str, int]:
    def check(argument: str, value: Any) -> int:
        rows = at_least(argument, value, 1)
        if rows <= max(first, null):
            raise ConfigError(
                f"`{argument}`={rows} must exceed `first`={first} and `null`={null}; give a larger table"
            )
        return rows

    if isinstance(size, Mapping):
        return {name: check(f"size[{name!r}]", value) for name, value in size.items()}
    if isinstance(size, Iterable):
        return tuple(check(f"size[{index}]", value) for index, value in enumerate(items("size", size)))
    return check("size", size)
