"""Writes a data set of interactions: every table that the bundled recommenders read, split once for all of them.

``ratings/{train,valid,test}``, ``sessions/{train,valid,test}``, ``users``, ``items``, ``series``, ``graph`` and
``dataset.json``; where held-out sessions begin with something, that is in ``ratings/context``. The columns are
described where they are made, in `tables.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from intune.pipelines.whole import at_least
from intune.workloads.data import tables
from intune.workloads.data.interactions import CleaningOptions, Interactions, clean
from intune.workloads.data.splits import CONTEXT, PARTS, SPLITS, TRAIN, Parts, SplitOptions, assign
from intune.workloads.data.tables import SeriesOptions
from intune.workloads.data.writer import PartWriter, Progress, new_dataset, write_description

ROW_GROUP_ROWS = 8192
"""Neighbouring small row groups are read together; small ones let a shuffle over some of them mix small data sets."""

ROWS_PER_FILE = 1 << 20

MOST_TABLES = 11
"""Of `_tables`, a context included: told as progress."""


@dataclass(frozen=True, kw_only=True)
class RatingsOptions:
    """How interactions become a data set.

    Attributes:
        cleaning: which count.
        split: which are held out.
        series: steps of time.
        row_group_rows: rows of a row group.
    """

    cleaning: CleaningOptions = field(default_factory=CleaningOptions)
    split: SplitOptions = field(default_factory=SplitOptions)
    series: SeriesOptions = field(default_factory=SeriesOptions)
    row_group_rows: int = ROW_GROUP_ROWS

    def __post_init__(self) -> None:
        at_least("row_group_rows", self.row_group_rows, 1)


def write_ratings(
    found: Interactions,
    options: RatingsOptions,
    out: Path,
    *,
    kind: str,
    progress: Progress | None = None,
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write `found` to the folder `out`, which must be new or empty.

    Args:
        found, options, out: what, how and where to.
        kind: of data set, for `dataset.json`.
        progress: told of every table.
        more: what `dataset.json` shall hold beside, JSON values only.

    Returns:
        What has been written to `dataset.json` (see `read_description`).

    Raises:
        DataError: see `clean` and `assign`.
        ConfigError: `out` is not empty, or `step_days` is too short.
        StorageError: writing failed; nothing is left behind.
    """
    found, left = clean(found, options.cleaning)
    parts = assign(found.user, found.timestamp, options.split)
    files: dict[str, int] = {}
    with new_dataset(out) as folder:
        rows = 0
        for done, (name, table) in enumerate(_tables(found, parts, options), start=1):
            files[name] = _write(folder / name, table, kind, options.row_group_rows)
            rows += table.num_rows
            if progress is not None:
                progress(rows, done / MOST_TABLES)
        series, start = tables.series(found, options.series)
        _write(folder / "series", series, kind, options.row_group_rows)
        description = {
            "kind": kind,
            **_describe(found, parts, options),
            "files": {split: files[f"ratings/{split}"] for split in SPLITS},
            "left_out": asdict(left),
            "series": {
                "start": start,
                "step_s": options.series.step_s,
                "steps": len(series.column("velocity")[0]),
            },
            **(more or {}),
        }
        write_description(folder, description)
    return description


def _describe(found: Interactions, parts: Parts, options: RatingsOptions) -> dict[str, Any]:
    """What is known before anything is written."""
    cold = tables.cold(found, parts)
    return {
        "source": found.source,
        "users": found.users.num_rows,
        "items": found.items.num_rows,
        "rows": tables.split_counts(parts),
        "cold": {
            split: int(np.count_nonzero(cold & (parts == part))) for part, split in enumerate(SPLITS) if part
        },
        "items_without_title": int(found.items.column("title").null_count),
        "split": asdict(options.split),
        "cleaning": asdict(options.cleaning),
    }


def _tables(found: Interactions, parts: Parts, options: RatingsOptions) -> Iterator[tuple[str, pa.Table]]:
    """All tables but the series, each with its folder."""
    for part, split in enumerate(SPLITS):
        yield f"ratings/{split}", tables.ratings(found, parts, part)
        sessions = (
            tables.train_sessions(found, parts)
            if part == TRAIN
            else tables.held_out_sessions(found, parts, part)
        )
        yield f"sessions/{split}", sessions
    if np.any(parts == CONTEXT):
        yield f"ratings/{PARTS[CONTEXT]}", tables.ratings(found, parts, CONTEXT)
    yield from tables.entities(found, parts).items()
    yield "graph", tables.graph(found, parts)


def _write(folder: Path, table: pa.Table, kind: str, row_group_rows: int) -> int:
    """Write a table to ``part-…`` files in `folder`; how many."""
    files: int = max(1, -(-table.num_rows // ROWS_PER_FILE))
    for number in range(files):
        piece = table.slice(number * ROWS_PER_FILE, ROWS_PER_FILE).combine_chunks()
        path = folder / f"part-{number:05d}.parquet"
        with PartWriter(path, table.schema, row_group_rows=row_group_rows) as writer:
            for batch in piece.to_batches():
                writer.write(batch)
            writer.close({"kind": kind, "rows": piece.num_rows})
    return files
