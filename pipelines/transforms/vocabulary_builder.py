"""Counting values in one pass over blocks, to make a `Vocabulary` of the frequent ones."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from intune.pipelines.errors import ConfigError, SchemaError
from intune.pipelines.schema import Column, Ragged
from intune.pipelines.transforms.base import (
    Values,
    as_patterns,
    choose,
    flatten,
    is_text,
    large_type,
    require_numbers,
)
from intune.pipelines.transforms.mixing import as_words
from intune.pipelines.transforms.vocabulary import Entries, Vocabulary
from intune.pipelines.whole import at_least

_PENDING = 1 << 18
"""Counted values that wait, at least, before they are joined with the rest."""


class VocabularyBuilder:
    """Counts the values of some columns; picklable, and two of them can be merged.

    It keeps each distinct value with its count: memory grows with their number, not with the rows. Nulls are not
    counted; of list columns each element is. Give it the batches that a loader delivers; or call it in a map, whose
    threads may share it. (A copy in another process counts for itself.)

    Args:
        columns: names or patterns.
    """

    def __init__(self, columns: str | Sequence[str]) -> None:
        self.columns = as_patterns("columns", columns)
        self._counters: dict[str, _Counter] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    def update(self, block: Mapping[str, Column]) -> None:
        """Count a block's values; tensors, as a loader delivers them, too.

        Raises:
            SchemaError: a column is missing, holds neither integers nor strings, or differs from earlier blocks.
        """
        for name in choose(block, self.columns, "VocabularyBuilder"):
            values = _as_arrow(name, flatten("VocabularyBuilder", name, _without_tensors(block[name])))
            with self._lock:
                self._counter(name, values.type).add(values)

    def merge(self, other: VocabularyBuilder) -> None:
        """Add the counts of another builder, as if its blocks had been counted here."""
        for name, table in other._tables().items():
            with self._lock:
                self._counter(name, table.schema.field("value").type).absorb(table)

    def distinct(self) -> dict[str, int]:
        """How many distinct values each column has so far."""
        return {name: table.num_rows for name, table in self._tables().items()}

    def build(
        self,
        *,
        min_count: int = 1,
        max_size: int | None = None,
        first: int = 1,
        unknown: int = 0,
        null: int | None = None,
    ) -> Vocabulary:
        """The vocabulary of the values seen often enough, the most frequent first, of equal count the smaller.

        Which values get which ids depends on the data only, not on how it was cut into blocks.

        Args:
            min_count: values seen less often get the id `unknown`.
            max_size: at most so many entries a column; None for no limit.
            first, unknown, null: as of `Vocabulary`.

        Raises:
            ConfigError: an argument makes no sense, or nothing was counted.
        """
        at_least("min_count", min_count, 1)
        if max_size is not None:
            at_least("max_size", max_size, 1)
        if not self._counters:
            raise ConfigError(
                "nothing was counted, so there is nothing to build from; call `update` with blocks first"
            )
        entries = {}
        for name, table in self._tables().items():
            table = table.filter(pc.greater_equal(table["count"], min_count))
            order = pc.sort_indices(table, sort_keys=[("count", "descending"), ("value", "ascending")])
            table = table.take(order[:max_size])
            entries[name] = Entries(values=_whole(table["value"]), counts=_whole(table["count"]))
        return Vocabulary(entries=entries, first=first, unknown=unknown, null=null)

    def _tables(self) -> dict[str, pa.Table]:
        with self._lock:
            return {name: counter.table() for name, counter in self._counters.items()}

    def _counter(self, name: str, type_: pa.DataType) -> _Counter:
        counter = self._counters.setdefault(name, _Counter(type_))
        if counter.type != type_:
            raise SchemaError(
                f"VocabularyBuilder: column `{name}` holds {type_}, but {counter.type} was counted before; "
                f"give it one type in all files"
            )
        return counter


class _Counter:
    """Distinct values of one column with their counts, joined now and then, so that a pass takes time in
    proportion to its length."""

    def __init__(self, type_: pa.DataType) -> None:
        self.type = type_
        self._schema = pa.schema([("value", type_), ("count", pa.int64())])
        self._joined = self._schema.empty_table()
        self._pending: list[pa.Table] = []
        self._waiting = 0

    def add(self, values: pa.Array) -> None:
        counted = pc.value_counts(values.drop_null() if values.null_count else values)
        self.absorb(pa.table([counted.field(0), counted.field(1)], schema=self._schema))

    def absorb(self, counted: pa.Table) -> None:
        """Count what another has counted."""
        self._pending.append(counted)
        self._waiting += counted.num_rows
        if self._waiting >= max(_PENDING, self._joined.num_rows):
            self.table()

    def table(self) -> pa.Table:
        """Columns ``value`` and ``count``, no value twice, in no particular order."""
        if self._pending:
            joined = pa.concat_tables([self._joined, *self._pending])
            grouped = joined.group_by("value", use_threads=False).aggregate([("count", "sum")])
            self._joined = pa.table([grouped["value"], grouped["count_sum"]], schema=self._schema)
            self._pending, self._waiting = [], 0
        return self._joined


def _without_tensors(column: Any) -> Any:
    if isinstance(column, Ragged):
        return Ragged(_without_tensors(column.values), column.offsets)
    return np.asarray(column.cpu()) if hasattr(column, "untyped_storage") else column


def _as_arrow(name: str, values: Values) -> pa.Array:
    """Elements as int64, large_string or large_binary."""
    if is_text(values):
        return values.cast(large_type(values.type))
    (array,) = require_numbers("VocabularyBuilder", [name], [values], "biu", "count integers or strings")
    return pa.array(as_words(array)).cast(pa.int64())


def _whole(column: pa.ChunkedArray) -> pa.Array:
    array: Any = column.combine_chunks()
    return array
