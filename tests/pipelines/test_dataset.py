from __future__ import annotations

import base64
import errno
import gc
import itertools
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as encryption
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import fs

from intune.pipelines import dataset as dataset_module
from intune.pipelines import footers
from intune.pipelines.dataset import Reader, Source, describe_groups, make_source, open_dataset
from intune.pipelines.errors import (
    ConfigError,
    CorruptError,
    DataError,
    NotFoundError,
    SchemaError,
    StorageError,
)
from intune.pipelines.failures import explain
from intune.pipelines.memory import roots
from intune.pipelines.plan import LoadBlock
from intune.pipelines.remote import column_ranges
from intune.pipelines.schema import Ragged, concat_blocks


@pytest.fixture(autouse=True)
def fresh_footers() -> None:
    footers.cache.clear()


def write(path: Path, table: pa.Table | None = None, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table if table is not None else pa.table({"id": [1, 2, 3]}), path, **options)
    return path


def stored(kind: str) -> Any:
    """The local filesystem: itself, as if it were remote, or written in Python."""
    local = fs.LocalFileSystem()
    if kind == "local":
        return local
    if kind == "below":
        return fs.SubTreeFileSystem("/", local)
    return fsspec.filesystem("file")


STORED = ("local", "below", "python")


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
    source = make_source(tmp_path, columns=(f"C{number}" for number in (2, 1)))
    assert open_dataset(source).columns == ("C2", "C1")
    assert make_source(tmp_path, columns=np.array(["C1", "C2"])).columns == ("C1", "C2")  # type: ignore[arg-type]
    with pytest.raises(SchemaError, match=r"x.parquet: no column 'D\*'; there are label, C1, C2"):
        pick("label", "D*")


def test_columns_of_a_set_come_in_the_same_order_in_every_process() -> None:
    """Else a state would not be taken by another process, and ranks would see other batches."""
    names = {f"C{number}" for number in range(26)}
    assert make_source("x", columns=names).columns == tuple(sorted(names))
    assert make_source("x", columns=frozenset(names)).columns == tuple(sorted(names))
    assert make_source("x", columns=dict.fromkeys("cab").keys()).columns == ("c", "a", "b")
    with pytest.raises(ConfigError, match="must be names or patterns"):
        make_source("x", columns={"a", 1})  # type: ignore[arg-type]


def test_a_partition_key_that_is_asked_for_as_a_column_is_said_to_be_none(tmp_path: Path) -> None:
    write(tmp_path / "year=2024" / "month=1" / "x.parquet")
    with pytest.raises(
        SchemaError,
        match=r"no column 'year'; there are id \(in folders' names, which are not read: year, month\)",
    ):
        open_dataset(make_source(tmp_path, columns=["id", "year"]))


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
    original = dataset_module.parse_footer
    monkeypatch.setattr(
        dataset_module,
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


def test_fills_go_by_name_then_by_the_last_pattern_and_a_number_to_numbers_only(tmp_path: Path) -> None:
    table = pa.table({"I1": [1], "C1": ["a"], "C2": ["b"], "L": [[1]], "S": [["a"]]})
    write(tmp_path / "x.parquet", table)

    def fills(fill: Any) -> dict[str, Any]:
        data = open_dataset(make_source(tmp_path, fill=fill))
        return dict(zip(data.columns, data.fills, strict=True))

    assert fills(0) == {"I1": 0, "C1": None, "C2": None, "L": 0, "S": None}
    assert fills({"C*": "?", "C2": "two"}) == {"I1": None, "C1": "?", "C2": "two", "L": None, "S": None}
    assert fills({"*": 1, "I*": 2})["I1"] == 2


def test_a_fill_by_name_that_can_mean_nothing_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    """A name mistyped left NaN in the batches, and a value of another type ended the job at the first null."""
    columns = {"I1": [1], "F": [0.5], "S": ["a"], "L": [[1]], "D": pa.array(["a"]).dictionary_encode()}
    write(tmp_path / "x.parquet", pa.table(columns))

    def opened(fill: Any, columns: Any = None) -> tuple[Any, ...]:
        return open_dataset(make_source(tmp_path, columns=columns, fill=fill)).fills

    with pytest.raises(
        SchemaError, match=r"x\.parquet: `fill` has a value for 'f', which is no column; there are I1, F"
    ):
        opened({"f": 0.0})
    wrong: list[tuple[str, Any]] = [("I1", "0"), ("F", "none"), ("S", 0), ("L", "none"), ("D", 0)]
    for name, value in wrong:
        with pytest.raises(
            SchemaError, match=rf"x\.parquet: column '{name}' has type .*, for which `fill`=.* is no value"
        ):
            opened({name: value})
    assert opened({"I1": 0, "F": 0, "S": "", "L": -1, "D": "?"}) == (0, 0, "", -1, "?")
    # What is not read may be named all the same, and a pattern may also mean what it does not fit.
    assert opened({"S": 0, "I*": 3}, columns=["I1"]) == (3,)
    assert opened({"*": 0, "Q*": 0}) == (0,) * 5
    assert opened({"F": None}) == (None,) * 5
    # Where there are no nulls, a number may be given that the type cannot hold, for data of other types too.
    assert opened({"I1": 0.5}) == (0.5, None, None, None, None)


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


# ---- files of differing types -----------------------------------------------------------------------------------


def dictionary(values: list[Any], index: pa.DataType, *, ordered: bool = False) -> pa.Array:
    code = pa.array(values).dictionary_encode().cast(pa.dictionary(index, pa.array(values).type))
    return pa.DictionaryArray.from_arrays(code.indices, code.dictionary, ordered=ordered)


FIRM = pa.list_(pa.field("element", pa.int64(), nullable=False))

ALIKE = {
    "indices": (dictionary(["a", "b"], pa.int8()), dictionary(["c", "b"], pa.int16()), pa.string()),
    "order": (
        dictionary(["a"], pa.int32()),
        dictionary(["b", "c"], pa.int32(), ordered=True),
        pa.string(),
    ),
    "words": (dictionary(["a", "b"], pa.int32()), pa.array(["x", None]), pa.string()),
    "numbers": (pa.array([7]), dictionary([8, 9], pa.int32()), pa.int64()),
    "length": (pa.array(["a"]), pa.array(["b", None], pa.large_string()), pa.large_string()),
    "bytes": (pa.array([b"a"], pa.large_binary()), pa.array([b"bc"], pa.binary(2)), pa.large_binary()),
    "views": (pa.array(["a"], pa.string_view()), pa.array(["b"]), pa.string()),
    "lists": (
        pa.array([["a"]], pa.list_(pa.dictionary(pa.int32(), pa.string()))),
        pa.array([["b", "c"], []], pa.large_list(pa.large_string())),
        pa.list_(pa.large_string()),
    ),
    "nulls in lists": (
        pa.array([[1]], FIRM),
        pa.array([[2], []], pa.list_(pa.int64())),
        pa.list_(pa.int64()),
    ),
    "nothing": (pa.nulls(2), pa.array(["a"]), pa.string()),
    "nothing in lists": (
        pa.array([[], []], pa.list_(pa.null())),
        pa.array([[1, 2]], pa.list_(pa.int64())),
        pa.list_(pa.int64()),
    ),
}


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("kind", ALIKE)
def test_how_values_are_stored_is_no_difference_between_files(
    tmp_path: Path, kind: str, turned: bool
) -> None:
    one, other, type_ = ALIKE[kind]
    parts = [other, one] if turned else [one, other]
    for number, part in enumerate(parts):
        write(tmp_path / f"{number}.parquet", pa.table({"x": part}))
    data = open_dataset(make_source(tmp_path))
    assert data.schema.field("x").type == type_
    reader = Reader(data)
    columns = [
        reader.read(LoadBlock(file=number, groups=(0,), skip=0, rows=len(part)))
        for number, part in enumerate(parts)
    ]
    reader.close()
    assert rows_as_python(concat_blocks(columns)) == {"x": parts[0].to_pylist() + parts[1].to_pylist()}


class Ticket(pa.ExtensionType):
    """Some library's own type."""

    def __init__(self) -> None:
        super().__init__(pa.int64(), "intune.tests.ticket")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> Ticket:
        return cls()


def test_a_librarys_own_type_is_read_alike_before_and_after_the_library_is_imported(tmp_path: Path) -> None:
    """What a file is planned as and what is read from it must not depend on when Arrow hears of the type."""
    table = pa.table({"x": pa.ExtensionArray.from_storage(Ticket(), pa.array([3, 1, 2]))})
    path = write(tmp_path / "a.parquet", table)
    block = LoadBlock(file=0, groups=(0,), skip=0, rows=3)
    before = open_dataset(make_source(path))
    pa.register_extension_type(Ticket())
    try:
        footers.cache.clear()
        after = open_dataset(make_source(path))
        assert pq.read_table(path).schema.field("x").type == Ticket()
        for data in (before, after):
            assert data.schema.field("x").type == pa.int64()
            reader = Reader(data)
            assert rows_as_python(reader.read(block)) == {"x": [3, 1, 2]}
            reader.close()
    finally:
        pa.unregister_extension_type("intune.tests.ticket")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.array([1], pa.int32()), pa.array([1])),
        (pa.array(["a"]), pa.array([b"a"])),
        (pa.array([[1]]), pa.array([["a"]])),
        (pa.array([1], pa.timestamp("us")), pa.array([1], pa.timestamp("us", "UTC"))),
        (pa.array([[1, 2]], pa.list_(pa.int64(), 2)), pa.array([[1]], pa.list_(pa.int64(), 1))),
    ],
)
def test_what_values_mean_is_one(tmp_path: Path, one: pa.Array, other: pa.Array) -> None:
    write(tmp_path / "0.parquet", pa.table({"x": one}))
    write(tmp_path / "1.parquet", pa.table({"x": other}))
    with pytest.raises(
        SchemaError, match=r"1\.parquet: column 'x' is .*, but .* in .*0\.parquet; write both"
    ):
        open_dataset(make_source(tmp_path))
    assert len(open_dataset(make_source(tmp_path), on_error="skip").files) == 1


def test_a_column_without_a_value_in_any_file_has_no_type(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / f"{name}.parquet", pa.table({"id": [1], "x": pa.nulls(1)}))
    for on_error in ("raise", "skip"):
        with pytest.raises(
            SchemaError, match=r"a\.parquet: column 'x' has type null, which cannot be batched"
        ):
            open_dataset(make_source(tmp_path), on_error=on_error)
    assert open_dataset(make_source(tmp_path, columns=["id"])).columns == ("id",)
    write(tmp_path / "b.parquet", pa.table({"id": [1], "x": [{"a": 1}]}))
    with pytest.raises(SchemaError, match=r"b\.parquet: column 'x' has type struct"):
        open_dataset(make_source(tmp_path))


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


@pytest.mark.parametrize("decoding", [False, True])
def test_a_want_of_memory_is_no_fault_of_the_file(decoding: bool) -> None:
    for error in (pa.ArrowMemoryError("malloc of size 1 failed"), MemoryError()):
        explained = explain(error, "f.parquet, row group 0", decoding=decoding)
        assert isinstance(explained, MemoryError)
        assert not isinstance(explained, DataError), "or on_error='skip' would leave good rows out"
        assert "fewer slots" in str(explained)


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
        (pa.ArrowNotImplementedError("Support for codec 'lzo' not built"), StorageError, SchemaError),
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


# ---- storage that fails ----------------------------------------------------------------------------------------


class Failing(fs.FileSystemHandler):  # type: ignore[misc]
    """The local filesystem, whose requests fail as often as `failures` says, with `error` or as the system says it."""

    def __init__(self, failures: dict[str, int], error: Exception | None = None) -> None:
        self.failures = failures
        self.error = error
        self.local = fs.LocalFileSystem()

    def fail(self, what: str) -> None:
        if self.failures.get(what, 0) > 0:
            self.failures[what] -= 1
            raise self.error or OSError(errno.EAGAIN, f"{what} refused")

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

    def normalize_path(self, path: str) -> str:
        return path

    open_input_stream = open_output_stream = open_append_stream = _refuse
    create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = delete_file = _refuse
    move = copy_file = _refuse


class Slow(Failing):
    """Answers only when four ask at once."""

    def __init__(self) -> None:
        super().__init__({})
        self.asked = threading.Barrier(4, timeout=20)

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


def test_a_defect_is_not_taken_for_storage_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor for data that can be left out: once the bytes are there, Python code of another has no part in it."""
    write(tmp_path / "x.parquet")
    reader = Reader(open_dataset(make_source(tmp_path, filesystem=fs.PyFileSystem(Failing({})))))
    monkeypatch.setattr(dataset_module.arrow, "to_column", lambda *_: {}["x"])
    with pytest.raises(KeyError):
        reader.read(LoadBlock(file=0, groups=(0,), skip=0, rows=3))
    reader.close()
