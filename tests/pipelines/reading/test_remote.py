"""What is fetched of a file, with the footers of old writers too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from intune.pipelines.plan import LoadBlock
from intune.pipelines.reading.dataset import open_dataset
from intune.pipelines.reading.reader import Reader
from intune.pipelines.reading.remote import column_ranges
from intune.pipelines.reading.source import make_source
from tests.pipelines.common import write


def footer(*, has_dictionary_page: bool, dictionary_page_offset: int | None) -> Any:
    """Of one row group of one column, whose data begin at byte 50 and which takes 40 bytes."""
    chunk = SimpleNamespace(
        data_page_offset=50,
        total_compressed_size=40,
        has_dictionary_page=has_dictionary_page,
        dictionary_page_offset=dictionary_page_offset,
        path_in_schema="a",
    )
    return SimpleNamespace(row_group=lambda group: SimpleNamespace(num_columns=1, column=lambda index: chunk))


@pytest.mark.parametrize(
    ("dictionary", "expected"), [(None, (50, 90)), (30, (30, 70)), (0, (50, 90))], ids=["none", "there", "0"]
)
def test_a_dictionary_page_at_byte_0_is_none(dictionary: int | None, expected: tuple[int, int]) -> None:
    said = footer(has_dictionary_page=dictionary is not None, dictionary_page_offset=dictionary)
    assert list(column_ranges(said, [0], ["a"])) == [expected]


def test_of_old_writers_as_much_is_fetched_as_arrow_wants(tmp_path: Path) -> None:
    path = tmp_path / "old.parquet"
    pq.write_table(pa.table({"a": ["x", "y"] * 100, "b": range(200)}), path)
    written = str(pq.read_metadata(path).created_by).encode()
    old = b"parquet-mr version 1.2.8".ljust(len(written))
    path.write_bytes(path.read_bytes().replace(written, old))
    below = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    reader = Reader(open_dataset(make_source("old.parquet", columns=["a"], filesystem=below)))
    block = reader.read(LoadBlock(file=0, groups=(0,), skip=0, rows=200))
    assert block["a"].to_pylist() == ["x", "y"] * 100
    last = Reader(open_dataset(make_source("old.parquet", columns=["b"], filesystem=below)))
    assert last.read(LoadBlock(file=0, groups=(0,), skip=0, rows=200))["b"].tolist() == list(range(200))


def test_every_leaf_of_a_column_is_fetched_also_where_names_hold_dots(tmp_path: Path) -> None:
    table = pa.table({"a.b": [[1, 2]], "a": [1], "c": [{"d": 1, "e": 2}]})
    footer = pq.read_metadata(write(tmp_path / "x.parquet", table))
    count: Callable[..., int] = lambda *columns: len(list(column_ranges(footer, [0], columns)))  # noqa: E731
    assert (count("a.b"), count("a"), count("c"), count("a", "a.b", "c")) == (1, 2, 2, 4)
