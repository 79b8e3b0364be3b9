"""What the tests of the pipeline share: an independent reference for the order of rows, and a check for leaks."""

from __future__ import annotations

import gc
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from intune.pipelines.reading import footers

Ids = list[int]
Files = Sequence[Sequence[Sequence[int]]]


def _open_parquet_files() -> set[str]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if target.endswith(".parquet"):
            found.add(f"{name} -> {target}")
    return found


def _workers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("intune-")}


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """After every test: no thread of the pipeline and no open data file that was not there before."""
    threads, files = _workers(), _open_parquet_files()
    yield
    if _workers() - threads or _open_parquet_files() - files:
        gc.collect()
    for thread in _workers() - threads:
        thread.join(60.0)
    left = sorted(thread.name for thread in _workers() - threads)
    assert not left, f"threads left behind: {left}"
    open_files = sorted(_open_parquet_files() - files)
    assert not open_files, f"files left open: {open_files}"


@pytest.fixture
def fresh_footers() -> None:
    """No footer is known from before."""
    footers.cache.clear()


def _blocks(files: Files, block_rows: int) -> list[Ids]:
    """Row groups, small neighbours of one file joined up to `block_rows`."""
    blocks: list[Ids] = []
    for groups in files:
        current: Ids = []
        for group in groups:
            if current and group and len(current) + len(group) > block_rows:
                blocks.append(current)
                current = []
            current = current + list(group)
        if current:
            blocks.append(current)
    return blocks


def _share(blocks: list[Ids], begin: int, end: int) -> list[Ids]:
    """The blocks' parts within rows ``[begin, end)`` of their concatenation."""
    cut, at = [], 0
    for block in blocks:
        part = [row for position, row in enumerate(block, at) if begin <= position < end]
        if part:
            cut.append(part)
        at += len(block)
    return cut


def _groups_of(items: list[Any], size: int) -> list[list[Any]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def expected_batches(
    files: Files,
    *,
    batch_size: int,
    drop_last: bool = False,
    shuffle: str | None = None,
    row_groups: int = 8,
    seed: int = 0,
    epoch: int = 0,
    rank: int = 0,
    world: int = 1,
    block_rows: int = 65_536,
) -> list[Ids]:
    """The batches of one rank as lists of row ids: the documented order, written out row by row.

    A shuffle before `batch` chooses a batch for every row of a window; within it rows keep their order.

    Args:
        files: for each file, for each row group, the ids of its rows.
        shuffle: ``"rows"`` (before `batch`), ``"batches"`` (after it) or None.
    """
    blocks = _blocks(files, block_rows)
    if shuffle == "rows":
        order = np.random.default_rng([seed, epoch]).permutation(len(blocks))
        blocks = [blocks[i] for i in order]
    total = sum(map(len, blocks))
    begin, end = rank * total // world, (rank + 1) * total // world
    share = end - begin
    if drop_last:
        sizes = [batch_size] * (total // world // batch_size)
    elif batch_size == 1:
        sizes = [1] * share
    else:
        count = math.ceil(math.ceil(total / world) / batch_size)
        full, rest = divmod(share, batch_size)
        sizes = [batch_size] * full + ([rest] if rest else [])
        if len(sizes) < count:  # one row short of a batch of its own: the batch before gives it one
            sizes = [*sizes[:-1], batch_size - 1, 1]
    blocks = _share(blocks, begin, begin + sum(sizes))
    if shuffle == "rows":
        windows = _groups_of(blocks, row_groups)
        if len(windows) > 1 and 2 * len(windows[-1]) < row_groups:
            last = windows.pop()
            windows[-1] = windows[-1] + last
        rows: Ids = []
        for index, window in enumerate(windows):
            before = [row for block in window for row in block]
            places = len(rows) + np.random.default_rng([seed, epoch, index]).permutation(len(before))
            batch_of = dict(zip(before, (places // batch_size).tolist(), strict=True))
            rows += sorted(before, key=lambda row: batch_of[row])  # stable: in a batch they keep their order
    else:
        rows = [row for block in blocks for row in block]
    batches, at = [], 0
    for size in sizes:
        batches.append(rows[at : at + size])
        at += size
    if shuffle == "batches":
        mean = len(rows) / len(blocks)
        per_window = max(1, round(row_groups * mean / batch_size))
        mixed: list[Ids] = []
        for start in range(0, len(batches), per_window):
            window = batches[start : start + per_window]
            order = np.random.default_rng([seed, epoch, start]).permutation(len(window))
            mixed += [window[i] for i in order]
        batches = mixed
    return batches


def number_rows(sizes: Sequence[Sequence[int]]) -> list[list[Ids]]:
    """Row ids 0, 1, 2, … for files whose row groups have these sizes."""
    files, at = [], 0
    for groups in sizes:
        numbered = []
        for size in groups:
            numbered.append(list(range(at, at + size)))
            at += size
        files.append(numbered)
    return files


def columns_for(ids: Sequence[int]) -> pa.Table:
    """Columns that can each be told from the row's id: number, float, string and list of varying length."""
    rows = np.asarray(ids, dtype=np.int64)
    lengths = rows % 4
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.table(
        {
            "id": rows,
            "x": (rows * 0.5).astype(np.float32),
            "name": pa.array([f"row {row}" for row in ids], pa.string()),
            "bag": pa.ListArray.from_arrays(offsets, np.repeat(rows, lengths)),
        }
    )


def write_files(folder: Path, files: Files, make: Callable[[Sequence[int]], pa.Table] = columns_for) -> Path:
    """One Parquet file for each entry of `files`, with exactly these row groups (also empty ones)."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, groups in enumerate(files):
        schema = make([]).schema
        with pq.ParquetWriter(folder / f"part-{number:03d}.parquet", schema) as writer:
            for group in groups:
                writer.write_table(make(group), row_group_size=max(1, len(group)))
    return folder


@pytest.fixture(scope="session")
def reference() -> Callable[..., list[Ids]]:
    """`expected_batches`, the independent computation of the order of rows."""
    return expected_batches


@pytest.fixture(scope="session")
def numbered() -> Callable[..., list[list[Ids]]]:
    """`number_rows`."""
    return number_rows


@pytest.fixture(scope="session")
def write_parquet() -> Callable[..., Path]:
    """`write_files`."""
    return write_files


class DataSets:
    """Parquet folders by the sizes of their row groups, each written once a session."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._made: dict[tuple[tuple[int, ...], ...], Path] = {}

    def folder(self, sizes: Sequence[Sequence[int]]) -> Path:
        """A folder with one file an entry, rows numbered throughout."""
        key = tuple(tuple(groups) for groups in sizes)
        if key not in self._made:
            self._made[key] = write_files(self._root / f"set-{len(self._made)}", number_rows(key))
        return self._made[key]


@pytest.fixture(scope="session")
def data_sets(tmp_path_factory: pytest.TempPathFactory) -> DataSets:
    """Folders of small Parquet files, cached by shape."""
    return DataSets(tmp_path_factory.mktemp("data"))
