"""Finding click logs in Parquet, and the pipeline that brings them to a model as ``dense``, ``sparse``, ``label``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from torch import Tensor

from intune.pipelines import Pipeline
from intune.pipelines.dataset import make_source, open_dataset
from intune.pipelines.errors import SchemaError
from intune.pipelines.schema import Ragged
from intune.pipelines.transforms import Compose, Select, Vocabulary, VocabularyBuilder
from intune.pipelines.transforms.criteo import DENSE, SPARSE, criteo
from intune.workloads.data.description import DATASET_FILE, read_description
from intune.workloads.data.rating_clicks import CLICKS, RatingClicksOptions, write_rating_clicks

LABEL = "label"

MISSING_ID = -1
"""Stands for a missing integer id: Criteo's are 32-bit numbers, so no other id is negative."""

VOCABULARY_BATCH = 65_536
"""Rows whose ids are counted at once."""


@dataclass(frozen=True, kw_only=True)
class ClickColumns:
    """Names of a click log's columns; Criteo's, where nothing else is said.

    Attributes:
        label: 0 or 1.
        dense: numbers; may be none.
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

    def pipeline(self, paths: Sequence[str]) -> Pipeline:
        """Rows of these files, missing integer ids filled in."""
        integers = [
            name
            for name in self.columns.sparse
            if pa.types.is_integer(_element(self.schema.field(name).type))
        ]
        return Pipeline.from_parquet(
            paths,
            columns=self.columns.all,
            fill=dict.fromkeys(integers, MISSING_ID),
            filesystem=self.filesystem,
        )


def find_click_data(data: str) -> ClickData:
    """Look at what `data` names.

    Args:
        data: a folder as `intune data` writes it (``train``, ``test``, ``dataset.json``); or a file, folder, glob or
            URI of Parquet files, of which the last is held out if there are several. A folder of MovieLens's ratings
            is made click logs of first, once; they are kept in it (see `data.rating_clicks`).

    Raises:
        NotFoundError, CorruptError, StorageError: there are no usable files.
        SchemaError: the files lack columns of click logs.
    """
    folder = Path(data)
    if (folder / "ratings").is_dir():
        folder /= CLICKS
        if not (folder / DATASET_FILE).exists():
            write_rating_clicks(Path(data), RatingClicksOptions(), folder)
    described: dict[str, Any] = {}
    if (folder / "train").is_dir():
        if (folder / DATASET_FILE).exists():
            described = read_description(folder)
        found = open_dataset(make_source(str(folder / "train")))
        train = [file.path for file in found.files]
        test: list[str] = []
        if (folder / "test").is_dir():
            test = [file.path for file in open_dataset(make_source(str(folder / "test"))).files]
    else:
        found = open_dataset(make_source(data))
        paths = [file.path for file in found.files]
        train, test = (paths[:-1], paths[-1:]) if len(paths) > 1 else (paths, [])
    columns = _columns(described)
    missing = [name for name in columns.all if name not in found.schema.names]
    if missing:
        raise SchemaError(
            f"{data} lacks the columns {', '.join(missing)}; click logs have {LABEL}, {DENSE[0]} … {DENSE[-1]} and "
            f"{SPARSE[0]} … {SPARSE[-1]}: convert them with `intune data criteo`, rename them, or say in "
            f"{DATASET_FILE} what yours are called"
        )
    cardinalities = described.get("cardinalities")
    return ClickData(
        filesystem=found.filesystem,
        columns=columns,
        train=tuple(train),
        test=tuple(test),
        schema=found.schema,
        cardinalities=None
        if cardinalities is None
        else tuple(cardinalities[name] for name in columns.sparse),
        best_auc=described.get("teacher", {}).get("auc", {}).get("test"),
    )


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


def build_vocabulary(data: ClickData) -> Vocabulary:
    """Every id of the training rows, one pass over them; whatever else turns up is id 0."""
    names = list(data.columns.sparse)
    builder = VocabularyBuilder(names)
    pipeline = data.pipeline(data.train).map(Select(columns=names)).batch(VOCABULARY_BATCH)
    with pipeline.loader(executor="threads") as loader:
        for batch in loader:
            builder.update({name: _as_array(batch[name]) for name in names})
    return builder.build()


def _transform(data: ClickData, ids: Sequence[int] | int | Vocabulary) -> Compose:
    columns, multi_hot = data.columns, data.has_lists
    size = None if isinstance(ids, Vocabulary) else ids if isinstance(ids, int) else list(ids)
    vocabulary = ids if isinstance(ids, Vocabulary) else None
    return criteo(
        size=size,
        vocabulary=vocabulary,
        multi_hot=multi_hot,
        dense=columns.dense,
        sparse=columns.sparse,
        label=columns.label,
    )


def _columns(described: dict[str, Any]) -> ClickColumns:
    """The columns that a data set's description names."""
    given = described.get("columns")
    if given is None:
        return ClickColumns()
    return ClickColumns(label=given["label"], dense=tuple(given["dense"]), sparse=tuple(given["categorical"]))


def _as_array(column: Any) -> Any:
    """A delivered column as it was in the pipeline: tensors as NumPy arrays over the same memory."""
    if isinstance(column, Ragged):
        return Ragged(_as_array(column.values), _as_array(column.offsets))
    return column.numpy() if isinstance(column, Tensor) else column


def _is_list(type_: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)
    )


def _element(type_: pa.DataType) -> pa.DataType:
    return type_.value_type if _is_list(type_) else type_
