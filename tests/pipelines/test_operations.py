from __future__ import annotations

import errno
import itertools
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from intune.pipelines import operations
from intune.pipelines import plan as plan_module
from intune.pipelines.errors import (
    CorruptError,
    DataError,
    IntuneError,
    MemoryShortError,
    StageError,
    StageTimeout,
    StorageError,
    WorkerLostError,
)
from intune.pipelines.joining import Joining
from intune.pipelines.operations import Job, Operations, call_here, cpu_seconds
from intune.pipelines.payloads import Missing, Piece
from intune.pipelines.plan import LoadBlock, Order, RowGroups, ShuffleSpec, make_plan
from intune.pipelines.reading.dataset import Dataset, FileEntry, open_dataset
from intune.pipelines.reading.reader import Stopped
from intune.pipelines.reading.source import make_source
from intune.pipelines.run import finalize
from intune.pipelines.schema import Ragged
from intune.pipelines.stages import Map

Files = list[list[list[int]]]


class IdReader:
    """Stands in for files: rows are their ids; some row groups cannot be read."""

    def __init__(self, files: Files, bad: set[tuple[int, int]]) -> None:
        self.files, self.bad = files, bad

    def read(self, block: LoadBlock) -> dict[str, Any]:
        if self.bad & {(block.file, group) for group in block.groups}:
            raise CorruptError(f"file {block.file}, groups {block.groups}: broken")
        ids = [row for group in block.groups for row in self.files[block.file][group]]
        rows = np.array(ids[block.skip : block.skip + block.rows], dtype=np.int64)
        lengths = rows % 3
        return {
            "id": rows,
            "bag": Ragged(np.repeat(rows, lengths), np.concatenate([[0], np.cumsum(lengths)])),
            "name": pa.array([str(row) for row in rows.tolist()]),
        }

    def read_some(self, block: LoadBlock) -> Iterator[dict[str, Any]]:
        for name, column in self.read(block).items():
            yield {name: column}

    def close(self) -> None:
        pass


@contextmanager
def small(block_rows: int) -> Iterator[None]:
    """So few rows a block that small data makes many tasks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_module, "BLOCK_ROWS", block_rows)
        yield


@pytest.fixture(autouse=True)
def small_blocks() -> Iterator[None]:
    with small(10):
        yield


def job_of(
    files: Files,
    kinds: tuple[str, ...],
    *,
    batch: int = 4,
    window: int = 2,
    maps: tuple[Map, ...] = (),
    skip: bool = False,
    chunk_rows: int = 8,
) -> Job:
    steps: Any = tuple((f"{kind}{number}", kind) for number, kind in enumerate(kinds))
    order = Order(
        steps=steps,
        batch_size=batch,
        drop_last=False,
        shuffle=ShuffleSpec(row_groups=window, seed=3) if "shuffle" in kinds else None,
    )
    groups = RowGroups(
        file=np.array([i for i, file in enumerate(files) for _ in file], dtype=np.int64),
        group=np.array([g for file in files for g in range(len(file))], dtype=np.int64),
        rows=np.array([len(rows) for file in files for rows in file], dtype=np.int64),
        row_bytes=8.0,
    )
    plan = make_plan(groups, order, chunk_rows=chunk_rows)
    entries = tuple(
        FileEntry(path=f"file-{i}", rows=tuple(len(rows) for rows in file)) for i, file in enumerate(files)
    )
    data = Dataset(
        filesystem=None, files=entries, columns=("id",), fills=(None,), schema=pa.schema([]), row_bytes=8.0
    )
    return Job(plan=plan, dataset=data, maps=maps, skip=skip)


def run_all(operations: Operations) -> tuple[list[dict[str, Any]], list[str]]:
    """Every task of the plan, one after the other; the batches, and what was skipped."""
    outputs: list[Any] = []
    skipped: list[str] = []
    for number, level in enumerate(operations.job.plan.levels):
        before, outputs = outputs, []
        for index in range(len(level)):
            inputs = before[int(level.first[index]) : int(level.last[index])] if number else []
            result = operations.run(number, index, inputs)
            skipped += result.skipped
            outputs.append(result.payload)
    return [batch for payload in outputs for batch in finalize(payload) if batch is not None], skipped


def check_columns(batch: dict[str, Any]) -> list[int]:
    """The ids of a batch, all other columns being checked against them."""
    ids: list[int] = batch["id"].tolist()
    assert batch["name"].to_pylist() == [str(row) for row in ids]
    ends = batch["bag"].offsets.tolist()
    values = batch["bag"].values.tolist()
    assert [values[low:high] for low, high in itertools.pairwise(ends)] == [[row] * (row % 3) for row in ids]
    return ids


def identity(block: dict[str, Any]) -> dict[str, Any]:
    return block


KINDS: list[tuple[str, ...]] = [
    ("batch",),
    ("map", "batch", "transfer"),
    ("shuffle", "batch", "map"),
    ("map", "shuffle", "map", "batch", "map", "transfer"),
    ("batch", "shuffle", "map"),
    ("batch", "map", "shuffle", "map"),
]


@settings(max_examples=40)
@given(
    sizes=st.lists(
        st.lists(st.one_of(st.integers(0, 14), st.just(90)), min_size=1, max_size=4), min_size=1, max_size=4
    ).filter(lambda files: sum(map(sum, files)) > 0),
    kinds=st.sampled_from(KINDS),
    batch=st.sampled_from([1, 2, 3, 7, 12]),
    window=st.integers(1, 4),
    block_rows=st.sampled_from([1, 10, 100]),
    chunk_rows=st.sampled_from([1, 8, 100]),
    rowwise=st.booleans(),
    bad=st.sets(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=4),
)
def test_tasks_make_the_reference_batches_less_the_rows_that_cannot_be_read(
    reference: Callable[..., list[list[int]]],
    numbered: Callable[..., Files],
    sizes: list[list[int]],
    kinds: tuple[str, ...],
    batch: int,
    window: int,
    block_rows: int,
    chunk_rows: int,
    rowwise: bool,
    bad: set[tuple[int, int]],
) -> None:
    files = numbered(sizes)
    maps = tuple(Map(function=identity, rowwise=rowwise) for kind in kinds if kind == "map")
    with small(block_rows):
        job = job_of(files, kinds, batch=batch, window=window, maps=maps, skip=True, chunk_rows=chunk_rows)
        batches, skipped = run_all(Operations(job, reader=IdReader(files, bad)))  # type: ignore[arg-type]
        other = job_of(files, kinds, batch=batch, window=window, maps=maps, skip=True, chunk_rows=7)
        again, _ = run_all(Operations(other, reader=IdReader(files, bad)))  # type: ignore[arg-type]
        assert [batch["id"].tolist() for batch in again] == [batch["id"].tolist() for batch in batches]
    shuffle = None
    if "shuffle" in kinds:
        shuffle = "rows" if kinds.index("shuffle") < kinds.index("batch") else "batches"
    broken = [block for block in job.plan.blocks if bad & {(block.file, group) for group in block.groups}]
    missing = {row for block in broken for group in block.groups for row in files[block.file][group]}
    whole = reference(
        files, batch_size=batch, shuffle=shuffle, row_groups=window, seed=3, block_rows=block_rows
    )
    left = [[row for row in rows if row not in missing] for rows in whole]
    assert [check_columns(made) for made in batches] == [rows for rows in left if rows]
    assert len(skipped) == len(broken)


@pytest.mark.parametrize("kinds", KINDS)
def test_without_skip_a_block_that_cannot_be_read_ends_the_job(
    numbered: Callable[..., Files], kinds: tuple[str, ...]
) -> None:
    files = numbered([[10, 10]])
    maps = tuple(Map(function=identity) for kind in kinds if kind == "map")
    operations = Operations(job_of(files, kinds, maps=maps), reader=IdReader(files, {(0, 1)}))  # type: ignore[arg-type]
    with pytest.raises(CorruptError, match="broken"):
        run_all(operations)


def test_storage_that_fails_is_left_to_whoever_tries_again_also_under_skip(
    numbered: Callable[..., Files],
) -> None:
    files = numbered([[5]])

    class Down(IdReader):
        def read(self, block: LoadBlock) -> dict[str, Any]:
            raise StorageError("down")

    operations = Operations(job_of(files, ("batch",), skip=True), reader=Down(files, set()))  # type: ignore[arg-type]
    with pytest.raises(StorageError):
        operations.run(0, 0, [])


def test_blocks_and_batches_are_views_until_a_batch_spans_two_blocks(numbered: Callable[..., Files]) -> None:
    files = numbered([[10, 10]])
    job = job_of(files, ("batch",), batch=4, chunk_rows=100)
    operations = Operations(job, reader=IdReader(files, set()))  # type: ignore[arg-type]
    blocks = [operations.run(0, index, []).payload for index in range(2)]
    pieces = [
        piece
        for index in range(len(job.plan.levels[1]))
        for piece in operations.run(
            1, index, blocks[int(job.plan.levels[1].first[index]) : int(job.plan.levels[1].last[index])]
        ).payload
    ]
    shared = [
        any(np.shares_memory(batch["id"], block["id"]) for block in blocks)
        for piece in pieces
        for batch in piece.batches()
        if batch is not None
    ]
    assert shared == [True, True, False, True, True]


# ---- user's functions ------------------------------------------------------------------------------------------


def spoil(rows: set[int], error: Exception) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def function(block: dict[str, Any]) -> dict[str, Any]:
        if rows & set(block["id"].tolist()):
            raise error
        return block

    return function


@pytest.mark.parametrize(("rowwise", "wrap"), [(False, partial), (True, lambda function: function)])
def test_a_batch_whose_function_raises_is_left_out_alone(
    numbered: Callable[..., Files], rowwise: bool, wrap: Any
) -> None:
    files = numbered([[20]])
    stage = Map(function=wrap(spoil({9}, KeyError("nope"))), rowwise=rowwise)
    job = job_of(files, ("batch", "map"), batch=4, chunk_rows=100, maps=(stage,), skip=True)
    batches, skipped = run_all(Operations(job, reader=IdReader(files, set())))  # type: ignore[arg-type]
    assert [check_columns(batch) for batch in batches] == [
        [0, 1, 2, 3], [4, 5, 6, 7], [12, 13, 14, 15], [16, 17, 18, 19],
    ]  # fmt: skip
    (message,) = skipped
    assert "spoil.<locals>.function raised KeyError: 'nope'" in message


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError("cannot allocate"), "cannot allocate; nothing is wrong with the batch.* fewer slots"),
        (
            OSError(errno.EMFILE, "too many"),
            r"too many; nothing is wrong.*\(its control group, ulimit -v, -n\)",
        ),
        (MemoryShortError("none is left"), "none is left"),
    ],
)
def test_want_of_memory_in_a_function_is_no_reason_to_leave_data_out(
    numbered: Callable[..., Files], error: Exception, told: str
) -> None:
    files = numbered([[20]])
    stage = Map(function=spoil({9}, error))
    job = job_of(files, ("batch", "map"), batch=4, chunk_rows=100, maps=(stage,), skip=True)
    with pytest.raises(IntuneError, match=told):
        run_all(Operations(job, reader=IdReader(files, set())))  # type: ignore[arg-type]


def test_a_process_that_cannot_be_started_is_no_reason_to_leave_data_out(
    numbered: Callable[..., Files],
) -> None:
    files = numbered([[20]])
    stage = Map(function=identity)
    job = job_of(files, ("batch", "map"), batch=4, maps=(stage,), skip=True)

    def call(stage: Map, block: dict[str, Any]) -> dict[str, Any]:
        raise WorkerLostError("a worker process could not be started") from OSError("Too many open files")

    with pytest.raises(WorkerLostError, match="could not be started"):
        run_all(Operations(job, call, reader=IdReader(files, set())))  # type: ignore[arg-type]


def test_where_the_system_allows_no_more_threads_no_batch_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where its control group's pids.max is reached: the data is not guilty of that."""
    files = [[list(range(8))]]
    job = job_of(files, ("batch", "map"), batch=4, maps=(Map(function=identity, timeout=60),), skip=True)
    work = Operations(job, reader=IdReader(files, set()))  # type: ignore[arg-type]
    cut = work.run(1, 0, [work.run(0, 0, []).payload]).payload

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(
        WorkerLostError, match=r"batch.*can't start new thread\); allow more processes \(ulimit -u"
    ):
        work.run(2, 0, [cut])


class Coded(IntuneError):
    """A user's error whose constructor wants more than a text."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{text} ({code})")


class Renamed(DataError):
    """A user's error like ours."""


class Scarce(Coded, MemoryError):
    """Want of memory, as a user says it."""


@pytest.mark.parametrize("skip", [False, True])
def test_errors_of_ours_that_users_derive_name_the_place_whatever_their_constructor_wants(
    numbered: Callable[..., Files], skip: bool
) -> None:
    def run(error: Exception) -> Any:
        files = numbered([[20]])
        job = job_of(files, ("batch", "map"), batch=4, maps=(Map(function=spoil({9}, error)),), skip=skip)
        return run_all(Operations(job, reader=IdReader(files, set())))  # type: ignore[arg-type]

    coded = Coded(7, "no such code")
    place = r"stage 'map1', batch 2 \(from .*\): "
    message = place + r".*function raised Coded: no such code \(7\); mend the function"
    if skip:
        batches, skipped = run(coded)
        assert len(batches) == 4
        assert re.search(message, skipped[0])
    else:
        with pytest.raises(StageError, match=message) as caught:
            run(coded)
        assert caught.value.__cause__ is coded
        with pytest.raises(Renamed, match=place + "as it is"):
            run(Renamed("as it is"))
    with pytest.raises(StageError, match="raised Scarce: no room"):
        run(Scarce(7, "no room"))


class Mute(Exception):
    """Whose text cannot be made, since what its constructor sets is missing."""

    def __str__(self) -> str:
        return f"code {self.code}"  # type: ignore[attr-defined]


def test_an_error_that_has_no_text_is_named_all_the_same(numbered: Callable[..., Files]) -> None:
    files = numbered([[20]])
    job = job_of(files, ("batch", "map"), batch=4, maps=(Map(function=spoil({9}, Mute())),))
    with pytest.raises(StageError, match=r"batch 2 .*raised Mute: \(its text cannot be made\); mend"):
        run_all(Operations(job, reader=IdReader(files, set())))  # type: ignore[arg-type]


def test_a_function_that_says_that_storage_failed_is_not_called_again_on_what_it_has_changed(
    numbered: Callable[..., Files],
) -> None:
    """A read that failed is tried again; a function may have changed the arrays it was given."""
    files = numbered([[20]])
    down = StorageError("the look-up is down")
    job = job_of(files, ("batch", "map"), batch=4, maps=(Map(function=spoil({9}, down)),))
    with pytest.raises(
        StageError, match=r"function raised StorageError: the look-up is down; mend"
    ) as caught:
        run_all(Operations(job, reader=IdReader(files, set())))  # type: ignore[arg-type]
    assert caught.value.__cause__ is down


@pytest.mark.parametrize("skip", [False, True])
def test_once_a_job_is_over_no_function_is_called_for_the_batches_left(
    numbered: Callable[..., Files], skip: bool
) -> None:
    files = numbered([[20]])
    calls: list[list[int]] = []

    def end(block: dict[str, Any]) -> dict[str, Any]:
        calls.append(block["id"].tolist())
        job.over.now = 5 in block["id"]
        return block

    job = job_of(files, ("batch", "map"), batch=4, chunk_rows=100, maps=(Map(function=end),), skip=skip)
    with pytest.raises(Stopped):
        run_all(Operations(job, reader=IdReader(files, set())))  # type: ignore[arg-type]
    assert calls == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_before_batch_the_block_is_left_out_and_later_batches_keep_their_rows(
    numbered: Callable[..., Files],
) -> None:
    files = numbered([[10, 10, 10]])
    stage = Map(function=spoil({15}, ValueError("bad")))
    job = job_of(files, ("map", "batch"), batch=4, maps=(stage,), skip=True)
    batches, skipped = run_all(Operations(job, reader=IdReader(files, set())))  # type: ignore[arg-type]
    assert [check_columns(batch) for batch in batches] == [
        [0, 1, 2, 3], [4, 5, 6, 7], [8, 9], [20, 21, 22, 23], [24, 25, 26, 27], [28, 29],
    ]  # fmt: skip
    assert len(skipped) == 1


def test_a_function_that_raises_names_stage_batch_file_row_group_and_remedy_and_is_the_cause(
    tmp_path: Path,
) -> None:
    for name in ("a", "b"):
        pq.write_table(pa.table({"id": np.arange(10)}), tmp_path / f"{name}.parquet", row_group_size=5)
    data = open_dataset(make_source(tmp_path))
    error = ZeroDivisionError("division by zero")
    order = Order(steps=(("batch", "batch"), ("transform", "map")), batch_size=4, drop_last=False)
    with small(5):
        plan = make_plan(data.row_groups(), order, chunk_rows=4)
    operations = Operations(Job(plan=plan, dataset=data, maps=(Map(function=spoil({4}, error)),)))
    with pytest.raises(StageError) as caught:
        run_all(operations)
    operations.close()
    assert caught.value.__cause__ is error
    path = re.escape(str(tmp_path / "a.parquet"))
    assert re.fullmatch(
        rf"stage 'transform', batch 1 \(from {path}, row groups 0 to 1\): "
        r"spoil\.<locals>\.function raised ZeroDivisionError: division by zero; "
        r"mend the function, or skip such batches with on_error='skip'",
        str(caught.value),
    )


def test_functions_run_in_order_and_may_change_what_they_get(numbered: Callable[..., Files]) -> None:
    files = numbered([[10, 3]])

    def add(block: dict[str, Any]) -> dict[str, Any]:
        block["x"] = block["id"] + 1
        return block

    def double(block: dict[str, Any]) -> dict[str, Any]:
        block["x"] *= 2
        return block

    for maps in ((add, double), (double, add)):
        stages = tuple(Map(function=function) for function in maps)
        job = job_of(files, ("batch", "map", "map"), maps=stages)
        operations = Operations(job, reader=IdReader(files, set()))  # type: ignore[arg-type]
        if maps[0] is double:
            with pytest.raises(StageError, match="raised KeyError: 'x'"):
                run_all(operations)
        else:
            batches, _ = run_all(operations)
            assert [batch["x"].tolist() for batch in batches] == [
                [2 * (row + 1) for row in check_columns(batch)] for batch in batches
            ]


def test_blocks_of_a_window_whose_types_differ_are_refused_rather_than_mixed_up(
    numbered: Callable[..., Files],
) -> None:
    files = numbered([[10, 10]])

    def fickle(block: dict[str, Any]) -> dict[str, Any]:
        rows = block["id"]
        types = (int, float, int, float) if rows[0] == 0 else (int, int, float, float)
        return {name: rows.astype(type_) for name, type_ in zip("abcd", types, strict=True)}

    job = job_of(files, ("map", "shuffle", "batch"), maps=(Map(function=fickle),))
    with pytest.raises(
        StageError, match=r"'map0' made cannot be joined: column 'b' is array of int64 in one"
    ):
        run_all(Operations(job, reader=IdReader(files, set())))  # type: ignore[arg-type]


def later(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Map:
    """A function that returns something else for blocks that do not begin with row 0."""
    return Map(function=lambda block: block if block["id"][0] == 0 else change(block))


UNLIKE: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    "one more": (lambda block: {**block, "more": block["id"]}, "column 'more' is in some of them only"),
    "one less": (
        lambda block: {"id": block["id"], "bag": block["bag"]},
        "column 'name' is in some of them only",
    ),
    "type": (
        lambda block: {**block, "id": block["id"].astype(np.float32)},
        r"column 'id' is array of .*float32",
    ),
    "shape": (
        lambda block: {**block, "id": block["id"][:, None]},
        r"column 'id' is .*with rows of shape \(1,\)",
    ),
    "kind": (
        lambda block: {**block, "id": torch.from_numpy(block["id"])},
        r"'id' is .*tensor of torch.int64",
    ),
    "strings": (
        lambda block: {**block, "name": block["name"].cast(pa.binary())},
        "'name' is .*array of binary",
    ),
    "lists": (
        lambda block: {**block, "bag": Ragged(block["bag"].values.astype("f4"), block["bag"].offsets)},
        "column 'bag' is lists, their values, array of .*float32",
    ),
}


@pytest.mark.parametrize("difference", UNLIKE)
@pytest.mark.parametrize("kinds", [("map", "batch"), ("map", "shuffle", "batch")])
def test_blocks_that_differ_are_not_joined_and_the_function_and_the_column_are_named(
    numbered: Callable[..., Files], kinds: tuple[str, ...], difference: str
) -> None:
    files = numbered([[10, 10, 10]])
    change, message = UNLIKE[difference]
    job = job_of(files, kinds, batch=4, window=3, maps=(later(change),))
    place = r"stage '(batch1|shuffle1)', .*: blocks that stage 'map0' made cannot be joined: "
    remedy = "; its function must return the same columns, of the same types, for every block"
    with pytest.raises(StageError, match=f"{place}.*{message}.*{remedy}"):
        run_all(Operations(job, reader=IdReader(files, set())))  # type: ignore[arg-type]


@pytest.mark.parametrize("kinds", [("map", "batch", "map"), ("map", "shuffle", "batch", "map")])
def test_fixed_length_strings_of_blocks_need_not_be_as_long(
    numbered: Callable[..., Files], kinds: tuple[str, ...]
) -> None:
    files = numbered([[10, 10]])
    write = Map(
        function=lambda block: {**block, "text": block["id"].astype("U1" if block["id"][0] == 0 else "U2")}
    )
    read = Map(function=lambda block: {"read": block.pop("text").astype(np.int64), **block})
    job = job_of(files, kinds, batch=4, maps=(write, read))
    batches, _ = run_all(Operations(job, reader=IdReader(files, set())))  # type: ignore[arg-type]
    assert sum(len(check_columns(batch)) for batch in batches) == 20
    assert all(batch["read"].tolist() == batch["id"].tolist() for batch in batches)


def test_a_function_for_single_rows_gets_many_batches_at_once_and_another_one_by_one(
    numbered: Callable[..., Files],
) -> None:
    files = numbered([[400]])
    calls: list[int] = []

    def count(block: dict[str, Any]) -> dict[str, Any]:
        calls.append(len(block["id"]))
        return block

    for rowwise, expected in ((False, [4] * 100), (True, [4] * 3 + [12] * 32 + [4])):
        calls.clear()
        stage = Map(function=count, rowwise=rowwise)
        job = job_of(
            files, ("batch", "map"), chunk_rows=1000, maps=(stage,)
        )  # 400 / 32 rows: 3 batches a task
        batches, _ = run_all(Operations(job, reader=IdReader(files, set())))  # type: ignore[arg-type]
        assert [len(check_columns(batch)) for batch in batches] == [4] * 100
        assert calls == expected


def test_tasks_after_a_window_of_mixed_batches_look_at_their_own_batches_only(
    numbered: Callable[..., Files], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes the whole window: were all its batches looked at by each, time would grow with its square."""
    taken = []
    singles = Piece.singles
    monkeypatch.setattr(Piece, "singles", lambda piece: taken.append(piece) or singles(piece))  # type: ignore[func-returns-value]
    files = numbered([[10] * 40])
    kinds = ("batch", "shuffle", "map", "map", "transfer")
    job = job_of(files, kinds, batch=1, window=40, maps=(Map(function=identity),) * 2)
    batches, _ = run_all(Operations(job, reader=IdReader(files, set())))  # type: ignore[arg-type]
    assert sorted(row for batch in batches for row in check_columns(batch)) == list(range(400))
    assert len(taken) < 4 * len(batches)


def test_want_of_memory_is_no_fault_of_the_data(numbered: Callable[..., Files]) -> None:
    stage = Map(function=spoil({9}, OSError(errno.ENOMEM, "Cannot allocate memory")))
    files = numbered([[20]])
    job = job_of(files, ("batch", "map"), batch=4, maps=(stage,), skip=True)
    with pytest.raises(StageError, match="Cannot allocate memory"):
        run_all(Operations(job, reader=IdReader(files, set())))  # type: ignore[arg-type]


def test_only_the_last_function_is_given_batches_one_by_one_for_its_speed(
    numbered: Callable[..., Files],
) -> None:
    """What an earlier one is given decides whether the next gets batches joined."""
    files = numbered([[4] * 200])
    calls: dict[str, list[int]] = {"first": [], "last": []}
    used = 0.0

    def slow(name: str) -> Map:
        def function(block: dict[str, Any]) -> dict[str, Any]:
            nonlocal used
            calls[name].append(len(block["id"]))
            used += 1.0 if len(block["id"]) > 4 else 0.1
            return block

        return Map(function=function, rowwise=True)

    maps = (slow("first"), slow("last"))
    job = job_of(files, ("batch", "map", "map"), chunk_rows=1000, maps=maps)
    job = replace(job, joining=Joining(lambda: used))
    batches, _ = run_all(Operations(job, reader=IdReader(files, set())))  # type: ignore[arg-type]
    assert np.concatenate([check_columns(batch) for batch in batches]).tolist() == list(range(800))
    assert set(calls["first"][5:-5]) == {8}
    assert set(calls["last"][50:-5]) == {4}


def test_a_function_that_does_not_return_in_time_is_given_up() -> None:
    release = threading.Event()

    def hang(block: dict[str, Any]) -> dict[str, Any]:
        release.wait(60)
        return block

    try:
        with pytest.raises(
            StageTimeout, match=r"did not return within `timeout`=0.01 s; mend it or allow more"
        ):
            call_here(Map(function=hang, timeout=0.01), {"id": np.arange(3)})
    finally:
        release.set()
    block: dict[str, Any] = {"id": np.arange(3)}
    assert call_here(Map(function=identity, timeout=60), block) is block
    with pytest.raises(TimeoutError, match="its own"):
        call_here(Map(function=spoil({1}, TimeoutError("its own")), timeout=60), block)


@pytest.mark.parametrize("raises", [False, True])
def test_the_processor_time_of_a_function_with_a_time_limit_is_its_callers(raises: bool) -> None:
    """It has a thread of its own, whose clock the caller's is not."""

    def burn(block: dict[str, Any]) -> dict[str, Any]:
        until = time.thread_time() + 0.02
        while time.thread_time() < until:
            pass
        if raises:
            raise KeyError("x")
        return block

    before = cpu_seconds()
    with pytest.raises(KeyError) if raises else nullcontext():
        call_here(Map(function=burn, timeout=60), {"id": np.arange(3)})
    assert 0.02 <= cpu_seconds() - before < 5


def test_a_time_in_which_the_whole_job_stands_still_is_not_the_functions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks: list[float] = []
    release = threading.Event()

    def stopped(outcomes: list[Any], seconds: float) -> Any:
        looks.append(seconds)
        found = wait(outcomes, 0.0 if len(looks) == 1 else 60.0)
        release.set()  # not before the first look
        return found

    def slow(block: dict[str, Any]) -> dict[str, Any]:
        release.wait(60)
        return block

    monkeypatch.setattr(operations, "wait", stopped)
    block: dict[str, Any] = {"id": np.arange(3)}
    assert call_here(Map(function=slow, timeout=10), block) is block
    assert looks == [10 / operations.LOOKS] * 2


def test_where_a_task_works_is_told_for_every_stage(numbered: Callable[..., Files]) -> None:
    files = numbered([[10] * 6])
    job = job_of(files, ("shuffle", "batch", "map"), batch=4, window=5, maps=(Map(function=identity),))
    assert job.where(0, 0) == f"stage 'load', file-0, row group {job.plan.blocks[0].groups[0]}"
    merged = job.where(1, 0)
    assert merged.startswith("stage 'shuffle0', file-0, row group ")
    assert merged.endswith("; and 3 more")
    assert job.where(2, 0).startswith("stage 'batch1', batch 0 (from file-0, row group ")
    two = job_of(files, ("batch",), batch=4, chunk_rows=8)
    texts = [two.where(1, index) for index in range(len(two.plan.levels[1]))]
    assert texts[0].startswith("stage 'batch0', batch 0 (from file-0, row group 0)")
    before = job_of(files, ("map", "batch"), batch=4, maps=(Map(function=identity),))
    assert before.where(1, 0) == "stage 'map0', file-0, row group 0"  # its rows 0 to 9 are no batches


def test_missing_rows_say_how_many() -> None:
    assert Missing(7).rows == 7
