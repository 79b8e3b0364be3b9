from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as encryption
import pytest
from pyarrow import fs

from intune.pipelines.errors import (
    CorruptError,
    NotFoundError,
    SchemaError,
)
from intune.pipelines.memory import roots
from intune.pipelines.plan import LoadBlock
from intune.pipelines.reading import reader as reading_module
from intune.pipelines.reading.dataset import open_dataset
from intune.pipelines.reading.reader import Reader, describe_groups
from intune.pipelines.reading.source import make_source
from tests.pipelines.common import STORED, Failing, rows_as_python, stored, write

pytestmark = pytest.mark.usefixtures("fresh_footers")


@pytest.mark.parametrize(("remote", "at_once"), [(False, 2048), (True, 2048), (False, 14), (False, 1)])
def test_what_is_read_is_what_pyarrow_reads(
    tmp_path: Path, remote: bool, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading_module, "PARTS_AT_ONCE", at_once)
    table = pa.table(
        {
            "id": pa.array(range(50), pa.int16()),
            "a.b": np.arange(50.0),
            "name": [f"n{i}" for i in range(50)],
            "kind": pa.array([f"k{i % 3}" for i in range(50)]).dictionary_encode(),
            "bag.of": [[i] * (i % 3) for i in range(50)],
            "words": [[str(i)] * (i % 2) for i in range(50)],
        }
    )
    path = write(tmp_path / "x.parquet", table, row_group_size=13)
    filesystem = fs.SubTreeFileSystem("/", fs.LocalFileSystem()) if remote else None
    source = make_source(path, filesystem=filesystem)
    data = open_dataset(source)
    assert data.remote is remote
    reader = Reader(data)
    whole = pq.read_table(path)
    for groups, skip, rows in [((0,), 0, 13), ((1, 2), 3, 20), ((0, 1, 2, 3), 5, 41), ((3,), 11, 0)]:
        got = reader.read(LoadBlock(file=0, groups=groups, skip=skip, rows=rows))
        wanted = whole.slice(groups[0] * 13 + skip, rows).to_pydict()
        assert rows_as_python(got) == wanted
        parts = list(reader.read_some(LoadBlock(file=0, groups=groups, skip=skip, rows=rows), 4))
        assert [len(part) for part in parts] == [4, len(wanted) - 4]
        assert rows_as_python(parts[0] | parts[1]) == wanted
    reader.close()


def test_few_rows_of_a_row_group_keep_no_more_than_themselves(tmp_path: Path) -> None:
    """As of the first a rank reads: views of five rows would hold 70,000, and every row be taken to be as large."""
    table = pa.table(
        {
            "id": np.arange(1000),
            "flag": [row % 3 == 0 for row in range(1000)],
            "name": [f"n{row}" for row in range(1000)],
            "kind": pa.array([f"k{row % 3}" for row in range(1000)]).dictionary_encode(),
            "bag": [[row] * (row % 3) for row in range(1000)],
            "words": [[str(row)] * (row % 2) for row in range(1000)],
        }
    )
    reader = Reader(open_dataset(make_source(write(tmp_path / "x.parquet", table))))
    few, most = (
        reader.read(LoadBlock(file=0, groups=(0,), skip=1000 - rows, rows=rows)) for rows in (5, 600)
    )
    reader.close()
    assert rows_as_python(few) == table.slice(995).to_pydict()
    assert sum(roots(few).values()) < 1000
    assert all(column.flags.writeable for column in (few["id"], few["flag"], few["bag"].values))  # type: ignore[union-attr]
    assert max(roots({"id": most["id"]}).values()) == 8000, "most of a row group is not worth a copy"


def test_a_corrupt_page_names_file_and_row_group(tmp_path: Path) -> None:
    path = write(
        tmp_path / "x.parquet", pa.table({"id": np.arange(3000)}), row_group_size=1000, compression="zstd"
    )
    data = open_dataset(make_source(path))
    chunk = pq.read_metadata(path).row_group(1).column(0)
    content = bytearray(path.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content[start + 20 : start + chunk.total_compressed_size] = bytes(chunk.total_compressed_size - 20)
    path.write_bytes(bytes(content))
    reader = Reader(data)
    reader.read(LoadBlock(file=0, groups=(0,), skip=0, rows=1000))
    with pytest.raises(CorruptError, match=r"x.parquet, row group 1: cannot be decoded .*write it again"):
        reader.read(LoadBlock(file=0, groups=(1,), skip=0, rows=1000))
    reader.close()


@pytest.mark.parametrize("kind", STORED)
def test_lists_of_dictionaries_are_read_whole_though_pyarrow_reads_one_row_group_at_a_time(
    tmp_path: Path, kind: str
) -> None:
    words = [[f"w{row}"] * (row % 3) for row in range(50)]
    column = pa.array(words, pa.list_(pa.dictionary(pa.int32(), pa.string())))
    path = write(tmp_path / "x.parquet", pa.table({"id": range(50), "words": column}), row_group_size=10)
    with pytest.raises(pa.ArrowNotImplementedError):
        pq.ParquetFile(path).read_row_groups([0, 1])
    reader = Reader(open_dataset(make_source(path, filesystem=stored(kind))))
    for _ in range(2):
        got = rows_as_python(reader.read(LoadBlock(file=0, groups=(1, 2, 3), skip=5, rows=20)))
        assert got == {"id": list(range(15, 35)), "words": words[15:35]}
    reader.close()


def test_what_pyarrow_cannot_do_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader(open_dataset(make_source(write(tmp_path / "x.parquet"))))

    def refuse(*arguments: Any, **options: Any) -> Any:
        raise pa.ArrowNotImplementedError("Nested data conversions not implemented")

    block = LoadBlock(file=0, groups=(0,), skip=0, rows=3)
    monkeypatch.setattr("intune.pipelines.arrow.to_column", refuse)
    with pytest.raises(SchemaError, match=r"x\.parquet, row group 0: column 'id': pyarrow .* cannot read it"):
        reader.read(block)
    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", refuse)
    with pytest.raises(SchemaError, match=r"x\.parquet, row group 0: pyarrow .* leave the column out"):
        reader.read(block)
    reader.close()


def test_a_defect_is_not_taken_for_storage_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor for data that can be left out: once the bytes are there, Python code of another has no part in it."""
    write(tmp_path / "x.parquet")
    reader = Reader(open_dataset(make_source(tmp_path, filesystem=fs.PyFileSystem(Failing({})))))
    monkeypatch.setattr(reading_module.arrow, "to_column", lambda *_: {}["x"])
    with pytest.raises(KeyError):
        reader.read(LoadBlock(file=0, groups=(0,), skip=0, rows=3))
    reader.close()


# ---- files that change while they are read ---------------------------------------------------------------------


def turned(path: Path, *, inplace: bool) -> None:
    """Write a file's columns in the other order, which takes as many bytes."""
    table = pq.read_table(path)
    size = path.stat().st_size
    new = path if inplace else path.with_suffix(".new")
    write(new, table.select(table.column_names[::-1]), **PLAIN)
    assert new.stat().st_size == size
    os.utime(new, ns=(5, 5))
    os.replace(new, path)


PLAIN = {"compression": "none", "use_dictionary": False, "write_statistics": False, "row_group_size": 50}


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("opened", [True, False])
@pytest.mark.parametrize("kind", STORED)
def test_a_file_that_was_rewritten_is_not_read_by_the_footer_of_before(
    tmp_path: Path, kind: str, opened: bool, inplace: bool
) -> None:
    path = write(tmp_path / "f.parquet", pa.table({"x": np.arange(100), "y": -np.arange(100)}), **PLAIN)
    reader = Reader(open_dataset(make_source(path, filesystem=stored(kind))))
    if opened:
        reader.read(LoadBlock(file=0, groups=(0,), skip=0, rows=50))
    turned(path, inplace=inplace)
    rest = LoadBlock(file=0, groups=(1,), skip=0, rows=50)
    if opened and not inplace and kind == "local":
        # Who has a file open keeps it as it was when another takes its place.
        assert reader.read(rest)["x"].tolist() == list(range(50, 100))
        reader.forget(0)
    with pytest.raises(CorruptError, match=r"f\.parquet, row group 1: rewritten since it was planned; leave"):
        reader.read(rest)
    reader.close()


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_file_that_is_rewritten_while_it_is_read_is_noticed_afterwards(
    tmp_path: Path, at_once: int
) -> None:
    path = write(tmp_path / "f.parquet", pa.table({"x": np.arange(100), "y": -np.arange(100)}), **PLAIN)
    reader = Reader(open_dataset(make_source(path)))
    parts = reader.read_some(LoadBlock(file=0, groups=(0,), skip=0, rows=50), at_once)
    original = reader._columns

    def late(*arguments: Any) -> Any:
        columns = original(*arguments)
        turned(path, inplace=True)
        return columns

    reader._columns = late  # type: ignore[method-assign]
    with pytest.raises(CorruptError, match="rewritten since it was planned"):
        list(parts)
    reader.close()


@pytest.mark.parametrize("kind", STORED)
def test_a_file_that_was_only_touched_or_is_a_copy_is_still_the_same(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "f.parquet", row_group_size=1)
    reader = Reader(open_dataset(make_source(path, filesystem=stored(kind))))
    for time in (1, 2, 2):
        os.utime(path, ns=(time, time))
        for group in range(3):
            read = reader.read(LoadBlock(file=0, groups=(group,), skip=0, rows=1))
            assert read["id"].tolist() == [group + 1]
    reader.close()


def test_a_file_half_written_is_a_rewritten_one(tmp_path: Path) -> None:
    path = write(tmp_path / "f.parquet")
    reader = Reader(open_dataset(make_source(path)))
    path.write_bytes(bytes(path.stat().st_size))
    os.utime(path, ns=(5, 5))
    with pytest.raises(CorruptError, match="rewritten since it was planned"):
        reader.read(LoadBlock(file=0, groups=(0,), skip=0, rows=3))
    reader.close()


@pytest.mark.parametrize(("rows", "message"), [(100, "cannot be decoded"), (101, "rewritten since it was")])
def test_an_object_that_does_not_decode_is_asked_whether_it_is_another(
    monkeypatch: pytest.MonkeyPatch, rows: int, message: str
) -> None:
    """It was said to be broken, though it was whole: a job had written it anew between two epochs."""
    store = fs._MockFileSystem()
    block = LoadBlock(file=0, groups=(0,), skip=0, rows=100)

    def put(count: int) -> None:
        with store.open_output_stream("f.parquet") as file:
            pq.write_table(pa.table({"id": np.arange(count)}), file)

    def fail(*_: Any) -> None:
        raise OSError("don't know what type")  # as of bytes that are no longer those of the footer

    put(100)
    reader = Reader(open_dataset(make_source("f.parquet", filesystem=store)))
    reader.read(block)
    put(rows)
    monkeypatch.setattr(reader, "_table", fail)
    with pytest.raises(CorruptError, match=rf"f\.parquet, row group 0: {message}"):
        reader.read(block)
    reader.close()


def test_nulls_without_a_fill_name_file_row_group_and_column(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", pa.table({"a": [1, 2], "b": [1, None]}), row_group_size=1)
    reader = Reader(open_dataset(make_source(path)))
    with pytest.raises(
        SchemaError, match=r"x.parquet, row group 1: column 'b' holds 1 null\(s\), but int64 .*give `fill=`"
    ):
        reader.read(LoadBlock(file=0, groups=(1,), skip=0, rows=1))
    reader.close()


@pytest.mark.parametrize("kind", STORED)
def test_a_file_that_vanished_or_was_cut_since_it_was_planned_is_named(tmp_path: Path, kind: str) -> None:
    for name in ("gone", "cut"):
        write(tmp_path / f"{name}.parquet", pa.table({"id": np.arange(1000)}))
    data = open_dataset(make_source(tmp_path, filesystem=stored(kind)))
    (tmp_path / "gone.parquet").unlink()
    cut = tmp_path / "cut.parquet"
    os.truncate(cut, cut.stat().st_size // 3)
    reader = Reader(data)
    with pytest.raises(CorruptError, match=r"cut.parquet, row group 0: rewritten since it was planned"):
        reader.read(LoadBlock(file=0, groups=(0,), skip=0, rows=1000))
    with pytest.raises(NotFoundError, match=r"gone.parquet, row group 0: no such file"):
        reader.read(LoadBlock(file=1, groups=(0,), skip=0, rows=1000))
    reader.close()


def test_fewer_rows_than_the_footer_promised_are_an_error_not_a_short_block(tmp_path: Path) -> None:
    write(tmp_path / "x.parquet", pa.table({"id": np.arange(100)}))
    reader = Reader(open_dataset(make_source(tmp_path)))
    with pytest.raises(
        CorruptError, match=r"x.parquet, row group 0: 100 rows, but the footer promised 101; the file"
    ):
        reader.read(LoadBlock(file=0, groups=(0,), skip=50, rows=51))
    reader.close()


class Keys(encryption.KmsClient):  # type: ignore[misc]
    """A key server that hides nothing."""

    def wrap_key(self, key: bytes, name: str) -> bytes:
        return base64.b64encode(key)

    def unwrap_key(self, key: bytes, name: str) -> bytes:
        return base64.b64decode(key)


@pytest.mark.parametrize("readable", [True, False])
def test_an_encrypted_file_is_not_called_broken(tmp_path: Path, readable: bool) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"secret": [1], "open": [2]})
    options = encryption.EncryptionConfiguration(
        footer_key="k", column_keys={"k": ["secret"]}, plaintext_footer=readable
    )
    factory = encryption.CryptoFactory(lambda _: Keys())
    keys = factory.file_encryption_properties(encryption.KmsConnectionConfig(), options)
    with pq.ParquetWriter(path, table.schema, encryption_properties=keys) as writer:
        writer.write_table(table)
    where = LoadBlock(file=0, groups=(0,), skip=0, rows=1)

    def read(*columns: str) -> Any:
        reader = Reader(open_dataset(make_source(path, columns=columns)))
        try:
            return reader.read(where)
        finally:
            reader.close()

    with pytest.raises(SchemaError, match=r"a\.parquet.*: is encrypted, .*leave out the columns that are"):
        read("secret")
    if readable:
        assert rows_as_python(read("open")) == {"open": [2]}


def test_row_groups_as_a_person_names_them() -> None:
    assert describe_groups((4,)) == "row group 4"
    assert describe_groups((4, 5, 6)) == "row groups 4 to 6"
