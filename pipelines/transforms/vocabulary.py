"""Known values to contiguous ids; all others share one."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from intune.pipelines.errors import ConfigError, SchemaError
from intune.pipelines.schema import Array
from intune.pipelines.transforms.base import ColumnTransform, Values, freeze, is_text, kind_of, large_type
from intune.pipelines.transforms.lookup import Lookup, all_differ, make_lookup
from intune.pipelines.transforms.mixing import as_words
from intune.pipelines.transforms.text import fingerprint
from intune.pipelines.whole import at_least

_building = threading.Lock()
# Another thread may have been building for seconds when this process was forked: a DataLoader's workers, for one.
os.register_at_fork(after_in_child=_building._at_fork_reinit)  # type: ignore[attr-defined]


@dataclass(frozen=True, kw_only=True, eq=False)
class Entries:
    """The values of one column that have an id of their own.

    Attributes:
        values: distinct and without nulls, in the order of their ids: an Arrow array of int64, or of strings or bytes,
            kept with 64-bit offsets.
        counts: how often each was seen, int64, Arrow.
    """

    values: pa.Array
    counts: pa.Array

    def __post_init__(self) -> None:
        if is_text(self.values):
            freeze(self, "values", self.values.cast(large_type(self.values.type)))
        if len(self.values) != len(self.counts):
            raise ConfigError(
                f"`values` has {len(self.values)} members, but `counts` has {len(self.counts)}; they must agree"
            )
        if not (pa.types.is_int64(self.values.type) or is_text(self.values)):
            raise ConfigError(f"`values` has type {self.values.type}; int64 or large_string is wanted")
        if self.values.null_count:
            raise ConfigError("`values` holds a null, which has no id of its own; leave it out")
        # Whose fingerprints all differ, and nearly always they do, those differ themselves.
        if not all_differ(self._words()) and len(pc.unique(self.values)) < len(self.values):
            raise ConfigError("`values` holds a value twice; leave one of them out")

    def __len__(self) -> int:
        return len(self.values)

    @property
    def is_text(self) -> bool:
        """Whether the values are strings or bytes."""
        return bool(is_text(self.values))

    @property
    def _lookup(self) -> tuple[Lookup, int]:
        """The table and, for strings, the seed with which no two of them have one fingerprint."""
        if "_built" not in vars(self):
            # All threads get here with their first batch, and of millions of entries a table takes seconds and, while
            # it is built, several times its memory.
            with _building:
                if "_built" not in vars(self):
                    freeze(self, "_built", self._build())
        built: tuple[Lookup, int] = vars(self)["_built"]
        return built

    def _build(self) -> tuple[Lookup, int]:
        for seed in itertools.count():
            words = self._words(seed)
            if not self.is_text or all_differ(words):
                break
        return make_lookup(words), seed

    def _words(self, seed: int = 0) -> Array:
        """The values as int64: of strings, their fingerprints."""
        if self.is_text:
            return fingerprint(self.values, seed).view(np.int64)
        words: Array = self.values.to_numpy(zero_copy_only=False)
        return words

    def find(self, values: Values) -> Array:
        """For each value its position among the entries, or −1: int64, shape ``(n,)``.

        Args:
            values: integers as a NumPy array, or strings as an Arrow array, as the entries are.
        """
        lookup, seed = self._lookup
        if not self.is_text:
            return lookup.find(as_words(values).astype(np.int64, copy=False))
        found = lookup.find(fingerprint(values, seed).view(np.int64))
        if len(self):
            # Strings that are not listed may have a listed one's fingerprint: only the strings themselves can tell.
            candidates = self.values.take(pa.array(np.maximum(found, 0)))
            same = pc.equal(candidates, values.cast(self.values.type))
            found[~np.asarray(same.fill_null(False))] = -1
        return found


@dataclass(frozen=True, kw_only=True, eq=False)
class Vocabulary(ColumnTransform):
    """Replace the value at place i of a column's entries by id ``first + i``, any other by `unknown`: int64.

    Made by `VocabularyBuilder`, kept by `save_vocabulary` and `load_vocabulary`. Columns of integers (any width),
    of strings and of lists of either.

    Attributes:
        entries: by column.
        first: the first entry's id.
        unknown: the id of values that are no entry; it may not be an entry's.
        null: the id of a null string; None: `unknown`. (A null in a column of integers has become the loader's
            ``fill=``, a value like any other.)
        columns: those to replace; None: all that have entries.
    """

    entries: Mapping[str, Entries]
    first: int = 1
    unknown: int = 0
    null: int | None = None
    columns: str | Sequence[str] | None = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if not isinstance(self.entries, Mapping) or not self.entries:
            raise ConfigError(
                f"`entries`={self.entries!r} names no column; build a vocabulary from data first"
            )
        freeze(self, "entries", dict(self.entries))
        if self.columns is None:
            freeze(self, "columns", tuple(self.entries))
        super().__post_init__()
        freeze(self, "first", at_least("first", self.first, 0))
        freeze(self, "unknown", at_least("unknown", self.unknown, 0))
        freeze(self, "null", self.unknown if self.null is None else at_least("null", self.null, 0))
        longest = max(len(entries) for entries in self.entries.values())
        for argument, value in (("unknown", self.unknown), ("null", self.null)):
            if value is not None and self.first <= value < self.first + longest:
                raise ConfigError(
                    f"`{argument}`={value} is an entry's id, since ids run from `first`={self.first} to "
                    f"{self.first + longest - 1}; raise `first` above it"
                )

    def size(self, column: str) -> int:
        """How many ids a column may get: the rows that its embedding table needs."""
        return max(self.first + len(self._of(column)), self.unknown + 1, (self.null or 0) + 1)

    def transform(self, names: Sequence[str], values: Sequence[Values]) -> list[Array]:
        """The elements' ids."""
        return [self._ids(name, column) for name, column in zip(names, values, strict=True)]

    def _ids(self, name: str, values: Values) -> Array:
        entries = self._of(name)
        fits = (
            is_text(values)
            if entries.is_text
            else isinstance(values, np.ndarray) and values.dtype.kind in "biu"
        )
        if not fits:
            raise SchemaError(
                f"Vocabulary: column `{name}` holds {kind_of(values)}, but its entries are {entries.values.type}; "
                f"build the vocabulary from data of the same type"
            )
        ids = entries.find(values)
        unknown = None if self.unknown == self.first - 1 else ids < 0
        ids += self.first
        if unknown is not None:
            ids[unknown] = self.unknown
        if entries.is_text and self.null != self.unknown and values.null_count:
            ids[np.asarray(values.is_null())] = self.null
        return ids

    def _of(self, column: str) -> Entries:
        if column not in self.entries:
            known: Any = ", ".join(f"`{name}`" for name in self.entries)
            raise SchemaError(f"Vocabulary: column `{column}` has no entries; there are some for {known}")
        return self.entries[column]
