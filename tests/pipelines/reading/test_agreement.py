from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from intune.pipelines.errors import (
    SchemaError,
)
from intune.pipelines.plan import LoadBlock
from intune.pipelines.reading import agreement, footers
from intune.pipelines.reading.dataset import open_dataset
from intune.pipelines.reading.reader import Reader
from intune.pipelines.reading.source import make_source
from intune.pipelines.schema import concat_blocks
from tests.pipelines.common import rows_as_python, write

pytestmark = pytest.mark.usefixtures("fresh_footers")


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


def test_a_partition_key_that_is_asked_for_as_a_column_is_said_to_be_none(tmp_path: Path) -> None:
    write(tmp_path / "year=2024" / "month=1" / "x.parquet")
    with pytest.raises(
        SchemaError,
        match=r"no column 'year'; there are id \(in folders' names, which are not read: year, month\)",
    ):
        open_dataset(make_source(tmp_path, columns=["id", "year"]))


def test_fills_go_by_name_then_by_the_last_pattern_and_a_number_to_numbers_only(tmp_path: Path) -> None:
    table = pa.table({"I1": [1], "C1": ["a"], "C2": ["b"], "L": [[1]], "S": [["a"]]})
    write(tmp_path / "x.parquet", table)

    def fills(fill: Any) -> dict[str, Any]:
        data = open_dataset(make_source(tmp_path, fill=fill))
        return dict(zip(data.columns, data.fills, strict=True))

    assert fills(0) == {"I1": 0, "C1": None, "C2": None, "L": 0, "S": None}
    assert fills({"C*": "?", "C2": "two"}) == {"I1": None, "C1": "?", "C2": "two", "L": None, "S": None}
    assert fills({"*": 1, "I*": 2})["I1"] == 2


def test_booleans_named_with_a_third_value_are_small_numbers_in_every_file(tmp_path: Path) -> None:
    """A flag that is yes, no or not known, as pandas and Spark write it, could not be read at all."""
    write(tmp_path / "a.parquet", pa.table({"flag": [True, False], "bag": [[True], []]}))
    write(tmp_path / "b.parquet", pa.table({"flag": [None, True], "bag": [[None, False], None]}))

    def read(fill: Any) -> list[dict[str, Any]]:
        reader = Reader(open_dataset(make_source(tmp_path, fill=fill)))
        blocks = [reader.read(LoadBlock(file=file, groups=(0,), skip=0, rows=2)) for file in range(2)]
        reader.close()
        assert len({block["flag"].dtype for block in blocks}) == 1  # type: ignore[union-attr]
        return [rows_as_python(block) for block in blocks]

    assert read({"flag": -1, "bag": 2}) == [
        {"flag": [1, 0], "bag": [[1], []]},
        {"flag": [-1, 1], "bag": [[2, 0], []]},
    ]
    assert read({"flag": 0, "bag": True})[1] == {"flag": [False, True], "bag": [[True, False], []]}
    with pytest.raises(SchemaError, match=r"'flag' has type bool, for which `fill`=-1 is no value"):
        read(-1)


def test_ten_times_as_many_columns_by_name_take_some_ten_times_as_long() -> None:
    def spent(count: int) -> float:
        names = [f"c{number}" for number in range(count)]
        schema = pa.schema([(name, pa.int64()) for name in names])
        began = time.process_time()
        types = agreement.select("x", schema, names)
        assert agreement.fills("x", names, types, [(name, 0) for name in names]) == (0,) * count
        return time.process_time() - began

    few = min(spent(300) for _ in range(3))
    assert min(spent(3000) for _ in range(2)) < 40 * few, "each name beside each other is a hundred times"


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
    "list views": (
        pa.array([["a"], []], pa.list_view(pa.string())),
        pa.array([["b", "c"], []], pa.large_list_view(pa.string())),
        pa.list_(pa.string()),
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


def test_instants_are_the_same_whatever_zone_they_are_shown_in(tmp_path: Path) -> None:
    zones = ("UTC", "Europe/Berlin", "+00:00")
    for number, zone in enumerate(zones):
        column = pa.array([number, 7], pa.timestamp("us", zone))
        write(
            tmp_path / f"{number}.parquet",
            pa.table({"x": column, "l": pa.array([[1], []], pa.list_(column.type))}),
        )
    reader = Reader(open_dataset(make_source(tmp_path)))
    blocks = [reader.read(LoadBlock(file=file, groups=(0,), skip=0, rows=2)) for file in range(3)]
    reader.close()
    assert rows_as_python(concat_blocks(blocks)) == {"x": [0, 7, 1, 7, 2, 7], "l": [[1], []] * 3}


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
