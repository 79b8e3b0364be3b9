"""Finding click logs in Parquet, and the pipeline that brings them to a model as ``dense``, ``sparse``, ``label``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from intune.pipelines import Pipeline
from intune.pipelines.dataset import make_source, open_dataset
from intune.pipelines.errors import SchemaError
from intune.pipelines.transforms.criteo import DENSE, SPARSE, criteo
from intune.workloads.data.description import DATASET_FILE, read_description

LABEL = "label"

MISSING_ID = -1
"""Stands for a missing integer id: Criteo's are 32-bit numbers, so no other id is negative."""

LEAST_ROWS = 4096
"""Rows of the smallest table: hashed, the three values of C9 then collide once in 1,400 times, where a table of
three rows would lose one of them in seven cases of nine."""

ROWS_PER_ID = 16
"""Rows per id where a table is small: one id in sixteen shares its row with another."""

ROOMY_ROWS = 65_536
"""Tables are made no larger than this for the sake of fewer collisions; beyond, ids are mostly rare ones."""


@dataclass(frozen=True, kw_only=True)
class ClickData:
    """Files of click logs.

    Attributes:
        filesystem: the pyarrow filesystem that the paths belong to.
        train, test: paths; `test` is empty where nothing is held out.
        schema: Arrow schema of the files.
        cardinalities: distinct ids of each categorical feature, where known.
        best_auc: the AUC of the teacher that drew the held-out labels, where there is one.
    """

    filesystem: Any
    train: tuple[str, ...]
    test: tuple[str, ...]
    schema: pa.Schema
    cardinalities: tuple[int, ...] | None = None
    best_auc: float | None = None

    @property
    def has_lists(self) -> bool:
        """Whether any categorical feature is a list of ids."""
        return any(_is_list(self.schema.field(name).type) for name in SPARSE)

    def pipeline(self, paths: Sequence[str]) -> Pipeline:
        """Rows of these files, missing integer ids filled in."""
        integers = [name for name in SPARSE if pa.types.is_integer(_element(self.schema.field(name).type))]
        return Pipeline.from_parquet(
            paths,
            columns=[LABEL, *DENSE, *SPARSE],
            fill=dict.fromkeys(integers, MISSING_ID),
            filesystem=self.filesystem,
        )


def find_click_data(data: str) -> ClickData:
    """Look at what `data` names.

    Args:
        data: a folder as `intune data` writes it (``train``, ``test``, ``dataset.json``); or a file, folder, glob or
            URI of Parquet files, of which the last is held out if there are several.

    Raises:
        NotFoundError, CorruptError, StorageError: there are no usable files.
        SchemaError: the files lack columns of click logs.
    """
    folder = Path(data)
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
    missing = [name for name in (LABEL, *DENSE, *SPARSE) if name not in found.schema.names]
    if missing:
        raise SchemaError(
            f"{data} lacks the columns {', '.join(missing)}; click logs have {LABEL}, {DENSE[0]} … {DENSE[-1]} and "
            f"{SPARSE[0]} … {SPARSE[-1]}: convert them with `intune data criteo`, or rename the columns"
        )
    cardinalities = described.get("cardinalities")
    return ClickData(
        filesystem=found.filesystem,
        train=tuple(train),
        test=tuple(test),
        schema=found.schema,
        cardinalities=None if cardinalities is None else tuple(cardinalities[name] for name in SPARSE),
        best_auc=described.get("teacher", {}).get("auc", {}).get("test"),
    )


def hashed_rows(cardinalities: Sequence[int], most: int | None = None) -> tuple[int, ...]:
    """Rows of tables whose ids are hashed: more than there are ids where ids are few, so that few collide.

    Args:
        cardinalities: distinct ids of each feature.
        most: largest table; None for no limit.
    """
    roomy = (max(count, LEAST_ROWS, min(ROWS_PER_ID * count, ROOMY_ROWS)) for count in cardinalities)
    return tuple(rows if most is None else min(rows, most) for rows in roomy)


def to_batches(
    data: ClickData,
    paths: Sequence[str],
    *,
    batch_size: int,
    table_sizes: Sequence[int],
    shuffle: int = 0,
    seed: int = 0,
    drop_last: bool = False,
    device: str = "cpu",
) -> Pipeline:
    """The pipeline from files to batches for `DLRM.loss`.

    Args:
        data: what the files belong to.
        paths: the files, `data.train` or `data.test`.
        batch_size: rows a batch.
        table_sizes: rows of each feature's table, which ids are hashed into.
        shuffle: window, in row groups; 0 to keep the order.
        seed: of the shuffle.
        drop_last: leave out the rows that do not fill a batch.
        device: where batches go.
    """
    pipeline = data.pipeline(paths)
    if shuffle:
        pipeline = pipeline.shuffle(shuffle, seed=seed)
    transform = criteo(size=list(table_sizes), multi_hot=data.has_lists)
    return pipeline.batch(batch_size, drop_last=drop_last).map(transform).to(device)


def _is_list(type_: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)
    )


def _element(type_: pa.DataType) -> pa.DataType:
    return type_.value_type if _is_list(type_) else type_
