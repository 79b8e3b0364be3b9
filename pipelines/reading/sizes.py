"""How large a row is once decoded, as far as footers tell before anything is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from intune.pipelines import arrow
from intune.pipelines.reading.footers import Footer
from intune.pipelines.reading.remote import leaves_of

SAMPLED_GROUPS = 256
"""Row groups that are looked at for columns of varying length: some 2 us for each of them and each such column."""

LIST_OFFSET_BYTES = 8
STRING_OFFSET_BYTES = 4


def row_bytes(schema: pa.Schema, footers: Sequence[Footer]) -> tuple[float, bool]:
    """Decoded bytes of a row, and whether they are a guess.

    Exact for numbers; for lists of numbers as well, but for what row groups differ that were not looked at: footers say
    how many values there are. Of strings they say how long they are encoded, with every value once where that is
    shorter, so decoded they may take many times as much: that is the guess, made from how long the first and the last
    of a row group's are in the alphabet, where footers have them.

    Args:
        schema: the columns, with the types as which they are read.
        footers: of the files, at least one.
    """
    known, guessed = 0.0, False
    varying = []
    for field in schema:
        size = arrow.row_bytes(field.type)
        if size is not None:
            known += size
            continue
        varying.append(field)
        guessed = guessed or _value_bytes(field.type) is None
    if varying:
        known += _varying_bytes(varying, footers)
    return max(1.0, known), guessed


def _varying_bytes(fields: Sequence[pa.Field], footers: Sequence[Footer]) -> float:
    """Decoded bytes that columns of varying length add to a row, on average over row groups of all files."""
    groups = [(footer, number) for footer in footers for number, rows in enumerate(footer.rows) if rows]
    found = rows = 0.0
    schema: Any = None
    for footer, number in groups[:: max(1, len(groups) // SAMPLED_GROUPS)]:
        group = footer.metadata.row_group(number)
        if schema is None or not footer.schema.equals(schema):
            schema = footer.schema
            leaves = [leaves_of(group, {field.name}) for field in fields]
        for field, indices in zip(fields, leaves, strict=True):
            found += sum(_chunk_bytes(field.type, group.column(index), group.num_rows) for index in indices)
        rows += group.num_rows
    return found / max(1.0, rows)


def _chunk_bytes(type_: pa.DataType, chunk: Any, rows: int) -> float:
    """Decoded bytes of one column of one row group."""
    each = _value_bytes(type_)
    if each is not None:
        values = chunk.num_values * each
    else:
        values = max(
            chunk.total_uncompressed_size, chunk.num_values * STRING_OFFSET_BYTES + _text_bytes(chunk)
        )
    return float(values + (rows * LIST_OFFSET_BYTES if arrow.is_list(type_) else 0))


def _text_bytes(chunk: Any) -> float:
    """What the strings of a column that has a dictionary take if the first and the last in the alphabet are as long as
    others; 0 where they are not told."""
    coded = any("DICTIONARY" in encoding for encoding in chunk.encodings)
    told = chunk.statistics if coded else None
    if told is None or not told.has_min_max:
        return 0.0
    return float(told.num_values * (len(told.min_raw) + len(told.max_raw)) / 2)


def _value_bytes(type_: pa.DataType) -> float | None:
    """Decoded bytes of a list's value; None for strings, in lists or not."""
    return arrow.row_bytes(type_.value_type) if arrow.is_list(type_) else None
