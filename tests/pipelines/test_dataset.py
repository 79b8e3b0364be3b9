from __future__ import annotations

import errno
import glob
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import fs

from intune.pipelines import dataset as dataset_module
from intune.pipelines.dataset import Reader, Source, describe_groups, explain, make_source, open_dataset
from intune.pipelines.errors import (
    ConfigError,
    CorruptError,
    DataError,
    NotFoundError,
    SchemaError,
    StorageError,
)
from intune.pipelines.plan import LoadBlock
from intune.pipelines.remote import column_ranges
from intune.pipelines.schema import Ragged


@pytest.fixture(autouse=True)
def fresh_footers() -> None:
    dataset_module._footers.clear()


def write(path: Path, table: pa.Table | None = None, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table if table is not None else pa.table({"id": [1, 2, 3]}), path, **options)
    return path


def names(source: Source) -> list[str]:
    return [os.path.basename(file.path) for file in open_dataset(source).files]


# ---- finding files ---------------------------------------------------------------------------------------------


def test_a_folder_a_glob_a_list_and_a_uri_name_files_in_order(tmp_path: Path) -> None:
    for name in ("b.parquet", "a.parquet", "sub/c.pq", "note.txt", "sub/.hidden/d.parquet"):
        write(tmp_path / name)
    root = str(tmp_path)
    assert names(make_source(tmp_path)) == ["a.parquet", "b.parquet", "c.pq"]
    assert names(make_source(f"{root}/*.parquet")) == ["a.parquet", "b.parquet"]
    assert names(make_source(f"{root}/[b]*.parquet")) == ["b.parquet"]
    assert names(make_source(f"{root}/?.parquet")) == ["a.parquet", "b.parquet"]
    assert names(make_source(f"{root}/*/c.pq")) == ["c.pq"]
    assert names(make_source(f"{root}/**/*.pq")) == ["c.pq"]
    assert names(make_source([tmp_path / "b.parquet", f"{root}/a.parquet"])) == ["b.parquet", "a.parquet"]
    assert names(make_source(f"file://{root}/*.parquet")) == ["a.parquet", "b.parquet"]
    assert names(make_source(f"file://{root}")) == ["a.parquet", "b.parquet", "c.pq"]
    assert names(make_source("a.parquet", filesystem=fs.SubTreeFileSystem(root, fs.LocalFileSystem())))


def test_names_with_the_characters_of_globs_are_names_first(tmp_path: Path) -> None:
    write(tmp_path / "run[3]" / "p.parquet")
    folder = f"{tmp_path}/run[3]"
    assert names(make_source(folder)) == ["p.parquet"]
    assert names(make_source(f"{folder}/p.parquet")) == ["p.parquet"]
    assert names(make_source(f"{glob.escape(folder)}/*.parquet")) == ["p.parquet"]
    with pytest.raises(NotFoundError, match=r"glob\.escape"):
        names(make_source(f"{folder}/*.parquet"))


def test_only_what_is_hidden_below_the_folder_is_left_out(tmp_path: Path) -> None:
    write(tmp_path / ".cache" / "x" / "a.parquet")
    write(tmp_path / ".cache" / "x" / ".hidden" / "b.parquet")
    assert names(make_source(tmp_path / ".cache" / "x")) == ["a.parquet"]
    assert names(make_source(f"{tmp_path}/.cache/x/")) == ["a.parquet"]
    assert names(make_source(f"file://{tmp_path}/.cache/x")) == ["a.parquet"]


def test_globs_take_a_uris_options_and_a_filesystem_of_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.parquet")
    assert names(make_source(f"file://{tmp_path}/*.parquet?use_mmap=false")) == ["a.parquet"]
    assert names(make_source(f"file://{tmp_path}/?.parquet")) == ["a.parquet"]
    monkeypatch.chdir(tmp_path)
    assert names(make_source("*.parquet", filesystem=fs.LocalFileSystem())) == ["a.parquet"]
    below = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    assert names(make_source("*.parquet", filesystem=below)) == ["a.parquet"]


@pytest.mark.parametrize("decoding", [False, True])
def test_a_want_of_memory_is_no_fault_of_the_file(decoding: bool) -> None:
    for error in (pa.ArrowMemoryError("malloc of size 1 failed"), MemoryError()):
        explained = explain(error, "f.parquet, row group 0", decoding=decoding)
        assert isinstance(explained, MemoryError)
        assert not isinstance(explained, DataError), "or on_error='skip' would leave good rows out"
        assert "fewer slots" in str(explained)


def test_relative_paths_are_relative_to_where_the_program_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "day.parquet")
    monkeypatch.chdir(tmp_path)
    assert names(make_source("day.parquet")) == names(make_source("d*.parquet")) == ["day.parquet"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nothing.parquet", r"nothing.parquet: no such file or folder"),
        ("*.orc", r"\*.orc: matches no file"),
        ("no/where/*.parquet", r"matches nothing, since .*no/where does not exist"),
        ("empty", r"empty: the folder holds no .parquet file"),
    ],
)
def test_what_names_no_file_is_an_error_that_names_it(tmp_path: Path, path: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError, match=message):
        open_dataset(make_source(tmp_path / path))
    with pytest.raises(FileNotFoundError):
        open_dataset(make_source(tmp_path / path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"paths": []}, "`paths` is empty"),
        ({"paths": 3}, "`paths`=3 must be a path, a glob or a URI"),
        ({"paths": None}, "`paths`=None must be"),
        ({"paths": ["a", 4]}, r"`paths`=\['a', 4\] must be"),
        ({"paths": "a", "columns": []}, "`columns` is empty"),
        ({"paths": "a", "columns": [1]}, r"`columns`=\[1\] must be names"),
        ({"paths": "a", "filesystem": "s3"}, "`filesystem`='s3' must be a pyarrow or fsspec filesystem"),
    ],
)
def test_nonsensical_sources_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_source(**arguments)


def test_uris_no_filesystem_knows_or_of_several_filesystems_are_refused() -> None:
    with pytest.raises(ConfigError, match="'gopher://x/y', which no filesystem takes"):
        open_dataset(make_source("gopher://x/y"))


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


def test_columns_are_picked_by_name_and_by_pattern_each_once(tmp_path: Path) -> None:
    write(tmp_path / "x.parquet", pa.table({"label": [1], "C1": [1], "C2": [2], "I[1]": [3]}))
    pick: Callable[..., Any] = lambda *columns: open_dataset(make_source(tmp_path, columns=columns)).columns  # noqa: E731
    assert pick("C*", "label", "C1") == ("C1", "C2", "label")
    assert pick("I[1]") == ("I[1]",)
    with pytest.raises(SchemaError, match=r"x.parquet: no column 'D\*'; there are label, C1, C2"):
        pick("label", "D*")


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


def test_fills_go_by_name_then_by_the_last_pattern_and_a_number_to_numbers_only(tmp_path: Path) -> None:
    table = pa.table({"I1": [1], "C1": ["a"], "C2": ["b"], "L": [[1]], "S": [["a"]]})
    write(tmp_path / "x.parquet", table)

    def fills(fill: Any) -> dict[str, Any]:
        data = open_dataset(make_source(tmp_path, fill=fill))
        return dict(zip(data.columns, data.fills, strict=True))

    assert fills(0) == {"I1": 0, "C1": None, "C2": None, "L": 0, "S": None}
    assert fills({"C*": "?", "C2": "two"}) == {"I1": None, "C1": "?", "C2": "two", "L": None, "S": None}
    assert fills({"*": 1, "I*": 2})["I1"] == 2


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
    "missing column": (SchemaError, r"column 'x' is missing, which .*good.parquet has"),
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


@settings(deadline=None, max_examples=150)
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
    dataset_module._footers.clear()
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


# ---- reading ---------------------------------------------------------------------------------------------------


def rows_as_python(columns: dict[str, Any]) -> dict[str, list[Any]]:
    made = {}
    for name, column in columns.items():
        if isinstance(column, Ragged):
            values = (
                column.values.to_pylist() if isinstance(column.values, pa.Array) else column.values.tolist()
            )
            ends = column.offsets.tolist()
            made[name] = [values[low:high] for low, high in itertools.pairwise(ends)]
        else:
            made[name] = column.to_pylist() if isinstance(column, pa.Array) else column.tolist()
    return made


@pytest.mark.parametrize(("remote", "at_once"), [(False, 2048), (True, 2048), (False, 14), (False, 1)])
def test_what_is_read_is_what_pyarrow_reads(
    tmp_path: Path, remote: bool, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset_module, "PARTS_AT_ONCE", at_once)
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


def test_every_leaf_of_a_column_is_fetched_also_where_names_hold_dots(tmp_path: Path) -> None:
    table = pa.table({"a.b": [[1, 2]], "a": [1], "c": [{"d": 1, "e": 2}]})
    footer = pq.read_metadata(write(tmp_path / "x.parquet", table))
    count: Callable[..., int] = lambda *columns: len(list(column_ranges(footer, [0], columns)))  # noqa: E731
    assert (count("a.b"), count("a"), count("c"), count("a", "a.b", "c")) == (1, 2, 2, 4)


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


def test_nulls_without_a_fill_name_file_row_group_and_column(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", pa.table({"a": [1, 2], "b": [1, None]}), row_group_size=1)
    reader = Reader(open_dataset(make_source(path)))
    with pytest.raises(
        SchemaError, match=r"x.parquet, row group 1: column 'b' holds 1 null\(s\), but int64 .*give `fill=`"
    ):
        reader.read(LoadBlock(file=0, groups=(1,), skip=0, rows=1))
    reader.close()


def test_a_file_that_vanished_or_was_cut_since_it_was_planned_is_named(tmp_path: Path) -> None:
    for name in ("gone", "cut"):
        write(tmp_path / f"{name}.parquet", pa.table({"id": np.arange(1000)}))
    data = open_dataset(make_source(tmp_path))
    (tmp_path / "gone.parquet").unlink()
    cut = tmp_path / "cut.parquet"
    os.truncate(cut, cut.stat().st_size // 3)
    reader = Reader(data)
    with pytest.raises(CorruptError, match=r"cut.parquet, row group 0: cannot be decoded"):
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


@pytest.mark.parametrize(
    ("error", "reading", "decoding"),
    [
        (OSError(errno.EIO, "Input/output error: corrupt thrift"), StorageError, StorageError),
        (OSError(errno.ENOENT, "No such file"), NotFoundError, NotFoundError),
        (OSError("AWS Error NETWORK_CONNECTION during HeadObject: EOF"), StorageError, CorruptError),
        (ConnectionResetError(errno.ECONNRESET, "reset by peer"), StorageError, StorageError),
        (TimeoutError("timed out"), StorageError, CorruptError),
        (OSError("GZipCodec failed: incorrect data check"), StorageError, CorruptError),
        (pa.ArrowInvalid("Parquet magic bytes not found in footer"), StorageError, CorruptError),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"), StorageError, CorruptError),
    ],
)
def test_failures_of_storage_are_told_from_damage_by_when_they_come(
    error: BaseException, reading: type[Exception], decoding: type[Exception]
) -> None:
    for phase, type_ in ((False, reading), (True, decoding)):
        explained = explain(error, "some/file, row group 3", decoding=phase)
        assert type(explained) is type_
        assert str(explained).startswith("some/file, row group 3: ")


def test_row_groups_as_a_person_names_them() -> None:
    assert describe_groups((4,)) == "row group 4"
    assert describe_groups((4, 5, 6)) == "row groups 4 to 6"


# ---- storage that fails ----------------------------------------------------------------------------------------


class Failing(fs.FileSystemHandler):  # type: ignore[misc]
    """The local filesystem, whose requests fail as often as `failures` says."""

    def __init__(self, failures: dict[str, int]) -> None:
        self.failures = failures
        self.local = fs.LocalFileSystem()

    def fail(self, what: str) -> None:
        if self.failures.get(what, 0) > 0:
            self.failures[what] -= 1
            raise OSError(errno.EAGAIN, f"{what} refused")

    def get_type_name(self) -> str:
        return f"failing-{id(self)}"

    def get_file_info(self, paths: list[str]) -> Any:
        self.fail("info")
        return self.local.get_file_info(paths)

    def get_file_info_selector(self, selector: Any) -> Any:
        self.fail("list")
        return self.local.get_file_info(selector)

    def open_input_file(self, path: str) -> Any:
        self.fail("open")
        return self.local.open_input_file(path)

    def _refuse(self, *arguments: Any, **options: Any) -> Any:
        raise NotImplementedError

    open_input_stream = open_output_stream = open_append_stream = normalize_path = _refuse
    create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = delete_file = _refuse
    move = copy_file = _refuse


@pytest.mark.parametrize("what", ["info", "list", "open"])
def test_storage_that_comes_back_while_files_are_looked_for_is_waited_for(tmp_path: Path, what: str) -> None:
    write(tmp_path / "x.parquet")
    waits: list[float] = []
    source = make_source(tmp_path, filesystem=fs.PyFileSystem(Failing({what: 3})))
    data = open_dataset(source, retries=3, sleep=waits.append)
    assert data.files[0].rows == (3,)
    assert waits == [0.1, 0.2, 0.4]


@pytest.mark.parametrize("what", ["info", "list", "open"])
def test_storage_that_does_not_come_back_is_given_up(tmp_path: Path, what: str) -> None:
    write(tmp_path / "x.parquet")
    waits: list[float] = []
    source = make_source(tmp_path, filesystem=fs.PyFileSystem(Failing({what: 99})))
    with pytest.raises(
        StorageError, match=rf"{tmp_path}.*storage failed \(.*{what} refused\).*gave up after 3 tries"
    ) as caught:
        open_dataset(source, retries=2, sleep=waits.append)
    assert isinstance(caught.value.__cause__, OSError)
    assert len(waits) == 2
