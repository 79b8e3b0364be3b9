"""A data set is there as a whole or not at all; errors of the storage say what to do."""

import errno
import json
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intune.errors import ConfigError, StorageError
from intune.workloads.data.description import DATASET_FILE
from intune.workloads.data.writer import METADATA_KEY, UNFINISHED, PartWriter, new_dataset, storage_errors

SCHEMA = pa.schema([("x", pa.int64())])


def _batch(start: int, stop: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array(range(start, stop), pa.int64())], schema=SCHEMA)


def _fail(out: Path, error: type[BaseException], theirs: str | None = None) -> None:
    """Write a file, or see somebody else put one into `out`, then raise."""
    with new_dataset(out) as folder:
        (folder / "file").write_text("x")
        if theirs is not None:
            (out / theirs).write_text("x")
        raise error


def test_what_is_written_appears_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    with new_dataset(out) as folder:
        (folder / "train").mkdir()
        (folder / "train" / "part").write_text("rows")
        (folder / DATASET_FILE).write_text("{}")
        assert [entry.name for entry in out.iterdir()] == [folder.name]
    assert sorted(entry.name for entry in out.iterdir()) == [DATASET_FILE, "train"]
    assert (out / "train" / "part").read_text() == "rows"


def test_the_description_appears_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = []
    rename = Path.rename
    monkeypatch.setattr(Path, "rename", lambda self, target: moved.append(self.name) or rename(self, target))
    with new_dataset(tmp_path) as folder:
        for name in (DATASET_FILE, "test", "train"):
            (folder / name).write_text("x")
    assert sorted(moved) == [DATASET_FILE, "test", "train"]
    assert moved[-1] == DATASET_FILE


def test_an_empty_folder_may_be_filled_and_keeps_its_mode(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir(mode=0o750)
    with new_dataset(out) as folder:
        (folder / "file").write_text("x")
    assert stat.S_IMODE(out.stat().st_mode) == 0o750
    assert (out / "file").exists()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_after_an_exception(tmp_path: Path, error: type[BaseException]) -> None:
    out = tmp_path / "a" / "b"
    with pytest.raises(error):
        _fail(out, error)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_there_stays_empty_after_an_exception(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        _fail(tmp_path, ValueError)
    assert list(tmp_path.iterdir()) == []


def test_what_others_put_into_a_new_folder_meanwhile_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ValueError):
        _fail(out, ValueError, theirs="theirs")
    assert [entry.name for entry in out.iterdir()] == ["theirs"]


@pytest.mark.parametrize(
    ("found", "message"),
    [("train", r"new or an empty folder.*train"), (f"{UNFINISHED}x", r"killed run left.*remove")],
)
def test_a_folder_with_something_in_it_is_refused(tmp_path: Path, found: str, message: str) -> None:
    (tmp_path / found).mkdir()
    with pytest.raises(ConfigError, match=message), new_dataset(tmp_path):
        pass
    assert [entry.name for entry in tmp_path.iterdir()] == [found]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="`out` must be a folder"), new_dataset(tmp_path / "file"):
        pass
    with pytest.raises(StorageError, match="cannot write"), new_dataset(tmp_path / "file" / "out"):
        pass


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "no space left to write /data/part; make room"),
        (errno.EROFS, "no permission to write /data/part .*choose another folder"),
        (errno.EIO, "cannot write /data/part: .*Input/output error"),
    ],
)
def test_storage_errors_say_what_to_do(number: int, message: str) -> None:
    failure = OSError(number, os.strerror(number))
    with (
        pytest.raises(StorageError, match=message) as caught,
        storage_errors(Path(f"/data/{UNFINISHED}1/part")),
    ):
        raise failure
    assert caught.value.__cause__ is failure


@given(sizes=st.lists(st.integers(0, 40), max_size=12), group=st.integers(1, 30))
@settings(max_examples=40)
def test_row_groups_are_full_whatever_the_batches(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], group: int
) -> None:
    path = tmp_path_factory.mktemp("part") / "x.parquet"
    with PartWriter(path, SCHEMA, row_group_rows=group) as writer:
        start = 0
        for size in sizes:
            writer.write(_batch(start, start + size))
            start += size
        writer.close({"rows": start})
    assert writer.rows == start
    file = pq.ParquetFile(path)
    groups = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
    assert groups == [group] * (start // group) + [start % group] * (start % group > 0)
    assert file.read().column("x").to_pylist() == list(range(start))
    assert json.loads(file.metadata.metadata[METADATA_KEY.encode()]) == {"rows": start}
    if start:
        assert file.metadata.row_group(0).column(0).compression == "ZSTD"


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_a_storage_error_and_is_empty_afterwards(tiny_disk: Path) -> None:
    noise = os.urandom(8 * 300_000)
    batch = pa.RecordBatch.from_arrays(
        [pa.array(memoryview(noise).cast("q").tolist(), pa.int64())], schema=SCHEMA
    )
    with (
        pytest.raises(StorageError, match=r"no space left to write .*disk/train/part"),
        new_dataset(tiny_disk) as folder,
        PartWriter(folder / "train" / "part", SCHEMA, row_group_rows=50_000) as writer,
    ):
        writer.write(batch)
    assert list(tiny_disk.iterdir()) == []
    # A mount point may be written to as well.
    with new_dataset(tiny_disk) as folder:
        (folder / "file").write_text("x")
    assert (tiny_disk / "file").exists()


def test_a_write_that_fails_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with (
        pytest.raises(StorageError, match="no space left"),
        new_dataset(tmp_path) as folder,
        PartWriter(folder / "part", SCHEMA, row_group_rows=10) as writer,
    ):
        writer.write(_batch(0, 10))
    assert list(tmp_path.iterdir()) == []
