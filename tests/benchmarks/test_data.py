"""The data sets have the shape they promise and the same content every time."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import data

SMALL = data.DataSpec(rows=1_200, files=2, row_group_rows=200, dense=2, ids=3)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the small set."""
    folder = tmp_path_factory.mktemp("written")
    data.ensure(SMALL, folder)
    return folder


def test_files_and_row_groups_are_as_specified(written: Path) -> None:
    paths = data.ensure(SMALL, written)
    footers = [pq.read_metadata(path) for path in paths]
    assert [footer.num_row_groups for footer in footers] == [3, 3]
    assert all(footer.row_group(index).num_rows == 200 for footer in footers for index in range(3))
    schema = pq.read_schema(paths[0])
    assert schema.names == ["label", "I1", "I2", "C1", "C2", "C3"]
    assert schema.types == [pa.float32()] * 3 + [pa.int64()] * 3
    assert footers[0].row_group(0).column(0).compression == "ZSTD"


def test_it_is_written_once_and_the_same_everywhere(written: Path, tmp_path: Path) -> None:
    first = data.ensure(SMALL, written)
    before = [path.stat().st_mtime_ns for path in first]
    assert [path.stat().st_mtime_ns for path in data.ensure(SMALL, written)] == before
    again = data.ensure(SMALL, tmp_path)
    assert pq.read_table(first).equals(pq.read_table(again))
    assert not pq.read_table(first[0]).equals(pq.read_table(first[1]))


def test_an_interrupted_write_leaves_nothing_that_looks_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(data, "_write", fail)
    with pytest.raises(KeyboardInterrupt):
        data.ensure(SMALL, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_copies_are_distinct_files_with_the_same_rows(tmp_path: Path) -> None:
    spec = data.DataSpec(rows=80, files=1, row_group_rows=8, dense=1, ids=2)
    paths = data.copies(spec, 3, tmp_path)
    assert len(set(paths)) == 3
    assert [pq.read_metadata(path).num_row_groups for path in paths] == [10, 10, 10]


@given(st.integers(4, 10_000_000))
def test_any_number_of_rows_is_scaled_to_a_set_near_it(rows: int) -> None:
    spec = data.scaled(rows)
    assert rows / 2 < spec.rows <= rows
    assert spec.groups_per_file >= 1


def test_the_main_set_is_the_stated_one() -> None:
    assert data.scaled(data.MAIN.rows) == data.MAIN
    assert (data.MAIN.files, data.MAIN.groups_per_file, data.MAIN.row_group_rows) == (16, 4, 65_536)
    assert len(data.MAIN.columns) == 40
    assert data.TINY_GROUPS.rows // data.TINY_GROUPS.row_group_rows == 10_000
    assert 100 * data.MANY_GROUPS.groups_per_file == 100_000


def test_rows_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple"):
        data.DataSpec(rows=100, files=3, row_group_rows=10)
