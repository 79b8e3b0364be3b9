from __future__ import annotations

import errno
import logging
import math
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import fs

from intune.pipelines import Allocation, Budget, Loader, Pipeline
from intune.pipelines import plan as plan_module
from intune.pipelines.errors import (
    ConfigError,
    CorruptError,
    DataError,
    IntuneError,
    NotFoundError,
    SchemaError,
    SkipLimitError,
    StageError,
    StageTimeout,
    StorageError,
)
from intune.pipelines.reading import failures, footers

BUDGET = Budget(cpus=2, memory=1 << 28)
GROUP = 10


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of one row group, retries at once, footers read anew."""
    monkeypatch.setattr(plan_module, "BLOCK_ROWS", GROUP)
    monkeypatch.setattr(failures, "FIRST_DELAY", 0.0005)
    footers.cache.clear()


def write(folder: Path, name: str, first: int, rows: int = 30, **columns: Any) -> Path:
    """A file of row groups of ten rows with ids from `first` on."""
    path = folder / f"{name}.parquet"
    table = pa.table({"id": np.arange(first, first + rows), "x": np.arange(rows, dtype=np.float32)} | columns)
    pq.write_table(table, path, row_group_size=GROUP, compression="zstd")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files a, b and c with ids 0–29, 30–59 and 60–89."""
    for number, name in enumerate("abc"):
        write(tmp_path, name, 30 * number)
    return tmp_path


def load(pipe: Pipeline, **options: Any) -> Loader:
    return pipe.loader(**{"executor": "threads", "budget": BUDGET, **options})


def rows(loader: Loader) -> list[int]:
    return [row for batch in loader for row in batch["id"].tolist()]


def failure(make: Callable[[], Loader]) -> BaseException:
    """What ends the job, be it at opening or in the loop; the loader is closed."""
    with pytest.raises(IntuneError) as caught, make() as loader:
        rows(loader)
    return caught.value


def corrupt(path: Path, group: int) -> None:
    """Overwrite a page of the column `id` of one row group."""
    chunk = pq.read_metadata(path).row_group(group).column(0)
    start = min(chunk.data_page_offset, chunk.dictionary_page_offset or chunk.data_page_offset)
    with path.open("r+b") as file:
        file.seek(start + 25)
        file.write(b"\xff" * (chunk.total_compressed_size - 25))


def spoil(folder: Path, kind: str) -> Path:
    """Make file b unusable."""
    path = folder / "b.parquet"
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "not parquet":
        path.write_text("id,x\n1,2\n" * 100)
    elif kind == "truncated":
        os.truncate(path, path.stat().st_size - 100)
    elif kind == "missing column":
        pq.write_table(pa.table({"id": np.arange(30, 60)}), path)
    elif kind == "wrong type":
        pq.write_table(pa.table({"id": np.arange(30, 60), "x": np.arange(30)}), path)
    elif kind == "corrupt page":
        corrupt(path, 1)
    elif kind == "nulls":
        ids = [None if row == 45 else row for row in range(30, 60)]
        table = pa.table({"id": ids, "x": np.arange(30, dtype=np.float32)})
        pq.write_table(table, path, row_group_size=GROUP)
    return path


UNREADABLE = r"b\.parquet: cannot be decoded .*; write it again, or leave it out"

BAD: dict[str, tuple[type[DataError], str, set[int]]] = {
    "empty": (CorruptError, r"b\.parquet: 0 bytes are too few for a Parquet file; remove", set(range(30, 60))),
    "not parquet": (CorruptError, UNREADABLE, set(range(30, 60))),
    "truncated": (CorruptError, UNREADABLE, set(range(30, 60))),
    "missing column": (SchemaError, r"b\.parquet: column 'x' is missing, which .*a\.parquet has", set(range(30, 60))),
    "wrong type": (
        SchemaError,
        r"b\.parquet: column 'x' is int64, but float in .*a\.parquet; write both with one schema",
        set(range(30, 60)),
    ),
    "corrupt page": (
        CorruptError,
        r"b\.parquet, row group 1: cannot be decoded .*; write it again, or leave it out",
        set(range(40, 50)),
    ),
    "nulls": (
        SchemaError,
        r"b\.parquet, row group 1: column 'id' holds 1 null\(s\), but int64 has no value .*give `fill=`",
        set(range(40, 50)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("shuffle", [False, True])
def test_bad_data_ends_the_job_naming_file_row_group_column_and_remedy(
    folder: Path, kind: str, shuffle: bool
) -> None:
    spoil(folder, kind)
    pipe = Pipeline.from_parquet(folder)
    pipe = pipe.shuffle(2).batch(7) if shuffle else pipe.batch(7)
    type_, message, _ = BAD[kind]
    error = failure(lambda: load(pipe))
    assert type(error) is type_
    assert re.search(message, str(error)), str(error)


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("in_order", [True, False])
def test_under_skip_bad_data_is_left_out_counted_and_reported_every_epoch(
    folder: Path, kind: str, in_order: bool, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(folder, kind)
    _, message, gone = BAD[kind]
    pipe = Pipeline.from_parquet(folder).shuffle(2).batch(7)
    caplog.set_level(logging.WARNING, "intune")
    with load(pipe, on_error="skip", max_skipped=1, in_order=in_order) as loader:
        for epoch in range(3):
            assert sorted(rows(loader)) == sorted(set(range(90)) - gone)
            assert loader.epoch == epoch + 1
        in_file = kind in ("corrupt page", "nulls")
        assert loader.stats().skipped == (3 if in_file else 1)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == (3 if in_file else 1)
    assert all(re.search(f"^skipped: .*{message}", text) for text in messages), messages


@pytest.mark.parametrize("kind", BAD)
def test_more_skips_than_allowed_end_the_job(folder: Path, kind: str) -> None:
    spoil(folder, kind)
    error = failure(lambda: load(Pipeline.from_parquet(folder).batch(7), on_error="skip", max_skipped=0))
    assert type(error) is SkipLimitError
    assert re.search(
        rf"1 files.* were skipped, more than `max_skipped`=0; the last: .*{BAD[kind][1]}", str(error)
    )


def test_files_and_row_groups_count_together(folder: Path) -> None:
    spoil(folder, "empty")
    corrupt(folder / "c.parquet", 0)
    corrupt(folder / "c.parquet", 2)
    pipe = Pipeline.from_parquet(folder).batch(7)
    with load(pipe, on_error="skip", max_skipped=3) as loader:
        assert rows(loader) == [*range(30), *range(70, 80)]
        assert rows(loader) == [*range(30), *range(70, 80)]
        assert loader.stats().skipped == 1 + 2 * 2
    error = failure(lambda: load(pipe, on_error="skip", max_skipped=2))
    assert "3 files, row groups or batches were skipped, more than `max_skipped`=2" in str(error)


# ---- data that is no error -------------------------------------------------------------------------------------


def test_no_file_and_globs_that_match_nothing(folder: Path) -> None:
    for name in ("z.parquet", "z*.parquet", "no/such/*.parquet"):
        error = failure(lambda name=name: load(Pipeline.from_parquet(folder / name).batch(7)))  # type: ignore[misc]
        assert type(error) is NotFoundError
        assert name in str(error)
    pipe = Pipeline.from_parquet([folder / "a.parquet", folder / "z.parquet"]).batch(7)
    assert type(failure(lambda: load(pipe))) is NotFoundError
    with load(pipe, on_error="skip") as loader:
        assert rows(loader) == list(range(30))
        assert loader.stats().skipped == 1


def test_zero_rows_are_an_error_and_empty_row_groups_and_files_are_none(tmp_path: Path) -> None:
    write(tmp_path, "a", 0, rows=0)
    error = failure(lambda: load(Pipeline.from_parquet(tmp_path).batch(7)))
    assert "a.parquet: the data set has no rows" in str(error)
    schema = pa.schema([("id", pa.int64()), ("x", pa.float32())])
    with pq.ParquetWriter(tmp_path / "b.parquet", schema) as writer:
        for ids in ([], [0, 1], [], [], [2], []):
            writer.write_table(pa.table({"id": ids, "x": ids}, schema=schema))
    for pipe in (
        Pipeline.from_parquet(tmp_path).batch(2),
        Pipeline.from_parquet(tmp_path).shuffle(2).batch(2),
    ):
        with load(pipe) as loader:
            assert sorted(rows(loader)) == [0, 1, 2]


def test_nulls_are_filled_nan_passes_through_and_lists_may_be_of_any_length(tmp_path: Path) -> None:
    table = pa.table(
        {
            "id": [0, 1, 2, 3],
            "n": [1, None, 3, None],
            "f": pa.array([1.0, None, math.nan, -math.inf], pa.float32(), from_pandas=False),
            "l": [[1], [], None, [2, None, 4]],
            "s": ["a", None, "c", ""],
        }
    )
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=2)
    pipe = Pipeline.from_parquet(tmp_path, fill={"n": -1, "l": 9}).batch(3)
    with load(pipe) as loader:
        first, second = list(loader)
    assert first["n"].tolist() + second["n"].tolist() == [1, -1, 3, -1]
    assert [math.isnan(v) for v in first["f"].tolist()] == [False, True, True]
    assert second["f"].tolist() == [-math.inf]
    assert (first["l"].values.tolist(), first["l"].offsets.tolist()) == ([1], [0, 1, 1, 1])
    assert (second["l"].values.tolist(), second["l"].offsets.tolist()) == ([2, 9, 4], [0, 3])
    assert first["s"].to_pylist() + second["s"].to_pylist() == ["a", None, "c", ""]


def test_a_batch_larger_than_the_data_is_one_short_batch_or_with_drop_last_an_error(folder: Path) -> None:
    with load(Pipeline.from_parquet(folder).batch(1000)) as loader:
        (batch,) = list(loader)
        assert batch["id"].tolist() == list(range(90))
    error = failure(lambda: load(Pipeline.from_parquet(folder).batch(1000, drop_last=True)))
    assert type(error) is ConfigError
    assert "`batch(1000, drop_last=True)` leaves no batch: 90 rows" in str(error)


def test_a_file_rewritten_shorter_after_it_was_planned_is_named(folder: Path) -> None:
    with load(Pipeline.from_parquet(folder).batch(7)) as loader:
        write(folder, "b", 30, rows=5)
        with pytest.raises(DataError, match=r"b\.parquet, row group [012]"):
            rows(loader)


# ---- functions -------------------------------------------------------------------------------------------------


def raises(block: dict[str, Any]) -> dict[str, Any]:
    if 45 in block["id"]:
        raise ArithmeticError("no such luck")
    return block


def wrong_length(block: dict[str, Any]) -> dict[str, Any]:
    return {"id": block["id"][:-1]} if 45 in block["id"] else block


def no_dict(block: dict[str, Any]) -> Any:
    return list(block) if 45 in block["id"] else block


def no_tensor(block: dict[str, Any]) -> Any:
    return {**block, "when": block["id"].astype("M8[s]")} if 45 in block["id"] else block


FUNCTIONS = {
    raises: r"raises raised ArithmeticError: no such luck; mend the function, or skip such batches",
    wrong_length: r"the function returned 8 rows in column 'id' for a batch of 9; every column must have",
    no_dict: r"the function returned list where a non-empty dict of columns is wanted; return dict",
    no_tensor: r"column 'when' that cannot be used: it holds datetime64\[s\], which no tensor can; convert it",
}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_function_that_fails_ends_the_job_naming_stage_batch_file_and_row_group(
    folder: Path, function: Callable[..., Any]
) -> None:
    error = failure(lambda: load(Pipeline.from_parquet(folder).batch(9).map(function, name="clean")))
    assert type(error) is StageError
    where = r"stage 'clean', batch 5 \(from .*b\.parquet, row groups 1 to 2\): "
    assert re.search(where + f".*{FUNCTIONS[function]}", str(error)), str(error)
    if function is raises:
        assert isinstance(error.__cause__, ArithmeticError)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_under_skip_its_batch_alone_is_left_out(folder: Path, function: Callable[..., Any]) -> None:
    pipe = Pipeline.from_parquet(folder).batch(9).map(function)
    with load(pipe, on_error="skip", max_skipped=1) as loader:
        for _ in range(2):
            assert rows(loader) == [*range(45), *range(54, 90)]
        assert loader.stats().skipped == 2
        assert loader.stats().rows == 2 * 81
    assert type(failure(lambda: load(pipe, on_error="skip", max_skipped=0))) is SkipLimitError


def fails_everywhere(columns: dict[str, Any]) -> dict[str, Any]:
    raise ValueError("nothing can be made of it")


def test_an_epoch_of_which_every_batch_was_left_out_is_an_error(folder: Path) -> None:
    pipe = Pipeline.from_parquet(folder).batch(9).map(fails_everywhere)
    with load(pipe, on_error="skip") as loader, pytest.raises(SkipLimitError, match="all 10 batches"):
        rows(loader)


def test_the_state_counts_batches_that_were_left_out(folder: Path) -> None:
    pipe = Pipeline.from_parquet(folder).batch(9).map(raises)
    with load(pipe, on_error="skip") as loader:
        iterator = iter(loader)
        seen = [row for _ in range(6) for row in next(iterator)["id"].tolist()]
        state = loader.state_dict()
    assert (state["batch"], seen[-1]) == (7, 62)
    with load(pipe, on_error="skip") as loader:
        loader.load_state_dict(state)
        assert rows(loader) == list(range(63, 90))


def test_after_an_error_the_loader_can_be_used_again(folder: Path) -> None:
    fail = [True]

    def once(block: dict[str, Any]) -> dict[str, Any]:
        if fail[0] and 45 in block["id"]:
            raise ArithmeticError("first time")
        return block

    with load(Pipeline.from_parquet(folder).batch(9).map(once)) as loader:
        iterator = iter(loader)
        with pytest.raises(StageError, match="first time"):
            for _ in iterator:
                pass
        with pytest.raises(IntuneError, match="this loop over the loader is over"):
            next(iterator)
        assert loader.stats().memory_held == 0
        fail[0] = False
        assert rows(loader) == list(range(90))


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What a hanging function waits for; opened when the test is over."""
    event = threading.Event()
    yield event
    event.set()


def hanging(gate: threading.Event) -> Callable[..., Any]:
    def hang(block: dict[str, Any]) -> dict[str, Any]:
        if 45 in block["id"] or 80 in block["id"]:
            gate.wait(60)
        return block

    return hang


def test_a_function_that_hangs_ends_the_job_after_its_time(folder: Path, gate: threading.Event) -> None:
    pipe = Pipeline.from_parquet(folder).batch(9).map(hanging(gate), timeout=1.0)
    error = failure(lambda: load(pipe))
    assert type(error) is StageTimeout
    assert re.search(
        r"stage 'transform', batch [58] \(from .*, row groups? .*\): the function did not return within "
        r"`timeout`=1 s; mend it or allow more",
        str(error),
    ), str(error)


def test_under_skip_a_function_that_hangs_costs_its_batches_only(folder: Path, gate: threading.Event) -> None:
    pipe = Pipeline.from_parquet(folder).batch(9).map(hanging(gate), timeout=3.0)
    with load(pipe, on_error="skip", max_skipped=2, allocation=Allocation.shared(2)) as loader:
        assert rows(loader) == [*range(45), *range(54, 72), *range(81, 90)]
        assert loader.stats().skipped == 2


def test_a_function_without_a_time_limit_may_take_long(folder: Path) -> None:
    def slow(block: dict[str, Any]) -> dict[str, Any]:
        threading.Event().wait(0.02)
        return block

    with load(Pipeline.from_parquet(folder).batch(30).map(slow, timeout=60)) as loader:
        assert rows(loader) == list(range(90))


# ---- storage ---------------------------------------------------------------------------------------------------


class Flaky(fs.FileSystemHandler):  # type: ignore[misc]
    """The local filesystem; the reads of a file fail as often as `failures` says for its name."""

    def __init__(self) -> None:
        self.failures: dict[str, int] = {}
        self.local = fs.LocalFileSystem()
        self.lock = threading.Lock()

    def get_type_name(self) -> str:
        return "flaky"

    def get_file_info(self, paths: list[str]) -> Any:
        return self.local.get_file_info(paths)

    def get_file_info_selector(self, selector: Any) -> Any:
        return self.local.get_file_info(selector)

    def open_input_file(self, path: str) -> Any:
        return pa.PythonFile(_FlakyFile(self, path), mode="r")

    def check(self, path: str) -> None:
        name = os.path.basename(path)
        with self.lock:
            if self.failures.get(name, 0) > 0:
                self.failures[name] -= 1
                raise OSError(errno.ECONNRESET, "connection reset by peer")

    def _refuse(self, *arguments: Any, **options: Any) -> Any:
        raise NotImplementedError

    open_input_stream = open_output_stream = open_append_stream = normalize_path = _refuse
    create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = delete_file = _refuse
    move = copy_file = _refuse


class _FlakyFile:
    closed = False

    def __init__(self, storage: Flaky, path: str) -> None:
        self._storage, self._path = storage, path
        self._file = open(path, "rb")  # noqa: SIM115

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, size: int = -1) -> bytes:
        self._storage.check(self._path)
        return self._file.read(size)

    def close(self) -> None:
        self._file.close()


@pytest.fixture
def storage() -> Flaky:
    return Flaky()


def remote(folder: Path, storage: Flaky, tries: int) -> Pipeline:
    return Pipeline.from_parquet(folder, filesystem=fs.PyFileSystem(storage), retries=tries).batch(7)


def test_storage_that_comes_back_costs_nothing_but_tries(folder: Path, storage: Flaky) -> None:
    with load(remote(folder, storage, 4)) as loader:
        storage.failures = {"a.parquet": 3, "c.parquet": 4}
        assert rows(loader) == list(range(90))
        assert loader.stats().stage("load").retries == 7
        assert loader.stats().skipped == 0


def test_storage_that_comes_back_while_the_loader_is_made(folder: Path, storage: Flaky) -> None:
    storage.failures = {"a.parquet": 3, "b.parquet": 4}
    with load(remote(folder, storage, 4)) as loader:
        assert rows(loader) == list(range(90))


def test_storage_that_never_comes_back_ends_the_job_naming_the_place_and_the_tries(
    folder: Path, storage: Flaky, caplog: pytest.LogCaptureFixture
) -> None:
    with load(remote(folder, storage, 2)) as loader:
        storage.failures = {"b.parquet": 10_000}
        with pytest.raises(
            StorageError,
            match=r"b\.parquet, row group \d: storage failed \(.*connection reset by peer\); "
            r"check that it can be reached \(gave up after 3 tries\)",
        ) as caught:
            rows(loader)
    assert isinstance(caught.value.__cause__, OSError)
    assert isinstance(caught.value, OSError)
    assert (
        "connection reset by peer); check that it can be reached; trying again, up to 2 times" in caplog.text
    )


def test_without_retries_the_first_failure_ends_the_job(folder: Path, storage: Flaky) -> None:
    with load(remote(folder, storage, 0)) as loader:
        storage.failures = {"b.parquet": 1}
        with pytest.raises(StorageError, match="gave up after 1 tries"):
            rows(loader)


def test_under_skip_what_storage_keeps_back_is_left_out(folder: Path, storage: Flaky) -> None:
    with load(remote(folder, storage, 1), on_error="skip", max_skipped=3) as loader:
        storage.failures = {"b.parquet": 10_000}
        assert rows(loader) == [*range(30), *range(60, 90)]
        assert loader.stats().skipped == 3
        storage.failures = {}
        assert rows(loader) == list(range(90))


def test_delays_between_tries_double_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert [failures.retry_delay(attempt) for attempt in range(1, 9)] == [
        0.1,
        0.2,
        0.4,
        0.8,
        1.6,
        3.2,
        5.0,
        5.0,
    ]


# ---- all at once -----------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(
    groups=st.sets(st.integers(0, 8), max_size=4),
    batches=st.sets(st.integers(0, 89), max_size=4),
    down=st.integers(0, 3),
    shuffle=st.booleans(),
    slots=st.integers(1, 4),
)
def test_whatever_is_skipped_the_rest_comes_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory,
    groups: set[int],
    batches: set[int],
    down: int,
    shuffle: bool,
    slots: int,
) -> None:
    folder = tmp_path_factory.mktemp("all")
    for number, name in enumerate("abc"):
        write(folder, name, 30 * number)
    for group in groups:
        corrupt(folder / f"{'abc'[group // 3]}.parquet", group % 3)
    broken = {row for group in groups for row in range(group * 10, group * 10 + 10)}
    storage = Flaky()
    storage.failures = {"a.parquet": down}

    def function(block: dict[str, Any]) -> dict[str, Any]:
        if batches & set(block["id"].tolist()):
            raise ArithmeticError
        return block

    base = Pipeline.from_parquet(folder, filesystem=fs.PyFileSystem(storage), retries=3)
    pipe = base.shuffle(3, seed=1).batch(7) if shuffle else base.batch(7)
    made = []
    for pool in (1, slots):
        with load(pipe.map(function), on_error="skip", allocation=Allocation.shared(pool)) as loader:
            if len(broken) == 90:
                continue
            made.append([batch["id"].tolist() for batch in loader])
            assert loader.stats().skipped >= len(groups)
    assert made[0] == made[1]
    seen = [row for batch in made[0] for row in batch]
    assert len(seen) == len(set(seen))
    assert not set(seen) & (broken | batches)
    with load(pipe, on_error="skip") as loader:
        plain = [batch["id"].tolist() for batch in loader]
    assert made[0] == [batch for batch in plain if not batches & set(batch)]
    assert sorted(row for batch in plain for row in batch) == sorted(set(range(90)) - broken)
