"""Files of a data set stay open from their footers on, and close with their owner."""

import gc
import resource
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from intune.pipelines import Pipeline
from intune.pipelines.errors import NotFoundError
from intune.pipelines.plan import LoadBlock
from intune.pipelines.reading import files as files_module
from intune.pipelines.reading import footers
from intune.pipelines.reading.dataset import open_dataset
from intune.pipelines.reading.files import OpenFiles, Version, version_of
from intune.pipelines.reading.reader import Reader
from intune.pipelines.reading.source import make_source


class Storage(fs.SubTreeFileSystem):  # type: ignore[misc]
    """Local files as if they were remote; every opening is counted."""

    def __init__(self) -> None:
        super().__init__("/", fs.LocalFileSystem())
        self.opened: Counter[str] = Counter()

    def open_input_file(self, path: str) -> Any:
        self.opened[Path(path).name] += 1
        return super().open_input_file(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    footers.cache.clear()
    for part in range(4):
        table = pa.table({"id": np.arange(part * 100, part * 100 + 100)})
        pq.write_table(table, tmp_path / f"{part}.parquet", row_group_size=25)
    return tmp_path


def test_the_first_epoch_opens_no_file_that_its_footer_was_read_from(folder: Path) -> None:
    storage = Storage()
    pipe = Pipeline.from_parquet(str(folder), filesystem=storage).batch(30)
    with pipe.loader(executor="threads") as loader:
        for _ in range(2):
            rows = [row for batch in loader for row in batch["id"].tolist()]
            assert rows == list(range(400))
    assert storage.opened == {f"{part}.parquet": 1 for part in range(4)}


def test_a_read_that_failed_opens_the_file_anew(folder: Path) -> None:
    storage, files = Storage(), OpenFiles()
    data = open_dataset(make_source(str(folder), filesystem=storage), files=files)
    reader = Reader(data, files)
    block = LoadBlock(file=2, groups=(0, 1), skip=0, rows=50)
    assert reader.read(block)["id"].tolist() == list(range(200, 250))
    assert storage.opened["2.parquet"] == 1
    reader.forget(2)
    reader.read(block)
    assert storage.opened["2.parquet"] == 2
    (folder / "2.parquet").unlink()
    reader.forget(2)
    with pytest.raises(NotFoundError, match=r"2\.parquet, row groups 0 to 1"):
        reader.read(block)


def test_files_close_with_a_loader_that_was_never_read(folder: Path) -> None:
    storage = Storage()
    before = open_here(folder)
    loader = Pipeline.from_parquet(str(folder), filesystem=storage).batch(30).loader(executor="threads")
    assert open_here(folder) == before + 4
    loader.close()
    gc.collect()
    assert open_here(folder) == before


def test_local_files_leave_descriptors_for_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four loaders of 256 files each would take all that a process usually has."""
    for part in range(20):
        pq.write_table(pa.table({"id": [part]}), tmp_path / f"{part:02}.parquet")

    def opened(allowed: int) -> int:
        monkeypatch.setattr(files_module.resource, "getrlimit", lambda _: (allowed, allowed))
        with Pipeline.from_parquet(tmp_path).batch(5).loader(executor="threads") as loader:
            for _ in range(2):
                assert [row for batch in loader for row in batch["id"].tolist()] == list(range(20))
            return open_here(tmp_path)

    assert opened(160) == 10
    assert opened(8) == 1
    assert opened(resource.RLIM_INFINITY) == opened(1024) == 20


def test_local_files_and_those_left_out_do_not_stay_open(folder: Path) -> None:
    files = OpenFiles()
    open_dataset(make_source(str(folder)), files=files)
    assert open_here(folder) == 0
    pq.write_table(pa.table({"other": [1]}), folder / "9.parquet")
    data = open_dataset(make_source(str(folder), filesystem=Storage()), on_error="skip", files=files)
    assert [files.find(file.path) is not None for file in data.files] == [True] * 4
    assert files.find(data.skipped[0][0]) is None
    assert open_here(folder) == 4
    files.close()
    assert open_here(folder) == 0


def told(size: int) -> Any:
    """A footer."""
    return SimpleNamespace(serialized_size=size)


def test_of_too_many_files_those_used_last_stay_open_and_footers_push_none_out() -> None:
    files = OpenFiles(2)
    a, b, c, d = (told(1) for _ in range(4))
    assert files.keep("a", "A", a) == ("A", a)
    assert files.keep("b", "B", b) == ("B", b)
    assert files.find("a") == ("A", a)
    assert not files.keep_early("c", "C", c)
    assert files.keep("c", "C", c) == ("C", c)
    assert [files.find(path) for path in "abc"] == [("A", a), None, ("C", c)]
    assert files.keep("c", "another", d) == ("C", c)  # who was first
    files.forget("c")
    files.forget("nosuch")
    assert files.find("c") is None
    assert files.keep_early("d", "D", d)


def test_footers_of_megabytes_push_each_other_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_module, "FOOTER_BYTES", 10)
    files = OpenFiles()
    for path in "abc":
        files.keep(path, path, told(4))
    assert [files.find(path) is not None for path in "abc"] == [False, True, True]
    assert not files.keep_early("d", "d", told(4))
    files.forget("b")
    assert files.keep_early("d", "d", told(4))
    files.keep("e", "e", told(40))  # it is read now, however large
    assert [files.find(path) is not None for path in "cde"] == [False, False, True]
    files.close()
    assert files.keep_early("f", "f", told(10))


def test_versions_differ_where_both_are_known() -> None:
    version = Version(size=3, mtime_ns=4, etag="a")
    same = [version, Version(), Version(size=3), Version(mtime_ns=4, etag="a")]
    assert not any(version.differs(other) or other.differs(version) for other in same)
    others = [Version(size=4), Version(size=3, mtime_ns=5), Version(size=3, etag="b")]
    assert all(version.differs(other) and other.differs(version) for other in others)


class Opened:
    """A file as an object store opens it."""

    def __init__(self, told: Any) -> None:
        self._told = told

    def size(self) -> int:
        return 7

    def metadata(self) -> Any:
        if isinstance(self._told, Exception):
            raise self._told
        return self._told


@pytest.mark.parametrize(
    ("told", "etag"),
    [
        ({"Content-Length": b"7", "ETag": b'"abc"'}, '"abc"'),
        ({b"etag": b"x"}, "x"),
        ({}, None),
        (pa.ArrowNotImplementedError("metadata"), None),
        (OSError("gone"), None),
    ],
)
def test_an_object_stores_tag_tells_what_was_written_over(told: Any, etag: str | None) -> None:
    assert version_of(None, "x", Opened(told)) == Version(size=7, etag=etag)


def open_here(folder: Path) -> int:
    """Descriptors of this process in `folder`."""
    import os

    links = []
    for name in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            continue
    return sum(link.startswith(str(folder)) for link in links)
