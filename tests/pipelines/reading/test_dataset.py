from __future__ import annotations

import gc
import os
import threading
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import fs

from intune.pipelines.errors import (
    CorruptError,
    DataError,
    NotFoundError,
    SchemaError,
    StorageError,
)
from intune.pipelines.plan import LoadBlock
from intune.pipelines.reading import footers
from intune.pipelines.reading import reader as reading_module
from intune.pipelines.reading.dataset import open_dataset
from intune.pipelines.reading.reader import Reader
from intune.pipelines.reading.source import Source, make_source
from tests.pipelines.common import STORED, Failing, rows_as_python, stored, write

pytestmark = pytest.mark.usefixtures("fresh_footers")


# ---- footers ---------------------------------------------------------------------------------------------------


def test_what_footers_tell(tmp_path: Path) -> None:
    table = pa.table({"a": np.arange(10, dtype=np.int32), "b": np.zeros(10), "c": ["x"] * 10})
    write(tmp_path / "1.parquet", table, row_group_size=4)
    write(tmp_path / "2.parquet", table, row_group_size=10)
    data = open_dataset(make_source(tmp_path, columns=["b", "a"]))
    assert data.columns == ("b", "a")
    assert [file.rows for file in data.files] == [(4, 4, 2), (10,)]
    groups = data.row_groups()
    assert groups.file.tolist() == [0, 0, 0, 1]
    assert groups.group.tolist() == [0, 1, 2, 0]
    assert groups.rows.tolist() == [4, 4, 2, 10]
    assert groups.row_bytes == 12.0
    assert open_dataset(make_source(tmp_path)).row_bytes > 12.0


def test_footers_are_read_once_and_again_when_a_file_is_rewritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "x.parquet")
    reads: list[Any] = []
    original = pq.read_metadata

    def counted(handle: Any) -> Any:
        reads.append(handle)
        return original(handle)

    monkeypatch.setattr(pq, "read_metadata", counted)
    for _ in range(3):
        assert open_dataset(make_source(path)).files[0].rows == (3,)
    assert len(reads) == 1
    write(path, pa.table({"id": list(range(50))}))
    assert open_dataset(make_source(path)).files[0].rows == (50,)


def test_of_too_many_footers_those_read_last_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        write(tmp_path / f"{name}.parquet")
    data = open_dataset(make_source(tmp_path))
    size = data.files[0].footer.serialized_size
    footers.cache.clear()
    monkeypatch.setattr(footers, "KEPT_FOOTER_BYTES", 2 * size)
    reads: list[str] = []
    original = footers.parse_footer
    monkeypatch.setattr(
        footers, "parse_footer", lambda handle, path: reads.append(path[-9:]) or original(handle, path)
    )
    for name in "abcbcba":
        open_dataset(make_source(tmp_path / f"{name}.parquet"))
    assert reads == ["a.parquet", "b.parquet", "c.parquet", "a.parquet"]


@pytest.mark.parametrize("kind", STORED)
def test_footers_too_large_to_keep_are_read_again_and_are_the_same(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(footers, "KEPT_FOOTER_BYTES", 1)
    path = write(tmp_path / "x.parquet")
    data = open_dataset(make_source(path, filesystem=stored(kind)))
    assert data.files[0].footer is None
    reader = Reader(data)
    block = LoadBlock(file=0, groups=(0,), skip=0, rows=3)
    assert reader.read(block)["id"].tolist() == [1, 2, 3]
    write(path, pa.table({"id": [1, 2, 4]}))
    reader.forget(0)
    with pytest.raises(CorruptError, match=r"x\.parquet, row group 0: rewritten since it was planned"):
        reader.read(block)
    reader.close()


def test_of_large_footers_the_first_are_kept_and_no_others_stay_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoded, those of billions of rows take gigabytes, which no budget counts."""
    for part in range(8):
        write(tmp_path / f"{part:02}.parquet", pa.table({"id": [part], "s": ["x" * (part + 1)]}))
    size = open_dataset(make_source(tmp_path / "00.parquet")).files[0].footer.serialized_size
    footers.cache.clear()
    monkeypatch.setattr(footers, "KEPT_FOOTER_BYTES", 3 * size + size // 2)

    def alive() -> int:
        return sum(type(found) is pq.FileMetaData for found in gc.get_objects())

    gc.collect()
    gc.disable()  # nothing may wait for it
    try:
        before = alive()
        data = open_dataset(make_source(tmp_path))
        footers.cache.clear()
        left = alive() - before
    finally:
        gc.enable()
    assert [file.footer is not None for file in data.files] == [True] * 3 + [False] * 5
    assert left == 3
    rows = [open_dataset(make_source(tmp_path / f"{part:02}.parquet")).row_bytes for part in range(3)]
    assert data.row_bytes == pytest.approx(sum(rows) / 3)


@pytest.mark.parametrize("kind", STORED)
def test_a_footer_too_large_to_keep_is_decoded_once_for_all_row_groups(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(footers, "KEPT_FOOTER_BYTES", 1)
    path = write(tmp_path / "x.parquet", pa.table({"id": range(40)}), row_group_size=10)
    reader = Reader(open_dataset(make_source(path, filesystem=stored(kind))))
    decoded: list[str] = []
    original = reading_module.parse_footer
    monkeypatch.setattr(
        reading_module,
        "parse_footer",
        lambda handle, path: decoded.append(path) or original(handle, path),
    )
    for group in range(4):
        block = LoadBlock(file=0, groups=(group,), skip=0, rows=10)
        assert reader.read(block)["id"][0] == 10 * group
    assert len(decoded) == 1
    reader.close()


def test_files_of_one_name_length_and_time_below_two_roots_are_told_apart(tmp_path: Path) -> None:
    for name, rows in (("a", [1, 2, 3]), ("b", [1, 2, 4])):
        path = write(tmp_path / name / "x.parquet", pa.table({"id": rows}), use_dictionary=False)
        os.utime(path, ns=(0, 0))
    marks = set()
    for name in ("a", "b"):
        root = fs.SubTreeFileSystem(str(tmp_path / name), fs.LocalFileSystem())
        marks.add(open_dataset(make_source("x.parquet", filesystem=root)).fingerprint())
    assert (tmp_path / "a/x.parquet").stat().st_size == (tmp_path / "b/x.parquet").stat().st_size
    assert len(marks) == 2


def test_the_fingerprint_tells_data_sets_apart(tmp_path: Path) -> None:
    def mark(table: pa.Table, name: str = "x.parquet", **options: Any) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        write(folder / name, table, **options)
        return open_dataset(make_source(folder)).fingerprint()

    table = pa.table({"id": [1, 2, 3], "b": [1, 2, 3]})
    base = mark(table)
    assert mark(table) == base
    others = [
        mark(table.slice(1)),
        mark(table, row_group_size=2),
        mark(table, "y.parquet"),
        mark(table.select(["id"])),
        mark(pa.table({"id": [1, 2, 3], "b": [1, 2, 4]})),
        mark(table, use_dictionary=False),
    ]
    assert len({base, *others}) == 7


# ---- files that cannot be used ---------------------------------------------------------------------------------


def damaged(kind: str, path: Path) -> Path:
    """A file that cannot be used, of the kind asked for."""
    good = pa.table({"id": np.arange(100), "x": np.arange(100.0)})
    write(path, good)
    data = path.read_bytes()
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("id,x\n1,2.0\n" * 20)
    elif kind == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif kind == "footer":
        start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
        path.write_bytes(data[:start] + b"\xff" * 32 + data[start + 32 :])
    elif kind == "missing column":
        write(path, good.select(["id"]))
    elif kind == "wrong type":
        write(path, good.set_column(1, "x", pa.array(["a"] * 100)))
    elif kind == "no place":
        write(path, good.append_column("s", pa.array([{"a": 1}] * 100)))
    elif kind == "twice":
        write(path, pa.Table.from_arrays([good["id"], good["x"], good["x"]], names=["id", "x", "x"]))
    elif kind == "gone":
        path.unlink()
    return path


BROKEN = {
    "empty": (CorruptError, r"0 bytes are too few for a Parquet file; remove or rewrite it"),
    "text": (CorruptError, r"cannot be decoded \(.*magic bytes.*\); write it again, or leave it out"),
    "truncated": (CorruptError, r"cannot be decoded \(.*magic bytes"),
    "footer": (CorruptError, r"cannot be decoded \("),
    "missing column": (SchemaError, r"column 'x' is missing, which .*good.parquet has; .* `columns=`"),
    "wrong type": (
        SchemaError,
        r"column 'x' is string, but double in .*good.parquet; write both with one schema",
    ),
    "twice": (SchemaError, r"column 'x' is there twice; give every column a name of its own"),
    "gone": (NotFoundError, r"no such file or folder"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_that_cannot_be_used_is_named_with_the_reason_and_the_remedy(
    tmp_path: Path, kind: str
) -> None:
    good = write(tmp_path / "good.parquet", pa.table({"id": np.arange(100), "x": np.arange(100.0)}))
    bad = damaged(kind, tmp_path / "bad.parquet")
    type_, message = BROKEN[kind]
    with pytest.raises(type_, match=rf"bad\.parquet: {message}"):
        open_dataset(make_source([good, bad]))


@pytest.mark.parametrize("kind", BROKEN)
def test_under_skip_it_is_left_out_and_reported(tmp_path: Path, kind: str) -> None:
    good = write(tmp_path / "good.parquet", pa.table({"id": np.arange(100), "x": np.arange(100.0)}))
    bad = damaged(kind, tmp_path / "bad.parquet")
    data = open_dataset(make_source([good, bad]), on_error="skip")
    assert [file.path for file in data.files] == [str(good)]
    ((path, error),) = data.skipped
    assert path == str(bad)
    assert isinstance(error, BROKEN[kind][0])


def test_a_type_without_a_place_names_column_and_remedy_unless_it_is_left_out(tmp_path: Path) -> None:
    path = damaged("no place", tmp_path / "bad.parquet")
    with pytest.raises(
        SchemaError, match=r"bad.parquet: column 's' has type struct.*cannot be batched; leave it"
    ):
        open_dataset(make_source(path))
    assert open_dataset(make_source(path, columns=["id", "x"])).columns == ("id", "x")


def test_where_nothing_can_be_used_the_first_reason_is_told(tmp_path: Path) -> None:
    damaged("empty", tmp_path / "a.parquet")
    damaged("text", tmp_path / "b.parquet")
    with pytest.raises(
        DataError, match=r"none of the 2 file\(s\) can be used; the first: .*a.parquet: 0 bytes"
    ):
        open_dataset(make_source(tmp_path), on_error="skip")
    with pytest.raises(DataError, match=r"none of the 1 file\(s\) can be used; the first: .*nosuch"):
        open_dataset(make_source(tmp_path / "nosuch.parquet"), on_error="skip")


def test_a_data_set_without_rows_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "x.parquet", pa.table({"id": pa.array([], pa.int64())}))
    with pytest.raises(DataError, match=r"x.parquet: the data set has no rows \(1 file\(s\) looked at\)"):
        open_dataset(make_source(tmp_path))


def test_files_without_rows_among_others_are_fine(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", pa.table({"id": pa.array([], pa.int64())}))
    write(tmp_path / "b.parquet")
    assert open_dataset(make_source(tmp_path)).row_groups().rows.sum() == 3


@settings(max_examples=60)
@given(data=st.data())
def test_no_flipped_byte_is_taken_for_storage_that_fails_or_escapes_the_tree_of_errors(
    damaged_files: list[tuple[Path, bytes, int]], data: st.DataObject
) -> None:
    path, content, footer = data.draw(st.sampled_from(damaged_files))
    start = data.draw(st.one_of(st.integers(4, len(content) - footer - 9), st.integers(4, len(content) - 1)))
    length = data.draw(st.sampled_from([1, 8, 64]))
    flips = np.frombuffer(data.draw(st.binary(min_size=length, max_size=length)), np.uint8)
    broken = np.frombuffer(content, np.uint8).copy()
    broken[start : start + length] ^= flips[: len(broken[start : start + length])]
    path.write_bytes(broken.tobytes())
    footers.cache.clear()
    filesystem = fs.SubTreeFileSystem("/", fs.LocalFileSystem()) if data.draw(st.booleans()) else None
    failure = read_all(make_source(path, filesystem=filesystem))
    if failure is not None:
        assert isinstance(failure, CorruptError | SchemaError) or "has no rows" in str(failure)
        assert str(path) in str(failure)


def read_all(source: Source) -> DataError | None:
    """Read every row group; what is wrong, if anything."""
    try:
        opened = open_dataset(source)
    except DataError as error:
        return error
    reader = Reader(opened)
    try:
        for group, rows in enumerate(opened.files[0].rows):
            if rows > 0:
                reader.read(LoadBlock(file=0, groups=(group,), skip=0, rows=min(rows, 100)))
    except DataError as error:
        return error
    finally:
        reader.close()
    return None


@pytest.fixture(scope="module")
def damaged_files(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, bytes, int]]:
    folder = tmp_path_factory.mktemp("flips")
    table = pa.table(
        {
            "id": np.arange(300),
            "name": [f"row {i % 20}" for i in range(300)],
            "bag": [[i] * (i % 4) for i in range(300)],
        }
    )
    made = []
    for codec in ("none", "snappy", "zstd", "gzip", "lz4", "brotli"):
        path = write(folder / f"{codec}.parquet", table, compression=codec, row_group_size=100)
        content = path.read_bytes()
        made.append((path, content, int.from_bytes(content[-8:-4], "little")))
    return made


# ---- storage that fails ----------------------------------------------------------------------------------------


class Slow(Failing):
    """Answers only when four ask at once."""

    def __init__(self) -> None:
        super().__init__({})
        self.asked = threading.Barrier(4, timeout=60)

    def get_file_info(self, paths: list[str]) -> Any:
        self.asked.wait()
        return super().get_file_info(paths)


def test_files_that_are_named_are_looked_for_side_by_side(tmp_path: Path) -> None:
    """One after another, a thousand of them on storage that takes 150 ms would take minutes."""
    paths = [write(tmp_path / f"{name}.parquet") for name in "dbca"]
    data = open_dataset(make_source(paths, filesystem=fs.PyFileSystem(Slow())))
    assert [file.path for file in data.files] == [str(path) for path in paths]
    missing = [*paths[:2], tmp_path / "x.parquet", tmp_path / "y.parquet"]
    with pytest.raises(NotFoundError, match=r"x\.parquet: no such file"):
        open_dataset(make_source(missing, filesystem=fs.PyFileSystem(Slow())))


class Counted(Failing):
    """Notes the files that are asked for one by one."""

    def __init__(self) -> None:
        super().__init__({})
        self.asked: list[str] = []

    def get_file_info(self, paths: list[str]) -> Any:
        self.asked += paths
        return super().get_file_info(paths)


def test_a_file_is_asked_about_once_and_not_at_all_if_it_was_listed(tmp_path: Path) -> None:
    """Each question takes as long as reading a row group, on storage that is far."""
    paths = [str(write(tmp_path / f"{name}.parquet")) for name in "abc"]
    for named, asked in ((paths, paths), (str(tmp_path), [str(tmp_path)])):
        storage = Counted()
        data = open_dataset(make_source(named, filesystem=fs.PyFileSystem(storage)))
        assert [file.path for file in data.files] == paths
        assert [file.version.size for file in data.files] == [os.path.getsize(path) for path in paths]
        assert sorted(storage.asked) == asked
    storage = Counted()
    open_dataset(make_source(f"{tmp_path}/*.parquet", filesystem=fs.PyFileSystem(storage)))
    assert not set(storage.asked) & set(paths)


def test_what_is_wrong_with_the_first_file_is_said_before_the_others_are_asked_for(tmp_path: Path) -> None:
    """Of a hundred thousand on storage that is far they take a quarter of an hour, for a column's name mistyped."""
    storage = Counted()
    paths = [tmp_path / f"{number:04}.parquet" for number in range(1000)]
    with pytest.raises(NotFoundError, match=r"0000\.parquet: no such file"):
        open_dataset(make_source(paths, filesystem=fs.PyFileSystem(storage)))
    assert len(storage.asked) < 200

    class Many(MemoryFileSystem):  # type: ignore[misc]
        opened: ClassVar[list[str]] = []

        def open(self, path: str, *arguments: Any, **options: Any) -> Any:
            self.opened.append(path)
            return super().open(path, *arguments, **options)

    there = MemoryFileSystem()
    content = write(tmp_path / "x.parquet").read_bytes()
    for number in range(1000):
        there.pipe(f"/first/{number:04}.parquet", content)
    try:
        with pytest.raises(SchemaError, match=r"0000\.parquet: no column 'lable'"):
            open_dataset(make_source("/first", columns=["lable"], filesystem=Many()))
        assert len(Many.opened) < 200
    finally:
        there.rm("/first", recursive=True)


@pytest.mark.parametrize("what", ["info", "list", "open"])
def test_storage_that_comes_back_while_files_are_looked_for_is_waited_for(tmp_path: Path, what: str) -> None:
    write(tmp_path / "x.parquet")
    waits: list[float] = []
    source = make_source(tmp_path, filesystem=fs.PyFileSystem(Failing({what: 3})))
    data = open_dataset(source, retries=3, sleep=waits.append)
    assert data.files[0].rows == (3,)
    assert waits == [0.1, 0.2, 0.4]


@pytest.mark.parametrize("what", ["info", "list", "open"])
def test_storage_that_does_not_come_back_is_given_up(
    tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "x.parquet")
    waits: list[float] = []
    source = make_source(tmp_path, filesystem=fs.PyFileSystem(Failing({what: 99})))
    with pytest.raises(
        StorageError, match=rf"{tmp_path}.*storage failed \(.*{what} refused\).*gave up after 3 tries"
    ) as caught:
        open_dataset(source, retries=2, sleep=waits.append)
    assert isinstance(caught.value.__cause__, OSError)
    assert len(waits) == 2
    assert [message.partition("; trying")[2] for message in caplog.messages] == [" again, up to 2 times"]


class PayloadError(Exception):
    """No `OSError`, like what the HTTP clients of fsspec's filesystems raise."""


@pytest.mark.parametrize("below", [False, True])
@pytest.mark.parametrize("what", ["info", "list", "open"])
def test_what_a_filesystem_written_in_python_raises_is_storage_that_fails(
    tmp_path: Path, what: str, below: bool
) -> None:
    write(tmp_path / "x.parquet")
    waits: list[float] = []

    def opened(failures: int, retries: int, error: Exception) -> Any:
        storage: Any = fs.PyFileSystem(Failing({what: failures}, error))
        source = make_source(
            "." if below else tmp_path,
            filesystem=fs.SubTreeFileSystem(str(tmp_path), storage) if below else storage,
        )
        return open_dataset(source, retries=retries, sleep=waits.append)

    assert opened(2, 2, PayloadError("cut short")).files[0].rows == (3,)
    assert len(waits) == 2
    with pytest.raises(
        StorageError, match=r"storage failed \(PayloadError: cut short\).*gave up after 2 tries"
    ) as caught:
        opened(9, 1, PayloadError("cut short"))
    assert isinstance(caught.value.__cause__, PayloadError)
    with pytest.raises(StorageError, match=r"storage failed \(PayloadError\)"):
        opened(9, 0, PayloadError())
    with pytest.raises(MemoryError):
        opened(1, 9, MemoryError())


def test_what_it_raises_while_rows_are_read_is_too(tmp_path: Path) -> None:
    write(tmp_path / "x.parquet")
    storage = Failing({}, PayloadError("cut short"))
    reader = Reader(open_dataset(make_source(tmp_path, filesystem=fs.PyFileSystem(storage))))
    storage.failures["open"] = 1
    block = LoadBlock(file=0, groups=(0,), skip=0, rows=3)
    with pytest.raises(
        StorageError, match=r"x\.parquet, row group 0: storage failed \(PayloadError: cut short\)"
    ):
        reader.read(block)
    assert rows_as_python(reader.read(block)) == {"id": [1, 2, 3]}
    reader.close()
