"""Finding click logs in Parquet, and the pipeline that brings them to a model as ``dense``, ``sparse``, ``label``."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from intune.pipelines import Budget, Pipeline
from intune.pipelines.dataset import Dataset, FileEntry, open_dataset
from intune.pipelines.errors import DataError, SchemaError
from intune.pipelines.footers import read_footer
from intune.pipelines.paths import find
from intune.pipelines.source import make_source
from intune.pipelines.transforms import Vocabulary, VocabularyBuilder
from intune.pipelines.transforms.criteo import DENSE, SPARSE, criteo
from intune.workloads.click_files import ClickFiles, find_click_files
from intune.workloads.click_labels import LABEL, MISSING_LABEL, Labelled
from intune.workloads.data.description import DATASET_FILE
from intune.workloads.data.rating_clicks import clicks_of

MISSING_ID = -1
"""Stands for a missing integer id: Criteo's are 32-bit numbers, so no other id is negative. Where a type that the
column has knows no negative numbers, the highest one that all of its types know does."""

READ_THROUGH_BATCH = 65_536
"""Rows looked at at once where ids are read through before training."""

EVALUATION_BATCH = 8192
"""Rows of an evaluation batch, at least: how rows are grouped does not change the score, and few batches cost less."""

_TEXT = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
)
"""Tests of types whose values are hashed by their bytes."""

_WRITTEN = '{"schema_version": 1, "columns": {"label": "…", "dense": ["…"], "categorical": ["…"]}}'
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


@dataclass(frozen=True, kw_only=True)
class ClickData:
    """Files of click logs.

    Attributes:
        filesystem: the pyarrow filesystem that the paths belong to.
        columns: which of them are what.
        train, test: paths; `test` is empty where nothing is held out.
        schema: Arrow schema of the training files, as far as `columns` goes.
        rows: that are trained on.
        test_schema: of the held-out files, where it is another.
        cardinalities: distinct ids of each categorical feature, where known.
        best_auc: the AUC of the teacher that drew the held-out labels, where there is one.
    """

    filesystem: Any
    columns: ClickColumns
    train: tuple[str, ...]
    test: tuple[str, ...]
    schema: pa.Schema
    rows: int
    test_schema: pa.Schema | None = None
    cardinalities: tuple[int, ...] | None = None
    best_auc: float | None = None

    @property
    def has_lists(self) -> bool:
        """Whether any categorical feature is a list of ids."""
        return any(_is_list(self.schema.field(name).type) for name in self.columns.sparse)

    def pipeline(self, paths: Sequence[str], columns: Sequence[str] | None = None) -> Pipeline:
        """Rows of these files, missing integers filled in; all columns where none are named."""
        fill = {
            **self._integers(self.columns.dense, 0),
            **self._integers(self.columns.sparse, MISSING_ID),
            **self._integers([self.columns.label], MISSING_LABEL),
        }
        return Pipeline.from_parquet(
            paths,
            columns=self.columns.all if columns is None else columns,
            fill=fill,
            filesystem=self.filesystem,
        )

    def _integers(self, names: Sequence[str], fill: int) -> dict[str, int]:
        """What stands for a null in those of the columns that hold whole numbers or lists of them, the same in training
        and held-out rows; 0, in booleans, too."""
        schemas = [self.schema] if self.test_schema is None else [self.schema, self.test_schema]
        found = {}
        for name in names:
            types = [_element(schema.field(name).type) for schema in schemas]
            whole = [type_ for type_ in types if pa.types.is_integer(type_) or pa.types.is_temporal(type_)]
            if fill < 0 and any(pa.types.is_unsigned_integer(type_) for type_ in whole):
                found[name] = min(_highest(type_) for type_ in whole)
            elif whole or (fill == 0 and any(pa.types.is_boolean(type_) for type_ in types)):
                found[name] = fill
        return found


def find_click_data(data: str) -> ClickData:
    """Look at what `data` names.

    Args:
        data: path, glob or URI of a data set as `intune data` writes it (``train``, ``test``, ``dataset.json``), or of
            Parquet files, of which the last is held out if there are several; a ``dataset.json`` beside them describes
            them. A folder of MovieLens's ratings is made click logs of first,
            once; they are kept in it (see `data.rating_clicks`).

    Raises:
        NotFoundError, CorruptError, StorageError: there are no usable files.
        SchemaError: the files lack columns of click logs, hold them as what no model takes, those of ``test`` as
            something else than those of ``train``, or what describes them says too little.
    """
    folder = Path(os.path.expanduser(data))
    files = find_click_files(str(clicks_of(folder)) if (folder / "ratings").is_dir() else data)
    columns = _columns(files.described, files.description)
    found = _open(files.train, files.filesystem, columns, _remedy(files))
    _check_kinds(columns, found.schema, files.train)
    train, test, held_out = found.files, found.files[:0], None
    if files.test is not None:
        held_out = _open(
            files.test, files.filesystem, columns, ", which are trained on; write them there too"
        )
        test = held_out.files
        _check_alike(columns, found.schema, held_out.schema, files)
    elif files.filesystem is None:
        # Spark writes a file for each of its partitions, also for those without rows.
        filled = tuple(file for file in train if sum(file.rows))
        if len(filled) > 1:
            train, test = filled[:-1], filled[-1:]
    made = ClickData(
        filesystem=found.filesystem,
        columns=columns,
        train=tuple(file.path for file in train),
        test=tuple(file.path for file in test),
        schema=found.schema,
        rows=sum(sum(file.rows) for file in train),
        test_schema=None if held_out is None else held_out.schema,
        cardinalities=_cardinalities(files.described, columns, files.description),
        best_auc=files.described.get("teacher", {}).get("auc", {}).get("test"),
    )
    clash = [name for name in columns.sparse if name in (LABEL, "dense", "sparse")]
    if clash and made.has_lists:
        raise SchemaError(
            f"{data} has lists of ids, whose columns keep their names in a batch, but `{clash[0]}` has another meaning "
            f"there; give the column another name"
        )
    return made


def to_batches(
    data: ClickData,
    paths: Sequence[str],
    *,
    batch_size: int,
    ids: Sequence[int] | int | Vocabulary,
    shuffle: int = 0,
    seed: int = 0,
    drop_last: bool = False,
    device: str = "cpu",
) -> Pipeline:
    """The pipeline from files to batches for `ClickModel.loss`.

    Args:
        data: what the files belong to.
        paths: the files, `data.train` or `data.test`.
        batch_size: rows a batch.
        ids: what becomes of ids: hashed into each feature's table, whose rows are listed; all hashed to words below a
            number; or looked up.
        shuffle: window, in row groups; 0 to keep the order.
        seed: of the shuffle.
        drop_last: leave out the rows that do not fill a batch.
        device: where batches go.
    """
    pipeline = data.pipeline(paths)
    if shuffle:
        pipeline = pipeline.shuffle(shuffle, seed=seed)
    return pipeline.batch(batch_size, drop_last=drop_last).map(_transform(data, ids)).to(device)


def build_vocabulary(data: ClickData, budget: Budget | None = None) -> Vocabulary:
    """Every id of the training rows, one pass over them within `budget`; whatever else turns up is id 0."""
    names = list(data.columns.sparse)
    builder = VocabularyBuilder(names)
    rows = data.pipeline(data.train, names).batch(READ_THROUGH_BATCH)
    with rows.loader(executor="threads", budget=budget) as loader:
        for batch in loader:
            builder.update(batch)
    return builder.build()


def check_held_out(data: ClickData, ids: Sequence[int] | int | Vocabulary, budget: Budget) -> None:
    """Read the held-out rows as evaluation will: what is wrong with them shall not be found after training.

    It costs one evaluation less what the model computes: the pipeline alone, which is little beside training unless
    much more is held out than trained on.

    Args:
        data: whose held-out rows they are.
        ids: as of `to_batches`.
        budget: of the reading.

    Raises:
        DataError: a file cannot be read, or a label or a feature cannot be used.
    """
    with to_batches(data, data.test, batch_size=EVALUATION_BATCH, ids=ids).loader(
        executor="threads", budget=budget
    ) as loader:
        for _ in loader:
            pass


def _remedy(files: ClickFiles) -> str:
    """What ends a message of columns that are missing."""
    if "columns" in files.described:
        return f", which {files.description} names; mend it"
    return (
        f"; click logs have {LABEL}, {DENSE[0]} … {DENSE[-1]} and {SPARSE[0]} … {SPARSE[-1]}: convert them with "
        f"`intune data criteo`, rename them, or say what yours are called in a {DATASET_FILE} beside them: {_WRITTEN}"
    )


def _open(files: str, filesystem: Any, columns: ClickColumns, remedy: str) -> Dataset:
    """These files as far as the columns go: what others hold is nobody's concern.

    Raises:
        SchemaError: the first file lacks some of them, which is said with the `remedy`; or a file holds what has no
            place in a batch.
    """
    # Looked for by their names: what is read may be named by patterns.
    where, infos, _ = find([files], filesystem, sleep=time.sleep)
    first = read_footer(where, infos[0], 0, time.sleep, None)
    if isinstance(first, DataError):
        raise first
    missing = [name for name in columns.all if name not in first.schema.names]
    if missing:
        raise SchemaError(f"{files} lacks the columns {', '.join(missing)}{remedy}")
    found = open_dataset(make_source(files, columns=columns.all, filesystem=filesystem))
    for name in (columns.label, *columns.sparse):
        if pa.types.is_boolean(found.schema.field(name).type):
            for file in found.files:
                _check_no_nulls(file, name)
    return found


def _check_no_nulls(file: FileEntry, name: str) -> None:
    """Raise a `SchemaError` where the file's footer, if it is at hand, tells of nulls in a column of booleans, which
    have no third value to stand for them."""
    if file.footer is None:
        return
    nulls = 0
    for number in range(file.footer.num_row_groups):
        group = file.footer.row_group(number)
        for column in map(group.column, range(group.num_columns)):
            if column.path_in_schema == name and column.statistics is not None:
                nulls += column.statistics.null_count or 0
    if nulls:
        raise SchemaError(
            f"{file.path}: column `{name}` holds null in {nulls:,} of {sum(file.rows):,} rows, for which booleans have "
            f"no value; leave those rows out, write false or true there or, if it is an id, write it as whole numbers "
            f"or text"
        )


def _transform(data: ClickData, ids: Sequence[int] | int | Vocabulary) -> Labelled:
    columns = data.columns
    size = None if isinstance(ids, Vocabulary) else ids if isinstance(ids, int) else list(ids)
    features = criteo(
        size=size,
        vocabulary=ids if isinstance(ids, Vocabulary) else None,
        multi_hot=data.has_lists,
        dense=columns.dense,
        sparse=columns.sparse,
        label=None,
    )
    return Labelled(label=columns.label, features=features)


def _columns(described: Mapping[str, Any], file: str) -> ClickColumns:
    """The columns that a data set's description, read from `file`, names."""
    given = described.get("columns")
    if given is None:
        return ClickColumns()
    remedy = f"write {_WRITTEN}, with [] for no dense columns, or leave `columns` out for Criteo's"
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


def _cardinalities(described: Mapping[str, Any], columns: ClickColumns, file: str) -> tuple[int, ...] | None:
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


def _check_kinds(columns: ClickColumns, schema: pa.Schema, files: str) -> None:
    """Raise a `SchemaError` where ids are floats, which are neither hashed nor counted, or dense columns no numbers."""
    for name in columns.dense:
        kind = _kind(schema.field(name).type)
        if kind == "text" or kind.startswith("lists"):
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


def _check_alike(columns: ClickColumns, train: pa.Schema, test: pa.Schema, files: ClickFiles) -> None:
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
    if _is_list(type_):
        return f"lists of {_kind(type_.value_type)}"
    if pa.types.is_dictionary(type_):
        return _kind(type_.value_type)
    if any(is_text(type_) for is_text in _TEXT):
        return "text"
    if pa.types.is_floating(type_):
        return "floats"
    whole = pa.types.is_integer(type_) or pa.types.is_boolean(type_)
    return "whole numbers" if whole else str(type_)


def _is_list(type_: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)
    )


def _element(type_: pa.DataType) -> pa.DataType:
    return type_.value_type if _is_list(type_) else type_


def _highest(type_: pa.DataType) -> int:
    """The highest number that a type of whole numbers knows."""
    bits: int = type_.bit_width if pa.types.is_unsigned_integer(type_) else type_.bit_width - 1
    return (1 << bits) - 1
