"""Ways to read row groups from storage that waits: bare thread pools, and our loader.

All take the same row groups, know the footers beforehand, and return once every row is there, as NumPy columns
(the pools) or as tensors in plan order (ours).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import pyarrow.dataset as ds
import pyarrow.parquet as pq

from benchmarks.contender import touch
from benchmarks.transform import transform
from intune.pipelines import Pipeline

RowGroup: TypeAlias = "tuple[str, int]"
"""Path and index of a row group."""

BATCH = 8_192


@dataclass(frozen=True, kw_only=True)
class Store:
    """Parquet files on a filesystem, with what can be known before the first row is read."""

    filesystem: Any
    paths: list[str]
    footers: dict[str, Any] = field(repr=False)
    sizes: dict[str, int] = field(repr=False)

    @classmethod
    def open(cls, filesystem: Any, paths: Sequence[str]) -> Store:
        """Opens every file and reads its footer, 16 at a time."""
        with ThreadPoolExecutor(16) as pool:
            handles = list(pool.map(filesystem.open_input_file, paths))
            footers = list(pool.map(pq.read_metadata, handles))
        return cls(
            filesystem=filesystem,
            paths=list(paths),
            footers=dict(zip(paths, footers, strict=True)),
            sizes={path: handle.size() for path, handle in zip(paths, handles, strict=True)},
        )

    def row_groups(self) -> list[RowGroup]:
        return [(path, group) for path in self.paths for group in range(self.footers[path].num_row_groups)]

    @property
    def rows(self) -> int:
        return sum(footer.num_rows for footer in self.footers.values())


Read: TypeAlias = "Callable[[RowGroup], Any]"


def opening(store: Store) -> Read:
    """As one writes it first: open the file, which asks for its size, and read from it. Two requests."""

    def read(row_group: RowGroup) -> Any:
        path, group = row_group
        file = pq.ParquetFile(
            store.filesystem.open_input_file(path), metadata=store.footers[path], pre_buffer=True
        )
        return file.read_row_group(group, use_threads=False)

    return read


def one_request(store: Store) -> Read:
    """The best that Arrow offers: through a dataset's fragments, whose sizes and footers are known.

    Reading from files that were opened before also takes one request, but costs up to twice as much CPU time
    with 16 threads (pages that one of Arrow's own threads maps and another one unmaps).
    """
    format_ = ds.ParquetFileFormat()
    parts: dict[RowGroup, Any] = {}
    for path, size in store.sizes.items():
        whole = format_.make_fragment(path, filesystem=store.filesystem, file_size=size)
        whole.ensure_complete_metadata()
        for group in range(store.footers[path].num_row_groups):
            parts[path, group] = whole.subset(row_group_ids=[group])
    return lambda row_group: parts[row_group].to_table(use_threads=False, batch_size=1 << 20)


def pool(store: Store, read: Read, width: int) -> int:
    """Rows that `width` threads read, each taking the next row group: no order, no limit, nobody to feed."""
    left = deque(store.row_groups())
    rows = [0] * width
    errors: list[BaseException] = []

    def work(place: int) -> None:
        while not errors:
            try:
                row_group = left.popleft()
            except IndexError:
                return
            try:
                table = read(row_group)
                columns = [table.column(name).to_numpy() for name in table.column_names]
                rows[place] += len(columns[0])
            except BaseException as error:  # raised again by the caller's thread
                errors.append(error)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(width)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return sum(rows)


Kind: TypeAlias = Literal["read", "transform"]


@contextmanager
def ours(filesystem: Any, paths: Sequence[str], kind: Kind, cpus: int) -> Iterator[Callable[[int], int]]:
    """One epoch of our loader as a function of its load slots; it is made once and resized.

    The other stages get as many slots as there are CPUs.
    """
    pipeline = Pipeline.from_parquet(list(paths), filesystem=filesystem).batch(BATCH)
    if kind == "transform":
        function: Any = transform  # made for plain NumPy columns, which is all that these files have
        pipeline = pipeline.map(function)
    with pipeline.to("cpu").loader(executor="threads") as loader:

        def run(width: int) -> int:
            loader.resize({name: width if name == "load" else cpus for name in loader.stages})
            rows = 0
            for batch in loader:
                touch(batch)
                rows += len(next(iter(batch.values())))
            return rows

        yield run
