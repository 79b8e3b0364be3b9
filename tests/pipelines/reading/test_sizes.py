"""How large rows are once decoded: what footers tell is held against what reading gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from intune.pipelines.memory import roots
from intune.pipelines.plan import LoadBlock
from intune.pipelines.reading import sizes
from intune.pipelines.reading.dataset import Dataset, open_dataset
from intune.pipelines.reading.reader import Reader
from intune.pipelines.reading.source import make_source

ROWS = 3000


def opened(folder: Path, table: pa.Table, **options: Any) -> Dataset:
    pq.write_table(table, folder / "x.parquet", row_group_size=ROWS // 3, **options)
    return open_dataset(make_source(folder))


def decoded(data: Dataset) -> float:
    """Bytes that a row takes once it is read."""
    reader = Reader(data)
    blocks = [LoadBlock(file=0, groups=(group,), skip=0, rows=ROWS // 3) for group in range(3)]
    found = sum(sum(roots(reader.read(block)).values()) for block in blocks)
    reader.close()
    return found / ROWS


def test_of_numbers_the_bytes_are_known(tmp_path: Path) -> None:
    table = pa.table(
        {
            "a": np.zeros(ROWS, np.int32),
            "b": pa.array(np.zeros((ROWS, 3)).tolist(), pa.list_(pa.float32(), 3)),
            "c": pa.array([True] * ROWS),
        }
    )
    data = opened(tmp_path, table)
    assert (data.row_bytes, data.guessed) == (17.0, False)
    assert decoded(data) == pytest.approx(17.0, rel=0.05)  # Arrow keeps a bit a value


@pytest.mark.parametrize("type_", [pa.int64(), pa.float32(), pa.bool_()])
def test_of_lists_of_numbers_they_are_known_however_short_they_are_encoded(
    tmp_path: Path, type_: pa.DataType
) -> None:
    """A history that is padded with zeros is encoded in a hundredth of what it takes."""
    values = pa.array([[1] + [0] * 99, [0] * 98] * (ROWS // 2), pa.list_(pa.int64()))
    data = opened(tmp_path, pa.table({"id": np.arange(ROWS), "history.of": values.cast(pa.list_(type_))}))
    assert not data.guessed
    assert data.row_bytes == pytest.approx(decoded(data), rel=0.05)


def test_empty_lists_and_nulls_add_no_more_than_a_value_each(tmp_path: Path) -> None:
    lists = pa.array([[], None, [1, None]] * (ROWS // 3), pa.list_(pa.int32()))
    pq.write_table(pa.table({"x": lists}), tmp_path / "x.parquet")
    data = open_dataset(make_source(tmp_path, fill=0))
    assert data.row_bytes == pytest.approx(8 + 4 * 4 / 3)


@pytest.mark.parametrize("type_", [pa.string(), pa.list_(pa.string())])
def test_of_strings_they_are_a_guess(tmp_path: Path, type_: pa.DataType) -> None:
    """Each of two titles is in the file once, however many rows have it."""
    titles = ["a" * 100, "b" * 200]
    values = titles if type_ == pa.string() else [[titles[0]], titles]
    table = pa.table({"x": pa.array(values * (ROWS // 2), type_)})
    data = opened(tmp_path, table, write_statistics=False)
    assert data.guessed
    assert 4 <= data.row_bytes < decoded(data) / 5
    plain = opened(tmp_path, table, use_dictionary=False)
    assert plain.row_bytes == pytest.approx(decoded(plain), rel=0.05)


@pytest.mark.parametrize("type_", [pa.string(), pa.large_binary(), pa.list_(pa.string())])
def test_how_long_strings_are_is_seen_from_the_first_and_the_last(tmp_path: Path, type_: pa.DataType) -> None:
    """Small row groups of strings that a dictionary holds once were read sixty at a time, far beyond the budget."""
    titles = ["a" * 150, "b" * 10, None, "c" * 170, "d" * 310, "e" * 160]
    values = [[title] for title in titles] if pa.types.is_list(type_) else titles
    data = opened(tmp_path, pa.table({"x": pa.array(values * (ROWS // 6), type_)}))
    assert data.guessed
    assert data.row_bytes == pytest.approx(decoded(data), rel=0.1)


def test_of_very_many_row_groups_some_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lists = pa.array([[1] * (row % 7) for row in range(1024)], pa.list_(pa.int64()))
    for name in "ab":
        pq.write_table(pa.table({name: lists, "x": lists}), tmp_path / f"{name}.parquet", row_group_size=7)
    looked: list[Any] = []
    real = sizes._chunk_bytes
    monkeypatch.setattr(sizes, "SAMPLED_GROUPS", 16)
    monkeypatch.setattr(sizes, "_chunk_bytes", lambda *given: looked.append(given) or real(*given))
    data = open_dataset(make_source(tmp_path, columns=["x"]))
    assert 16 <= len(looked) < 32
    assert data.row_bytes == pytest.approx(8 + 8 * 22 / 7, rel=0.05)
