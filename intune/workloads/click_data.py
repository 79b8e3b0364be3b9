"""Finding click logs in Parquet, and the pipeline that brings them to a model as ``dense``, ``sparse``, ``label``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from intune.pipelines import Budget, Pipeline
from intune.pipelines.dataset import make_source, open_dataset
from intune.pipelines.errors import SchemaError
from intune.pipelines.transforms import Vocabulary, VocabularyBuilder
from intune.pipelines.transforms.criteo import DENSE, SPARSE, criteo
from intune.workloads.click_labels import LABEL, MISSING_LABEL, Labelled
from intune.workloads.data.description import DATASET_FILE, read_description
from intune.workloads.data.rating_clicks import CLICKS, RatingClicksOptions, write_rating_clicks

MISSING_ID = -1
"""Stands for a missing integer id: Criteo's are 32-bit numbers, so no other id is negative. Where the type knows no
negative numbers, its highest one does."""

READ_THROUGH_BATCH = 65_536
"""Rows looked at at once where data is read through before training."""

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
        schema: Arrow schema of the files.
        cardinalities: distinct ids of each categorical feature, where known.
        best_auc: the AUC of the teacher that drew the held-out labels, where there is one.
    """

    filesystem: Any
    columns: ClickColumns
    train: tuple[str, ...]
    test: tuple[str, ...]
    schema: pa.Schema
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
        """What stands for a null in those of the columns that hold integers or lists of them; 0, in booleans, too."""
        types = {name: _element(self.schema.field(name).type) for name in names}
        return {
            name: (1 << type_.bit_width) - 1 if fill < 0 and pa.types.is_unsigned_integer(type_) else fill
            for name, type_ in types.items()
            if pa.types.is_integer(type_) or (pa.types.is_boolean(type_) and fill == 0)
        }


def find_click_data(data: str) -> ClickData:
    """Look at what `data` names.

    Args:
        data: a folder as `intune data` writes it (``train``, ``test``, ``dataset.json``); or a file, folder, glob or
            URI of Parquet files, of which the last is held out if there are several; on a local disk, a
            ``dataset.json`` beside them describes them. A folder of MovieLens's ratings is made click logs of first,
            once; they are kept in it (see `data.rating_clicks`).

    Raises:
        NotFoundError, CorruptError, StorageError: there are no usable files.
        SchemaError: the files lack columns of click logs, those of ``test`` hold them as something else than those of
            ``train``, or what describes them says too little.
    """
    folder = Path(data)
    if (folder / "ratings").is_dir():
        folder /= CLICKS
        if not (folder / DATASET_FILE).exists():
            write_rating_clicks(Path(data), RatingClicksOptions(), folder)
    # A URI is no path; beside such files nothing is looked for.
    description = (folder if folder.is_dir() else folder.parent) / DATASET_FILE
    described = read_description(description.parent) if description.exists() else {}
    held_out = None
    if (folder / "train").is_dir():
        found = open_dataset(make_source(str(folder / "train")))
        train = [file.path for file in found.files]
        test: list[str] = []
        if (folder / "test").is_dir():
            held_out = open_dataset(make_source(str(folder / "test")))
            test = [file.path for file in held_out.files]
    else:
        found = open_dataset(make_source(data))
        paths = [file.path for file in found.files]
        train, test = (paths[:-1], paths[-1:]) if len(paths) > 1 else (paths, [])
    columns = _columns(described, description)
    missing = [name for name in columns.all if name not in found.schema.names]
    if missing:
        lacking = f"{data} lacks the columns {', '.join(missing)}"
        if "columns" in described:
            raise SchemaError(f"{lacking}, which {description} names; mend it")
        raise SchemaError(
            f"{lacking}; click logs have {LABEL}, {DENSE[0]} … {DENSE[-1]} and {SPARSE[0]} … {SPARSE[-1]}: convert "
            f"them with `intune data criteo`, rename them, or say what yours are called in a {DATASET_FILE} beside "
            f"them, on a local disk: {_WRITTEN}"
        )
    if held_out is not None:
        _check_alike(columns, found.schema, held_out.schema, folder)
    made = ClickData(
        filesystem=found.filesystem,
        columns=columns,
        train=tuple(train),
        test=tuple(test),
        schema=found.schema,
        cardinalities=_cardinalities(described, columns, description),
        best_auc=described.get("teacher", {}).get("auc", {}).get("test"),
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


def check_held_out_labels(data: ClickData, budget: Budget) -> None:
    """Read the held-out rows' labels and nothing else: what is wrong with them shall not be found after training.

    It costs a small part of what one evaluation does, which reads all columns.

    Raises:
        DataError: a label is neither 0 nor 1.
    """
    pipeline = data.pipeline(data.test, [data.columns.label]).batch(READ_THROUGH_BATCH)
    labels = pipeline.map(Labelled(label=data.columns.label))
    with labels.loader(executor="threads", budget=budget) as loader:
        for _ in loader:
            pass


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


def _columns(described: Mapping[str, Any], file: Path) -> ClickColumns:
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


def _cardinalities(described: Mapping[str, Any], columns: ClickColumns, file: Path) -> tuple[int, ...] | None:
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


def _check_alike(columns: ClickColumns, train: pa.Schema, test: pa.Schema, folder: Path) -> None:
    """Raise a `SchemaError` unless the features are held out as what they are trained on: the id 7 and the text "7" are
    two ids, so that a model would be judged by ids that it has never seen."""
    for name in (*columns.dense, *columns.sparse):
        if name not in test.names:
            raise SchemaError(
                f"{folder / 'test'} lacks the column {name}, which is trained on; write it there too"
            )
        kinds = [_kind(schema.field(name).type) for schema in (train, test)]
        if kinds[0] == kinds[1] or (name in columns.dense and {*kinds} == {"floats", "whole numbers"}):
            continue
        raise SchemaError(
            f"{folder / 'test'}: column `{name}` holds {kinds[1]}, but {kinds[0]} in {folder / 'train'}; write both "
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
