"""Which columns of a data set are read, as what, and whether its files agree in that."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from intune.pipelines import arrow
from intune.pipelines.errors import SchemaError
from intune.pipelines.reading.paths import MAGIC, partition_keys
from intune.pipelines.reading.source import EVERY_NUMBER


def select(path: str, schema: pa.Schema, columns: Sequence[str] | None) -> dict[str, pa.DataType]:
    """The columns to read, named or by pattern, and as what; a type that another file has to tell is left open."""
    names = schema.names
    types: dict[str, pa.DataType] = {}
    known = set(names)
    for pattern in names if columns is None else columns:
        found = [pattern] if pattern in known else fnmatch.filter(names, pattern)
        if not found:
            raise SchemaError(f"{path}: no column {pattern!r}; {_there_are(path, names)}")
        types.update((name, arrow.plain(schema.field(name).type)) for name in found)
    if not types:
        raise SchemaError(f"{path}: has no columns")
    for name, type_ in types.items():
        if not arrow.undecided(type_):
            require_usable(path, name, schema.field(name).type)
    return types


def _there_are(path: str, names: Sequence[str]) -> str:
    shown = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
    keys = ", ".join(partition_keys(path))
    return f"there are {shown}" + (f" (in folders' names, which are not read: {keys})" if keys else "")


def require_usable(path: str, name: str, type_: pa.DataType) -> None:
    """Refuse a type that has no place in a batch."""
    try:
        arrow.describe(type_)
    except SchemaError as error:
        raise SchemaError(f"{path}: column {name!r} {error}") from None


def widened(
    path: str, schema: pa.Schema, types: dict[str, pa.DataType], first: str
) -> dict[str, pa.DataType]:
    """As what columns are read once another file is there too; a `SchemaError` where it does not go with `first`."""
    agreed = {}
    for name, wanted in types.items():
        index = schema.get_field_index(name)
        if index < 0:
            raise SchemaError(
                f"{path}: column {name!r} is missing, which {first} has; write it everywhere, or name in `columns=` "
                "those to read"
            )
        stored = schema.field(index).type
        both = wanted if stored.equals(wanted) else arrow.common(wanted, arrow.plain(stored))
        if both is None:
            raise SchemaError(
                f"{path}: column {name!r} is {stored}, but {wanted} in {first}; write both with one schema"
            )
        if both is not wanted and not arrow.undecided(both):
            require_usable(path, name, both)
        agreed[name] = both
    return agreed


def read_as(types: Mapping[str, pa.DataType], fill: Sequence[tuple[str, Any]]) -> pa.Schema:
    """As what columns are read, once it is known what stands for their nulls. Only what is said of a column by its name
    makes it another: a pattern, or a number for all, may mean others."""
    named = dict(fill)
    return pa.schema([(name, arrow.filled_type(type_, named.get(name))) for name, type_ in types.items()])


def fills(
    path: str, names: Sequence[str], types: Mapping[str, pa.DataType], fill: Sequence[tuple[str, Any]]
) -> tuple[Any, ...]:
    """What stands for a null in each column: what is said of it by its name, which must fit, or else by the last
    pattern that matches it, which may mean others too."""
    known = set(names)
    patterns = [(name, value) for name, value in fill if _is_pattern(name)]
    for name, value in fill:
        if name in types and value is not None:
            try:
                arrow.check_fill(value, types[name])
            except SchemaError as error:
                raise SchemaError(f"{path}: column {name!r} {error}") from None
        elif name not in known and not _is_pattern(name):
            raise SchemaError(
                f"{path}: `fill` has a value for {name!r}, which is no column; {_there_are(path, names)}"
            )
    named = dict(fill)
    return tuple(
        named[name] if name in named else _matching(name, type_, patterns) for name, type_ in types.items()
    )


def _is_pattern(name: str) -> bool:
    return name == EVERY_NUMBER or MAGIC.search(name) is not None


def _matching(name: str, type_: pa.DataType, patterns: Sequence[tuple[str, Any]]) -> Any:
    numeric = arrow.holds_numbers(type_)
    matches = [
        value
        for pattern, value in patterns
        if (numeric if pattern == EVERY_NUMBER else fnmatch.fnmatchcase(name, pattern))
    ]
    return matches[-1] if matches else None
