"""Which columns of a click log are what: as its description names them, and what their types may be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from intune.pipelines.errors import SchemaError
from intune.pipelines.transforms.criteo import DENSE, SPARSE
from intune.workloads.clicks.files import ClickFiles
from intune.workloads.clicks.labels import LABEL
from intune.workloads.data.description import DATASET_FILE

_TEXT = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
)
"""Tests of types whose values are hashed by their bytes."""

WRITTEN = '{"schema_version": 1, "columns": {"label": "…", "dense": ["…"], "categorical": ["…"]}}'
"""What a description that names columns looks like, for messages."""


@dataclass(frozen=True, kw_only=True)
class ClickColumns:
    """Names of a click log's columns; Criteo's, where nothing else is said.

    Attributes:
        label: 0 or 1.
        dense: numbers, of which `criteo` takes log(1 + x), with 0 for negative and missing ones; may be none.
        sparse: ids, or lists of them.
    """

    label: str = LABEL
    dense: tuple[str, ...] = DENSE
    sparse: tuple[str, ...] = SPARSE

    @property
    def all(self) -> list[str]:
        """All columns, the label first."""
        return [self.label, *self.dense, *self.sparse]


def parse_columns(described: Mapping[str, Any], file: str) -> ClickColumns:
    """The columns that a data set's description, read from `file`, names."""
    given = described.get("columns")
    if given is None:
        return ClickColumns()
    remedy = f"write {WRITTEN}, with [] for no dense columns, or leave `columns` out for Criteo's"
    if not isinstance(given, Mapping):
        raise SchemaError(f"{file} has `columns` {given!r}; {remedy}")
    missing = [f"`columns.{key}`" for key in ("label", "dense", "categorical") if key not in given]
    if missing:
        raise SchemaError(f"{file} has no {', '.join(missing)}; {remedy}")
    label, dense, sparse = given["label"], given["dense"], given["categorical"]
    for key, names in (("label", [label]), ("dense", dense), ("categorical", sparse)):
        if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
            raise SchemaError(f"{file} has `columns.{key}` {given[key]!r}; {remedy}")
    if not sparse:
        raise SchemaError(f"{file} has no name in `columns.categorical`; click models need one at least")
    columns = ClickColumns(label=label, dense=tuple(dense), sparse=tuple(sparse))
    twice = [name for name, count in Counter(columns.all).items() if count > 1]
    if twice:
        raise SchemaError(f"{file} names the column `{twice[0]}` twice in `columns`; give it one place")
    return columns


def parse_cardinalities(
    described: Mapping[str, Any], columns: ClickColumns, file: str
) -> tuple[int, ...] | None:
    """Distinct ids of each categorical feature, where the description knows them."""
    given = described.get("cardinalities")
    if given is None:
        return None
    remedy = "write how many distinct ids each categorical column has, or leave `cardinalities` out"
    if not isinstance(given, Mapping):
        raise SchemaError(f"{file} has `cardinalities` {given!r}; {remedy}")
    for name in columns.sparse:
        if name not in given:
            raise SchemaError(f"{file} has no `cardinalities.{name}`; {remedy}")
        if type(given[name]) is not int or given[name] < 0:
            raise SchemaError(f"{file} has `cardinalities.{name}` {given[name]!r}; {remedy}")
    return tuple(given[name] for name in columns.sparse)


def check_kinds(columns: ClickColumns, schema: pa.Schema, files: str) -> None:
    """Raise a `SchemaError` where ids are floats, which are neither hashed nor counted, or dense columns no numbers."""
    for name in columns.dense:
        kind = _kind(schema.field(name).type)
        if kind not in ("floats", "whole numbers"):
            raise SchemaError(
                f"{files}: column `{name}` holds {kind}, but dense columns hold a number a row; write it so, or name "
                f"it among the categorical ones in {DATASET_FILE}"
            )
    for name in columns.sparse:
        if (kind := _kind(schema.field(name).type)) in ("floats", "lists of floats"):
            raise SchemaError(
                f"{files}: column `{name}` holds {kind}, but ids are whole numbers or text; write it so (pandas makes "
                f"floats of whole numbers of which some are missing, unless they are of its type Int64)"
            )


def check_alike(columns: ClickColumns, train: pa.Schema, test: pa.Schema, files: ClickFiles) -> None:
    """Raise a `SchemaError` unless the features are held out as what they are trained on: the id 7 and the text "7" are
    two ids, so that a model would be judged by ids that it has never seen."""
    for name in (*columns.dense, *columns.sparse):
        kinds = [_kind(schema.field(name).type) for schema in (train, test)]
        if kinds[0] == kinds[1] or (name in columns.dense and {*kinds} == {"floats", "whole numbers"}):
            continue
        raise SchemaError(
            f"{files.test}: column `{name}` holds {kinds[1]}, but {kinds[0]} in {files.train}; write both "
            f"alike"
        )


def _kind(type_: pa.DataType) -> str:
    """What a column of that type holds, as far as ids differ by it."""
    if is_list(type_):
        return f"lists of {_kind(type_.value_type)}"
    if pa.types.is_dictionary(type_):
        return _kind(type_.value_type)
    if any(is_text(type_) for is_text in _TEXT):
        return "text"
    if pa.types.is_floating(type_):
        return "floats"
    whole = pa.types.is_integer(type_) or pa.types.is_boolean(type_)
    return "whole numbers" if whole else str(type_)


def is_list(type_: pa.DataType) -> bool:
    """Whether a column of that type holds lists, of any kind that a model takes."""
    return bool(
        pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)
    )


def element(type_: pa.DataType) -> pa.DataType:
    """The type of a list's values; of anything else its own."""
    return type_.value_type if is_list(type_) else type_


def highest(type_: pa.DataType) -> int:
    """The highest number that a type of whole numbers knows."""
    bits: int = type_.bit_width if pa.types.is_unsigned_integer(type_) else type_.bit_width - 1
    return (1 << bits) - 1
