"""Finding click logs in Parquet, and the pipeline that brings them to a model as ``dense``, ``sparse``, ``label``."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from intune.pipelines import Budget, Pipeline
from intune.pipelines.errors import DataError, SchemaError
from intune.pipelines.reading.dataset import Dataset, FileEntry, open_dataset
from intune.pipelines.reading.footers import read_footer
from intune.pipelines.reading.paths import find
from intune.pipelines.reading.source import make_source
from intune.pipelines.transforms import Vocabulary, VocabularyBuilder
from intune.pipelines.transforms.criteo import DENSE, SPARSE, criteo
from intune.workloads.clicks.columns import (
    WRITTEN,
    ClickColumns,
    check_alike,
    check_kinds,
    element,
    highest,
    is_list,
    parse_cardinalities,
    parse_columns,
)
from intune.workloads.clicks.files import ClickFiles, find_click_files
from intune.workloads.clicks.labels import LABEL, MISSING_LABEL, Labelled
from intune.workloads.data.description import DATASET_FILE
from intune.workloads.data.rating_clicks import clicks_of

MISSING_ID = -1
"""Stands for a missing integer id: Criteo's are 32-bit numbers, so no other id is negative. Where a type that the
column has knows no negative numbers, the highest one that all of its types know does."""

READ_THROUGH_BATCH = 65_536
"""Rows looked at at once where ids are read through before training."""

EVALUATION_BATCH = 8192
"""Rows of an evaluation batch, at least: how rows are grouped does not change the score, and few batches cost less."""


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
        return any(is_list(self.schema.field(name).type) for name in self.columns.sparse)

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
        """What stands for a null in those of the columns that hold whole numbers, booleans or lists of them: the same
        in training and held-out rows."""
        schemas = [self.schema] if self.test_schema is None else [self.schema, self.test_schema]
        found = {}
        for name in names:
            types = [element(schema.field(name).type) for schema in schemas]
            whole = [type_ for type_ in types if pa.types.is_integer(type_) or pa.types.is_temporal(type_)]
            if fill < 0 and any(pa.types.is_unsigned_integer(type_) for type_ in whole):
                found[name] = min(highest(type_) for type_ in whole)
            elif whole or any(pa.types.is_boolean(type_) for type_ in types):
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
    columns = parse_columns(files.described, files.description)
    found = _open(files.train, files.filesystem, columns, _remedy(files))
    check_kinds(columns, found.schema, files.train)
    train, test, held_out = found.files, found.files[:0], None
    if files.test is not None:
        held_out = _open(
            files.test, files.filesystem, columns, ", which are trained on; write them there too"
        )
        test = held_out.files
        check_alike(columns, found.schema, held_out.schema, files)
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
        cardinalities=parse_cardinalities(files.described, columns, files.description),
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
        f"`intune data criteo`, rename them, or say what yours are called in a {DATASET_FILE} beside them: {WRITTEN}"
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
    if pa.types.is_boolean(found.schema.field(columns.label).type):
        for file in found.files:
            _check_no_nulls(file, columns.label)
    return found


def _check_no_nulls(file: FileEntry, name: str) -> None:
    """Raise a `SchemaError` where the file's footer, if it is at hand, tells of nulls in a label of booleans."""
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
            f"{file.path}: column `{name}` holds null in {nulls:,} of {sum(file.rows):,} rows, but labels are "
            f"0 or 1; leave those rows out, or write false or true there"
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
