"""Vocabularies kept in Parquet files, which hold data only: loading one runs no code."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from intune.pipelines.errors import ConfigError, CorruptError, NotFoundError, SchemaError
from intune.pipelines.transforms.vocabulary import Entries, Vocabulary

_KEY = b"intune.vocabulary"
_VERSION = 1
_SCHEMA = pa.schema(
    [
        ("column", pa.dictionary(pa.int32(), pa.string())),
        ("id", pa.int64()),
        ("count", pa.int64()),
        ("integer", pa.int64()),
        ("text", pa.large_string()),
        ("bytes", pa.large_binary()),
    ]
)
_FIELDS = {pa.int64(): "integer", pa.large_string(): "text", pa.large_binary(): "bytes"}


def save_vocabulary(vocabulary: Vocabulary, path: str | os.PathLike[str]) -> None:
    """Write a vocabulary to one Parquet file; an existing one is replaced at once or, on failure, left alone.

    A row is an entry: ``column``, ``id``, ``count`` and its value in ``integer``, ``text`` or ``bytes``.
    """
    header = {
        "version": _VERSION,
        "first": vocabulary.first,
        "unknown": vocabulary.unknown,
        "null": vocabulary.null,
        "columns": {name: _FIELDS[entries.values.type] for name, entries in vocabulary.entries.items()},
    }
    schema = _SCHEMA.with_metadata({_KEY: json.dumps(header).encode()})
    # Ranks may all write it, to one shared folder, and in containers they often have one process number.
    partial = Path(f"{os.fspath(path)}.{secrets.token_hex(8)}.part")
    try:
        with pq.ParquetWriter(partial, schema, compression="zstd") as writer:
            for name, entries in vocabulary.entries.items():
                writer.write_table(_rows(name, entries, vocabulary.first).cast(schema))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load_vocabulary(path: str | os.PathLike[str]) -> Vocabulary:
    """The vocabulary that `save_vocabulary` wrote.

    Raises:
        NotFoundError: there is no such file.
        CorruptError: it is empty, cut short or no Parquet file.
        SchemaError: it is Parquet, but no vocabulary.
    """
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise NotFoundError(
            f"there is no vocabulary {os.fspath(path)!r}; write one with save_vocabulary"
        ) from None
    except (pa.ArrowInvalid, OSError) as error:
        raise CorruptError(
            f"{os.fspath(path)!r} cannot be read as Parquet ({error}); write it anew with save_vocabulary"
        ) from error
    header = _header(table, path)
    try:
        entries = _entries(table, header["columns"])
        return Vocabulary(
            entries=entries, first=header["first"], unknown=header["unknown"], null=header["null"]
        )
    except (KeyError, AttributeError, ConfigError) as error:
        raise SchemaError(
            f"{os.fspath(path)!r} does not hold the vocabulary that it says ({error}); write it anew"
        ) from error


def _rows(name: str, entries: Entries, first: int) -> pa.Table:
    size = len(entries)
    value_field = _FIELDS[entries.values.type]
    return pa.table(
        {
            "column": pa.repeat(name, size).dictionary_encode(),
            "id": np.arange(first, first + size, dtype=np.int64),
            "count": entries.counts,
            **{
                field: entries.values if field == value_field else pa.nulls(size, type_)
                for type_, field in _FIELDS.items()
            },
        }
    )


def _header(table: pa.Table, path: str | os.PathLike[str]) -> dict[str, Any]:
    text = (table.schema.metadata or {}).get(_KEY)
    try:
        header: Any = json.loads(text) if text else {}
    except ValueError:
        header = {}
    if (
        not isinstance(header, dict)
        or header.get("version") != _VERSION
        or not set(_SCHEMA.names) <= set(table.column_names)
    ):
        raise SchemaError(
            f"{os.fspath(path)!r} holds no vocabulary of version {_VERSION}; give a file of save_vocabulary"
        )
    return header


def _entries(table: pa.Table, fields: dict[str, str]) -> dict[str, Entries]:
    """The entries of each column, whose values are in the field named."""
    names = table["column"].cast(pa.string()).combine_chunks().dictionary_encode()
    codes = names.indices.to_numpy()
    order = np.lexsort((table["id"].to_numpy(), codes))
    known = names.dictionary.to_pylist()
    edges = np.searchsorted(codes[order], np.arange(len(known) + 1))
    rows = {name: pa.array(order[edges[code] : edges[code + 1]]) for code, name in enumerate(known)}
    none = pa.array([], pa.int64())
    columns = {field: table[field].combine_chunks() for field in ("count", *set(fields.values()))}
    return {
        name: Entries(
            values=columns[field].take(rows.get(name, none)),
            counts=columns["count"].take(rows.get(name, none)),
        )
        for name, field in fields.items()
    }
