"""fsspec's filesystems: what fails is told, and what is read is what was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractBufferedFile
from pyarrow import fs

from intune.pipelines.errors import NotFoundError, StorageError
from intune.pipelines.plan import LoadBlock
from intune.pipelines.reading.dataset import open_dataset
from intune.pipelines.reading.fsspec_handler import Handler
from intune.pipelines.reading.reader import Reader
from intune.pipelines.reading.source import make_source


class Failing(LocalFileSystem):  # type: ignore[misc]
    """Lists one folder after another; `fail` says of which the next listing fails."""

    cachable = False
    fail: str | None = None

    def ls(self, path: str, detail: bool = False, **options: Any) -> Any:
        if self.fail is not None and path.rstrip("/").endswith(self.fail):
            self.fail = None
            raise TimeoutError("no answer")
        return super().ls(path, detail=detail, **options)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("a/x.parquet", "a/deep/y.parquet", "b/z.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"id": [1]}), tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("pattern", ["", "/*", "/**/*.parquet", "/*/*.parquet"])
@pytest.mark.parametrize("folder", ["a", "deep"])
def test_a_folder_that_cannot_be_listed_is_no_empty_one(tree: Path, pattern: str, folder: str) -> None:
    """Training would go on with less data, and nobody would know."""
    storage, waits = Failing(), list[float]()
    source = make_source(f"{tree}{pattern}", filesystem=storage)
    whole = [file.path for file in open_dataset(source).files]
    assert len(whole) == (2 if pattern == "/*/*.parquet" else 3)
    storage.fail = folder
    assert [file.path for file in open_dataset(source, retries=1, sleep=waits.append).files] == whole
    assert len(waits) == 1
    storage.fail = folder
    with pytest.raises(StorageError, match=r"storage failed \(no answer\)"):
        open_dataset(source)


def told(found: list[fs.FileInfo]) -> list[tuple[Any, ...]]:
    return sorted((info.path, str(info.type), info.size, info.mtime_ns) for info in found)


def test_a_listing_is_what_pyarrows_is(tree: Path) -> None:
    for filesystem, root in ((LocalFileSystem(), str(tree)), (MemoryFileSystem(), "/listed")):
        if isinstance(filesystem, MemoryFileSystem):
            filesystem.put(f"{tree}/", root, recursive=True)
        for deep in (False, True):
            for folder in (root, f"{root}/", f"{root}/a"):
                selector = fs.FileSelector(folder, recursive=deep)
                mine = Handler(filesystem).get_file_info_selector(selector)
                pyarrows = fs.FSSpecHandler(filesystem).get_file_info_selector(selector)
                assert told(mine) == told(pyarrows)
    MemoryFileSystem().rm("/listed", recursive=True)


def test_an_object_store_is_asked_once_for_all_folders(tree: Path) -> None:
    asked: list[str] = []

    class Store(LocalFileSystem):  # type: ignore[misc]
        cachable = False

        def find(self, path: str, **options: Any) -> Any:
            asked.append(path)
            return super().find(path, **options)

    assert len(open_dataset(make_source(tree, filesystem=Store())).files) == 3
    assert asked == [str(tree)]


def test_a_folder_that_is_gone_holds_no_files(tree: Path) -> None:
    class Racing(LocalFileSystem):  # type: ignore[misc]
        cachable = False

        def ls(self, path: str, detail: bool = False, **options: Any) -> Any:
            if path.endswith("deep"):
                raise FileNotFoundError(path)
            return super().ls(path, detail=detail, **options)

    assert len(open_dataset(make_source(tree, filesystem=Racing())).files) == 2
    with pytest.raises(NotFoundError, match=r"holds no \.parquet file"):
        open_dataset(make_source(tree / "a" / "deep", filesystem=Racing()))


class Store(AbstractFileSystem):  # type: ignore[misc]
    """Local files as an object store's are opened: looked at first, and read ahead of what is wanted."""

    cachable = False
    root_marker = "/"

    def __init__(self) -> None:
        super().__init__()
        self.ranges: list[tuple[int, int]] = []
        self.failures = 0

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        if self.failures:
            self.failures -= 1
            raise TimeoutError("no answer")
        told: dict[str, Any] = LocalFileSystem().info(path)
        return told

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        return _File(self, path, mode, **options)


class _File(AbstractBufferedFile):  # type: ignore[misc]
    def _fetch_range(self, start: int, end: int) -> bytes:
        self.fs.ranges.append((start, end))
        with open(self.path, "rb") as file:
            file.seek(start)
            return file.read(end - start)


@pytest.mark.parametrize("wrapped", [False, True])
def test_of_a_file_is_read_what_is_asked_for(tmp_path: Path, wrapped: bool) -> None:
    path, store = tmp_path / "x.parquet", Store()
    pq.write_table(pa.table({"id": range(400_000)}), path, row_group_size=40_000, use_dictionary=False)
    filesystem = fs.PyFileSystem(fs.FSSpecHandler(store)) if wrapped else store
    reader = Reader(open_dataset(make_source(path, filesystem=filesystem)))
    store.ranges.clear()
    for group in range(10):
        read = reader.read(LoadBlock(file=0, groups=(group,), skip=0, rows=40_000))
        assert read["id"][0] == group * 40_000
    size = path.stat().st_size
    assert 0.9 * size < sum(end - start for start, end in store.ranges) < 1.1 * size


def test_a_file_that_cannot_be_looked_at_is_not_gone(tmp_path: Path) -> None:
    path, store = tmp_path / "x.parquet", Store()
    pq.write_table(pa.table({"id": [1]}), path)
    reader = Reader(open_dataset(make_source(path, filesystem=store)))
    block = LoadBlock(file=0, groups=(0,), skip=0, rows=1)
    store.failures = 1
    with pytest.raises(StorageError, match=r"storage failed \(no answer\)"):
        reader.read(block)
    assert reader.read(block)["id"] == [1]
    path.unlink()
    with pytest.raises(NotFoundError, match="no such file"):
        reader.read(block)
