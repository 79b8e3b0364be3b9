"""Files of item embeddings: Parquet with the columns `item` and `embedding`, or a NumPy array."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from intune.pipelines.errors import CorruptError, DataError, NotFoundError, SchemaError, StorageError

METADATA_KEY = b"intune"


def write_embeddings(
    out: Path, ids: npt.NDArray[Any], vectors: npt.NDArray[Any], label: Mapping[str, str] | None = None
) -> None:
    """Write embeddings to Parquet, whole or not at all.

    Raises:
        StorageError: `out` cannot be written.
    """
    flat = pa.array(vectors.astype(np.float32).reshape(-1))
    table = pa.table(
        {
            "item": pa.array(ids.astype(np.int64)),
            "embedding": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
        }
    ).replace_schema_metadata({METADATA_KEY: json.dumps(dict(label or {}))})
    partial = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, partial)
        partial.replace(out)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise StorageError(
            f"embeddings cannot be written to {out} ({error}); choose another place"
        ) from error


def read_embeddings(path: Path, *, items: int) -> Tensor:
    """Embeddings from a file, float32, shape ``(items, dimensions)``, in the order of the ids.

    Args:
        path: Parquet with the columns `item` and `embedding` (lists of one length), or a NumPy file (`.npy`) of
            shape ``(items, dimensions)``.
        items: number of items; each must have one embedding.

    Raises:
        NotFoundError, CorruptError: there is no such file, or it is neither.
        SchemaError: it lacks a column, ids are no whole numbers, or embeddings no lists of numbers of one length.
        DataError: an item has none or several, a number is NaN or infinite, or all items have the same.
    """
    if not path.exists():
        raise NotFoundError(
            f"there are no embeddings at {path}; name a Parquet or .npy file of item embeddings"
        )
    return in_order(path, *(_read_npy(path) if path.suffix == ".npy" else _read_parquet(path)), items=items)


def in_order(path: Path, ids: npt.NDArray[Any], vectors: npt.NDArray[Any], *, items: int) -> Tensor:
    """Embeddings ``(items, dimensions)`` of the items `ids`, as `read_embeddings` gives them.

    Args:
        path: where they were read from or would be kept, for messages.
        ids, vectors: shapes ``(items,)`` and ``(items, dimensions)``.
        items: number of items.

    Raises:
        DataError: as of `read_embeddings`.
    """
    if len(vectors) != items or not np.array_equal(np.sort(ids), np.arange(items)):
        missing = np.setdiff1d(np.arange(items), ids)
        why = f"item {missing[0]} has none" if len(missing) else f"{len(vectors)} were found"
        raise DataError(
            f"{path} must hold one embedding for each of the {items} items, 0 to {items - 1}, but {why}; make it "
            f"from the same items"
        )
    # A number that is too large for float32 is infinite there, which is looked for next.
    with np.errstate(over="ignore"):
        vectors = vectors.astype(np.float32, copy=False)
    if not np.isfinite(vectors).all():
        bad = int(ids[~np.isfinite(vectors).all(axis=1)][0])
        raise DataError(f"{path}: the embedding of item {bad} holds NaN or infinite numbers; make it again")
    if items > 1 and (vectors == vectors[0]).all():
        raise DataError(
            f"{path}: all {items:,} items have the same embedding; make it from texts that tell them apart"
        )
    ordered = np.empty(vectors.shape, dtype=np.float32)
    ordered[ids] = vectors
    return torch.from_numpy(ordered)


def _read_npy(path: Path) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    try:
        # Not `numpy.load`, which makes other things of other files, whatever they are called.
        with path.open("rb") as file:
            vectors = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise CorruptError(f"{path} is not a NumPy file ({error}); save it with numpy.save") from error
    if vectors.ndim != 2 or vectors.dtype.kind not in "iuf" or not vectors.shape[1]:
        raise SchemaError(
            f"{path} must hold numbers of shape (items, dimensions), but {vectors.dtype} of shape {vectors.shape} "
            f"was found"
        )
    return np.arange(len(vectors)), vectors


def _read_parquet(path: Path) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise CorruptError(f"{path} is not Parquet ({error}); give a Parquet or .npy file") from error
    missing = [name for name in ("item", "embedding") if name not in table.column_names]
    if missing:
        raise SchemaError(
            f"{path} lacks the column {missing[0]}; embeddings have the columns item and embedding"
        )
    for name, kind, fits in (
        ("item", "whole numbers", pa.types.is_integer),
        ("embedding", "lists of numbers", _is_vector),
    ):
        found = table.schema.field(name).type
        if not fits(found) or table.column(name).null_count:
            nulls = ", some of them missing" if table.column(name).null_count else ""
            raise SchemaError(f"{path}: `{name}` must hold {kind}, but {found} was found{nulls}")
    lists = table.column("embedding").combine_chunks()
    flat = lists.flatten().to_numpy(zero_copy_only=False)
    # Of no lists there are no lengths, either.
    if pc.count_distinct(pc.list_value_length(lists)).as_py() != 1:
        raise SchemaError(f"{path}: lists in `embedding` must be of one length; make it with one model")
    if not len(flat):
        raise SchemaError(f"{path}: lists in `embedding` are empty; make it with a model that gives numbers")
    return table.column("item").to_numpy(), flat.reshape(len(table), -1)


def _is_vector(found: pa.DataType) -> bool:
    lists: bool = (
        pa.types.is_list(found) or pa.types.is_large_list(found) or pa.types.is_fixed_size_list(found)
    )
    return lists and (pa.types.is_floating(found.value_type) or pa.types.is_integer(found.value_type))


def read_label(path: Path) -> dict[str, str] | None:
    """What `write_embeddings` was told of the file; None where it is not one of its files."""
    try:
        metadata = pq.read_schema(path).metadata or {}
        label = json.loads(metadata.get(METADATA_KEY, b"null"))
    except (pa.ArrowInvalid, OSError, json.JSONDecodeError):
        return None
    return label if isinstance(label, dict) else None
