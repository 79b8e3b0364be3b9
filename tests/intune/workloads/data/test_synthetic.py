"""The synthetic data set as it lies on disk."""

import errno
import functools
import json
import os
import threading
import tracemalloc
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from intune.errors import ConfigError, StorageError
from intune.workloads.data import synthetic
from intune.workloads.data.columns import CATEGORICAL, COLUMNS, DENSE
from intune.workloads.data.description import read_description
from intune.workloads.data.features import BLOCK_ROWS
from intune.workloads.data.synthetic import SyntheticConfig, SyntheticRows, write_synthetic
from intune.workloads.data.writer import METADATA_KEY

SMALL = SyntheticConfig(rows=20_000, test_rows=5_000, seed=5, scale=0.002, files=3, row_group_rows=4096)
PLANTED = functools.cache(synthetic.plant_teacher)


@pytest.fixture(autouse=True, scope="module")
def _each_teacher_is_planted_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, "plant_teacher", PLANTED)
        yield


def _variant(**changes: Any) -> SyntheticConfig:
    options = {name: getattr(SMALL, name) for name in SMALL.__dataclass_fields__}
    return SyntheticConfig(**(options | changes))


def _table(out: Path, split: str = "train") -> pa.Table:
    return pq.read_table(out / split).combine_chunks()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synthetic") / "data"
    write_synthetic(SMALL, out)
    return out


def test_the_layout_is_as_described(dataset: Path) -> None:
    assert sorted(path.name for path in dataset.iterdir()) == ["dataset.json", "test", "train"]
    parts = sorted((dataset / "train").iterdir())
    assert [part.name for part in parts] == [f"part-{number:05d}.parquet" for number in range(3)]
    groups = [pq.ParquetFile(part).metadata.row_group(0).num_rows for part in parts]
    assert groups == [4096, 4096, 4096]
    assert sum(pq.ParquetFile(part).metadata.num_rows for part in parts) == 20_000
    table = _table(dataset)
    assert table.column_names == list(COLUMNS)
    assert {str(table.schema.field(name).type) for name in ("label", *DENSE)} == {"float"}
    assert {str(table.schema.field(name).type) for name in CATEGORICAL} == {"int64"}
    assert _table(dataset, "test").num_rows == 5_000


def test_the_description_holds_what_was_written(dataset: Path) -> None:
    description = read_description(dataset)
    table = _table(dataset)
    assert description["kind"] == "synthetic"
    assert description["rows"] == {"train": 20_000, "test": 5_000}
    assert description["files"] == {"train": 3, "test": 1}
    assert description["options"]["seed"] == 5
    assert description["positive_share"]["train"] == pytest.approx(np.mean(table.column("label").to_numpy()))
    assert description["teacher"]["auc"]["train"] == pytest.approx(0.80, abs=0.01)
    assert description["teacher"]["auc"]["test"] == pytest.approx(0.80, abs=0.015)
    for name, cardinality in description["cardinalities"].items():
        assert len(table.column(name).drop_null().unique()) <= cardinality
    assert description["cardinalities"]["C9"] == len(table.column("C9").drop_null().unique()) == 3


def test_each_files_metadata_has_the_teachers_area(dataset: Path) -> None:
    metadata = pq.ParquetFile(dataset / "train" / "part-00001.parquet").metadata.metadata
    found = json.loads(metadata[METADATA_KEY.encode()])
    stop = found["first_row"] + found["rows"]
    batches = list(SyntheticRows.of(SMALL).batches("train", found["first_row"], stop))
    logits, labels = (np.concatenate([batch[index] for batch in batches]) for index in (1, 2))
    assert found["teacher_auc"] == pytest.approx(roc_auc_score(labels, logits), abs=1e-5)
    assert found["teacher_expected_auc"] == pytest.approx(0.8, abs=1e-3)
    assert (found["seed"], found["split"]) == (5, "train")


def test_the_same_seed_gives_the_same_bytes_whatever_the_threads(tmp_path: Path, dataset: Path) -> None:
    write_synthetic(SMALL, tmp_path / "again", threads=1)
    for path in dataset.rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(dataset)).read_bytes()


@pytest.mark.parametrize(
    "changes",
    [{"files": 11, "row_group_rows": 777}, {"rows": 17_000, "files": 1, "row_group_rows": 100_000}],
)
def test_rows_do_not_depend_on_how_they_are_cut(
    tmp_path: Path, dataset: Path, changes: dict[str, Any]
) -> None:
    config = _variant(**changes)
    write_synthetic(config, tmp_path / "out")
    assert len(list((tmp_path / "out" / "train").iterdir())) == config.files
    assert _table(tmp_path / "out").equals(_table(dataset).slice(0, config.rows))
    assert _table(tmp_path / "out", "test").equals(_table(dataset, "test"))


def test_another_seed_gives_other_rows_and_the_splits_share_none(tmp_path: Path, dataset: Path) -> None:
    write_synthetic(_variant(seed=6), tmp_path / "out")
    table, other = _table(dataset), _table(tmp_path / "out")
    assert not set(table.column("C3").to_pylist()) & set(other.column("C3").drop_null().to_pylist())
    assert not table.column("I5").equals(other.column("I5"))
    test = _table(dataset, "test")
    # Same ids (same teacher), other rows.
    assert set(test.column("C5").to_pylist()) & set(table.column("C5").to_pylist())
    assert not test.column("I5").equals(table.column("I5").slice(0, 5_000))


def test_strings_are_the_same_ids_in_hex(tmp_path: Path, dataset: Path) -> None:
    write_synthetic(_variant(strings=True), tmp_path / "out")
    strings, numbers = _table(tmp_path / "out"), _table(dataset)
    for name in ("C1", "C3", "C22"):
        expected = [None if value is None else f"{value:08x}" for value in numbers.column(name).to_pylist()]
        assert strings.column(name).to_pylist() == expected
    assert strings.column("label").equals(numbers.column("label"))


def test_nothing_is_missing_if_nothing_shall_be(tmp_path: Path) -> None:
    write_synthetic(_variant(missing=0.0), tmp_path / "out")
    assert sum(column.null_count for column in _table(tmp_path / "out").columns) == 0


def test_missing_values_are_nulls(dataset: Path) -> None:
    table = _table(dataset)
    for name, share in [("I1", 0.45), ("I2", 0.0), ("I12", 0.76), ("C1", 0.0), ("C22", 0.76), ("C25", 0.44)]:
        assert table.column(name).null_count / table.num_rows == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize("strings", [False, True])
def test_multi_hot_ids_are_lists(tmp_path: Path, strings: bool) -> None:
    write_synthetic(_variant(rows=1000, test_rows=250, multi_hot=True, strings=strings), tmp_path / "out")
    table = _table(tmp_path / "out")
    table.validate(full=True)
    assert table.schema.field("C1").type == pa.list_(pa.string() if strings else pa.int64())
    lengths = np.array([len(ids) for ids in table.column("C20").to_pylist()])
    assert lengths.mean() == pytest.approx(12, rel=0.2)
    assert (lengths == 0).mean() == pytest.approx(0.44, abs=0.04)
    assert table.column("C20").null_count == 0
    assert read_description(tmp_path / "out")["columns"]["multi_hot"] is True


def test_ids_are_skewed(dataset: Path) -> None:
    counts = np.sort([entry["counts"] for entry in _table(dataset).column("C3").value_counts().to_pylist()])
    assert counts[-20:].sum() > 0.2 * counts.sum()
    assert (counts <= 3).sum() > 1000


def test_one_row_is_enough(tmp_path: Path) -> None:
    description = write_synthetic(SyntheticConfig(rows=1), tmp_path / "out")
    assert _table(tmp_path / "out").num_rows == _table(tmp_path / "out", "test").num_rows == 1
    assert description["teacher"]["auc"]["train"] is None


@given(
    rows=st.integers(1, 5000), files=st.integers(1, 40), group=st.integers(1, 600), test=st.integers(1, 3000)
)
def test_files_cover_all_rows_once_and_none_is_empty(rows: int, files: int, group: int, test: int) -> None:
    files = min(files, rows)
    config = SyntheticConfig(rows=rows, files=files, row_group_rows=group, test_rows=test)
    for split, count in (("train", rows), ("test", test)):
        bounds = config.bounds(split)
        assert bounds[0] == 0
        assert bounds[-1] == count
        assert all(start < stop for start, stop in pairwise(bounds))
    bounds = config.bounds("train")
    assert len(bounds) == files + 1
    if files * group <= rows:
        assert all(bound % group == 0 for bound in bounds[:-1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": 0}, "`rows`=.* must be a whole number, 1 or more"),
        ({"rows": 5, "test_rows": -1}, "`test_rows`"),
        ({"rows": 5, "seed": -1}, "`seed`"),
        ({"rows": 5, "scale": 0.0}, r"`scale` must lie in \(0, 100\]"),
        ({"rows": 5, "missing": 1.5}, r"`missing` must lie in \[0, 1\], but 1.5"),
        ({"rows": 5, "files": 6}, "`files` must not exceed `rows`"),
        ({"rows": 5, "row_group_rows": 0}, "`row_group_rows`"),
    ],
)
def test_options_that_make_no_sense_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SyntheticConfig(**options)


def test_no_threads_cannot_write(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`threads`=0 must be a whole number, 1 or more"):
        write_synthetic(SMALL, tmp_path / "out", threads=0)
    assert list(tmp_path.iterdir()) == []


def test_progress_ends_with_all_rows(tmp_path: Path) -> None:
    reports: list[tuple[int, float]] = []
    write_synthetic(SMALL, tmp_path / "out", progress=lambda rows, share: reports.append((rows, share)))
    assert reports[-1] == (25_000, 1.0)
    assert reports == sorted(reports)
    assert len(reports) >= 4  # as many as there are files


@pytest.mark.parametrize("threads", [1, 3])
def test_a_disk_that_fills_up_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    written = threading.Semaphore(2)
    write_table = pq.ParquetWriter.write_table

    def fill_up(self: pq.ParquetWriter, *args: Any, **options: Any) -> None:
        if not written.acquire(blocking=False):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_table(self, *args, **options)

    monkeypatch.setattr(pq.ParquetWriter, "write_table", fill_up)
    with pytest.raises(
        StorageError, match=r"no space left to write .*out/(train|test)/part-\d+.parquet; make room"
    ):
        write_synthetic(SMALL, tmp_path / "out", threads=threads)
    assert list(tmp_path.iterdir()) == []
    assert not [thread for thread in threading.enumerate() if "ThreadPool" in thread.name]


def test_a_failure_stops_the_other_threads_too(tmp_path: Path) -> None:
    calls = []

    def fail_at_third(rows: int, share: float) -> None:
        calls.append(rows)
        if len(calls) == 3:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_synthetic(
            _variant(rows=40 * BLOCK_ROWS, files=40), tmp_path / "out", threads=2, progress=fail_at_third
        )
    assert len(calls) < 10
    assert list(tmp_path.iterdir()) == []


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    def peak(rows: int) -> tuple[int, int]:
        config = SyntheticConfig(rows=rows, test_rows=1000, scale=0.002, files=1, row_group_rows=BLOCK_ROWS)
        before = pa.total_allocated_bytes()
        highest = 0

        def watch(*_: Any) -> None:
            nonlocal highest
            highest = max(highest, pa.total_allocated_bytes() - before)

        tracemalloc.reset_peak()
        write_synthetic(config, tmp_path / str(rows), threads=1, progress=watch)
        return tracemalloc.get_traced_memory()[1], highest

    tracemalloc.start()
    try:
        peak(BLOCK_ROWS)  # imports and caches
        small, large = peak(2 * BLOCK_ROWS), peak(5 * BLOCK_ROWS)
    finally:
        tracemalloc.stop()
    assert large[0] < 1.1 * small[0]
    assert large[1] < 1.2 * small[1] + 1_000_000
