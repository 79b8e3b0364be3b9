"""The data sets of the benchmarks: written once, one row group at a time, and kept in ``bench-data``.

Criteo-like: ``label`` float32, ``I1..`` float32 counts (log-normal), ``C1..`` int64 raw ids, skewed, of
cardinalities from ten to a million. Row groups are whole batches of 8,192, so that no contender has to join
the rows of two; only the set of tiny row groups asks for that.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path("bench-data")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSpec:
    """One data set: `rows` rows spread evenly over `files` files, in row groups of `row_group_rows`."""

    rows: int = 4_194_304
    files: int = 16
    row_group_rows: int = 65_536
    dense: int = 13
    ids: int = 26
    seed: int = 0

    def __post_init__(self) -> None:
        per_file = self.files * self.row_group_rows
        if self.files < 1 or self.row_group_rows < 1 or self.rows < per_file or self.rows % per_file:
            raise ValueError(
                f"`rows` must be a multiple of files × row_group_rows ({self.files} × {self.row_group_rows}), "
                f"but is {self.rows}"
            )

    @property
    def name(self) -> str:
        """Folder of the set; a different set has a different one."""
        shape = f"{self.rows}rows-{self.files}files-{self.row_group_rows}group"
        return f"{shape}-{self.dense}dense-{self.ids}ids-seed{self.seed}"

    @property
    def groups_per_file(self) -> int:
        return self.rows // self.files // self.row_group_rows

    @property
    def columns(self) -> list[str]:
        return ["label", *(f"I{i + 1}" for i in range(self.dense)), *(f"C{i + 1}" for i in range(self.ids))]


MAIN = DataSpec()
NARROW = DataSpec(dense=1, ids=2)
"""As many batches as `MAIN` but next to no work in them: what remains is the loader's own cost."""
TINY_GROUPS = DataSpec(rows=10_000_000, files=10, row_group_rows=1_000, dense=1, ids=2)
"""10,000 row groups of 1,000 rows."""
MANY_GROUPS = DataSpec(rows=1_000 * 8, files=1, row_group_rows=8, dense=1, ids=2)
"""1,000 row groups in one file; a hundred copies make the 100,000 that are planned."""


def scaled(rows: int) -> DataSpec:
    """`MAIN` with about `rows` rows: fewer files and row groups first, and only then smaller row groups."""
    groups = max(1, rows // MAIN.row_group_rows)
    if groups == 1:
        size = max(1, rows // 4)
        return DataSpec(rows=4 * size, files=2, row_group_rows=size)
    files = max(count for count in range(1, MAIN.files + 1) if groups % count == 0)
    return DataSpec(rows=groups * MAIN.row_group_rows, files=files)


def ensure(spec: DataSpec, root: Path = ROOT) -> list[Path]:
    """The files of the set, written first if they are not there; a half-written set is never seen."""
    folder = root / spec.name
    if not folder.exists():
        unfinished = root / f"{spec.name}.unfinished-{os.getpid()}"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        try:
            _write(spec, unfinished)
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return sorted(folder.glob("*.parquet"))


def copies(spec: DataSpec, count: int, root: Path = ROOT) -> list[Path]:
    """`count` files with the content of the one file of `spec` (hard links: distinct paths, no bytes)."""
    (source,) = ensure(spec, root)
    folder = root / f"{spec.name}-{count}copies"
    folder.mkdir(exist_ok=True)
    paths = [folder / f"part-{number:05d}.parquet" for number in range(count)]
    for path in paths:
        if not path.exists():
            os.link(source, path)
    return paths


def _write(spec: DataSpec, folder: Path) -> None:
    """All files, in processes of their own: this one stays without Arrow, whose pages it would otherwise share
    with the contenders and so make them look smaller (see `memory`)."""
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        writes = [
            pool.submit(_write_file, spec, number, folder / f"part-{number:03d}.parquet")
            for number in range(spec.files)
        ]
        for done, write in enumerate(as_completed(writes), start=1):
            write.result()
            print(f"writing {spec.name}: {done} of {spec.files} files", file=sys.stderr, flush=True)


def _write_file(spec: DataSpec, number: int, path: Path) -> None:
    import pyarrow.parquet as pq

    groups = range(number * spec.groups_per_file, (number + 1) * spec.groups_per_file)
    tables = _row_groups(spec, groups)
    first = next(tables)
    with pq.ParquetWriter(path, first.schema, compression="zstd") as writer:
        writer.write_table(first, row_group_size=spec.row_group_rows)
        for table in tables:
            writer.write_table(table, row_group_size=spec.row_group_rows)


def _row_groups(spec: DataSpec, groups: range) -> Iterator[Any]:
    """Each row group from a generator of its own, so that its content does not depend on what came before."""
    import pyarrow as pa

    cardinalities = np.geomspace(10, 1e6, max(spec.ids, 2))[: spec.ids]
    for group in groups:
        draw = np.random.default_rng([spec.seed, group])
        rows = spec.row_group_rows
        columns = [draw.integers(0, 2, rows).astype(np.float32)]
        columns += [
            np.floor(np.exp(draw.normal(2.0, 1.5, rows))).astype(np.float32) for _ in range(spec.dense)
        ]
        for cardinality in cardinalities:
            # The cube of a uniform number piles up at small ranks, much as the ids of a real log do; the odd
            # factor spreads ranks over 32 bits, as hashed categories are.
            rank = (cardinality * draw.random(rows) ** 3).astype(np.int64)
            columns.append(rank * 2_654_435_761 % 2**32)
        yield pa.table(dict(zip(spec.columns, columns, strict=True)))
