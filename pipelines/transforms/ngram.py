"""Runs of neighbouring list elements, or of several features' elements, to ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from intune.pipelines.errors import ConfigError
from intune.pipelines.schema import Array, Block, Column, Ragged, elements
from intune.pipelines.transforms.base import (
    Transform,
    as_patterns,
    choose,
    flatten,
    freeze,
    is_text,
    require_free,
    require_same_rows,
)
from intune.pipelines.transforms.hash import words_of
from intune.pipelines.transforms.layout import empty
from intune.pipelines.transforms.lists import join_rows, require_lists
from intune.pipelines.transforms.mixing import key_of, mix, modulo
from intune.pipelines.whole import at_least


@dataclass(frozen=True, kw_only=True)
class NGram(Transform):
    """Replace every list by the ids of its n-grams: the runs of `n` elements that stand next to each other.

    A list of L elements x₁ … x_L has max(L − n + 1, 0) n-grams, in order; none spans two rows. The id of the one that
    begins at element i is gₙ mod size, int64, with g₁ = mix(xᵢ + key), gⱼ = mix(gⱼ₋₁ + xᵢ₊ⱼ₋₁) modulo 2^64: it depends
    on the elements' order. Mixing, key and the word x of an element are those of `Hash`, so that 1-grams are what
    `Hash` makes. An n-gram with a null string in it gets the id `null`.

    With `into`, n-grams run across features: each row's elements of all `columns`, in the order given, form one list,
    to which a column that has one integer or string a row adds that one. So ``NGram(columns=("user", "item"), n=2,
    into="pair", size=...)`` crosses two features. (The n-gram of Zhao et al., "Understanding data storage and ingestion
    for large-scale deep recommendation model training", ISCA 2022, runs across sparse features too; they do not give
    a formula.)

    Attributes:
        columns: names or patterns; integers or strings, and lists unless `into` is given.
        n: 1 or more.
        size: rows of the table that the ids are for.
        seed: 0 or more; another seed gives another, independent hash.
        null: id of n-grams with a null string.
        into: the name of the one list column made from all columns, which stay; None: each is replaced by its own.
    """

    columns: str | Sequence[str]
    n: int
    size: int
    seed: int = 0
    null: int = 0
    into: str | None = None

    def __post_init__(self) -> None:
        freeze(self, "columns", as_patterns("columns", self.columns))
        freeze(self, "n", at_least("n", self.n, 1))
        freeze(self, "size", at_least("size", self.size, 1))
        freeze(self, "seed", at_least("seed", self.seed, 0))
        freeze(self, "null", at_least("null", self.null, 0, most=self.size - 1))
        if self.into is not None and (not isinstance(self.into, str) or not self.into):
            raise ConfigError(
                f"`into`={self.into!r} must name a column; None to replace each column by its own"
            )

    def __call__(self, block: Mapping[str, Column]) -> Block:
        """The block with lists of ids."""
        names = choose(block, self.columns, "NGram")
        made: Block = dict(block)
        if self.into is None:
            for name in names:
                column = require_lists("NGram", name, block[name])
                made[name] = self._ids(*self._words([name], {name: column}))
            return made
        require_free("NGram", self.into, block)
        made[self.into] = self._ids(*self._words(names, block))
        return made

    def _words(self, names: Sequence[str], block: Mapping[str, Column]) -> tuple[Ragged, Array | None]:
        """Lists of uint64 words, joined row by row, and which of them stand for null."""
        flat = [flatten("NGram", name, block[name]) for name in names]
        words = [
            array.astype(np.int64, copy=False).view(np.uint64) for array in words_of("NGram", names, flat)
        ]
        lists = [Ragged(array, _offsets(name, block[name])) for name, array in zip(names, words, strict=True)]
        require_same_rows("NGram", names, lists)
        joined = lists[0] if len(lists) == 1 else join_rows(lists)
        if not any(is_text(array) and array.null_count for array in flat):
            return joined, None
        nulls = [
            Ragged(
                np.asarray(array.is_null()) if is_text(array) else np.zeros(len(array), bool), column.offsets
            )
            for array, column in zip(flat, lists, strict=True)
        ]
        return joined, join_rows(nulls).values

    def _ids(self, words: Ragged, nulls: Array | None) -> Ragged:
        places, offsets = elements(words.offsets[:-1], np.maximum(words.lengths - (self.n - 1), 0))
        grams, scratch = empty((len(places),), np.uint64), empty((len(places),), np.uint64)
        grams[:] = np.uint64(key_of(self.seed))
        missing = np.zeros(len(places), bool)
        for step in range(self.n):
            here = places + step
            grams += np.take(words.values, here)
            mix(grams, scratch)
            if nulls is not None:
                missing |= np.take(nulls, here)
        modulo(grams[None], np.array([[self.size]], np.uint64), scratch[None])
        ids = grams.view(np.int64)
        if nulls is not None:
            ids[missing] = self.null
        return Ragged(ids, offsets)


def _offsets(name: str, column: Column) -> Array:
    """Offsets of a list column, or of one that has one element a row."""
    if isinstance(column, Ragged):
        offsets: Array = column.offsets
        return offsets
    if isinstance(column, np.ndarray) and column.ndim > 1:
        return np.arange(0, column.size + 1, column.shape[1], dtype=np.int64)
    return np.arange(len(column) + 1, dtype=np.int64)
