from __future__ import annotations

import gc
import itertools
import json
import os
import pickle
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from intune.pipelines import Allocation, Budget, Loader, Pipeline
from intune.pipelines import loader as loader_module
from intune.pipelines import plan as plan_module
from intune.pipelines.errors import ConfigError, LoaderError, StageError
from intune.pipelines.executors.threads import ThreadFleet
from intune.pipelines.memory import resident_bytes

BUDGET = Budget(cpus=2, memory=1 << 28)

SHAPES: tuple[tuple[tuple[int, ...], ...], ...] = (
    ((7,),),
    ((20, 20, 20, 11),),
    ((13, 0, 21), (0,), (40,)),
    ((3, 3, 3, 3, 3, 3), (1,), (30, 2)),
    ((64,) * 4, (64,) * 3, (5,)),
)


@contextmanager
def small(block_rows: int = 20, chunk_rows: int = 16) -> Iterator[None]:
    """So few rows a block and a task that small data makes many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_module, "BLOCK_ROWS", block_rows)
        patch.setattr(loader_module, "BLOCK_ROWS", block_rows)
        patch.setattr(ThreadFleet, "chunk_rows", chunk_rows)
        yield


@pytest.fixture(autouse=True)
def small_blocks() -> Iterator[None]:
    with small():
        yield


def load(pipe: Pipeline, **options: Any) -> Loader:
    return pipe.loader(**{"executor": "threads", "budget": BUDGET, **options})


def ids(batch: dict[str, Any]) -> list[int]:
    """The row ids of a batch, every other column checked against them."""
    rows: list[int] = batch["id"].tolist()
    assert batch["x"].dtype == torch.float32
    assert batch["x"].tolist() == [row * 0.5 for row in rows]
    assert batch["name"].to_pylist() == [f"row {row}" for row in rows]
    ends, values = batch["bag"].offsets.tolist(), batch["bag"].values.tolist()
    assert [values[low:high] for low, high in itertools.pairwise(ends)] == [[row] * (row % 4) for row in rows]
    return rows


def content(batch: dict[str, Any]) -> dict[str, Any]:
    """Every bit of a batch."""
    made: dict[str, Any] = {}
    for name, column in batch.items():
        if isinstance(column, torch.Tensor):
            made[name] = (column.dtype, column.numpy().tobytes())
        elif isinstance(column, pa.Array):
            made[name] = column.to_pylist()
        else:
            made[name] = (column.values.numpy().tobytes(), column.offsets.numpy().tobytes())
    return made


def log(block: dict[str, Any]) -> dict[str, Any]:
    return {**block, "log": np.log1p(block["x"])}


def rowwise(block: dict[str, Any]) -> dict[str, Any]:
    return {**block, "twice": block["x"] * 2}


rowwise.rowwise = True  # type: ignore[attr-defined]


def pipeline(
    folder: Path, shuffle: str | None, window: int, seed: int, batch: int, drop_last: bool
) -> Pipeline:
    pipe = Pipeline.from_parquet(folder)
    if shuffle == "rows":
        return pipe.shuffle(window, seed=seed).batch(batch, drop_last=drop_last)
    pipe = pipe.batch(batch, drop_last=drop_last)
    return pipe.shuffle(window, seed=seed) if shuffle == "batches" else pipe


def allocations(stages: tuple[str, ...]) -> st.SearchStrategy[Any]:
    memory = st.sampled_from([None, None, 1, 100_000])
    counts = st.integers(1, 4)
    return st.one_of(
        st.builds(lambda pool, limit: Allocation.shared(pool, memory=limit), st.integers(1, 6), memory),
        st.builds(
            lambda slots, limit: Allocation.per_stage(slots, memory=limit),
            st.dictionaries(st.sampled_from(stages), counts, min_size=1),
            memory,
        ),
        st.dictionaries(st.sampled_from(stages), counts, min_size=1),
    )


@given(data=st.data())
def test_batches_are_the_same_bit_for_bit_whatever_is_resized_and_wherever_the_loop_is_resumed(
    data_sets: Any, numbered: Callable[..., Any], reference: Callable[..., Any], data: st.DataObject
) -> None:
    shape = data.draw(st.sampled_from(SHAPES), "data")
    shuffle = data.draw(st.sampled_from([None, "rows", "batches"]), "shuffle")
    window, seed = data.draw(st.integers(1, 4), "window"), data.draw(st.integers(0, 5), "seed")
    batch, epoch = data.draw(st.integers(2, 30), "batch"), data.draw(st.integers(0, 3), "epoch")
    world = data.draw(st.integers(1, 3), "world")
    rank = data.draw(st.integers(0, world - 1), "rank")
    total = sum(map(sum, shape))
    drop_last = data.draw(st.booleans(), "drop_last") and total // world >= batch
    block_rows = data.draw(st.sampled_from([1, 20, 65_536]), "block rows")
    pipe = pipeline(data_sets.folder(shape), shuffle, window, seed, batch, drop_last)
    for function in data.draw(st.lists(st.sampled_from([log, rowwise]), max_size=2), "maps"):
        pipe = pipe.map(function)
    share = {"rank": rank, "world_size": world}
    expected = reference(
        numbered(shape), batch_size=batch, drop_last=drop_last, shuffle=shuffle, row_groups=window, seed=seed,
        epoch=epoch, rank=rank, world=world, block_rows=block_rows,
    )  # fmt: skip
    with small(block_rows, data.draw(st.sampled_from([1, 16, 65_536]), "chunk rows")):
        with load(pipe, allocation=Allocation.shared(1), **share) as loader:
            loader.set_epoch(epoch)
            assert len(loader) == len(expected)
            single = [(ids(made), content(made)) for made in loader]
        assert [rows for rows, _ in single] == expected
        stop = data.draw(st.integers(0, len(expected)), "stop")
        with load(pipe, allocation=data.draw(allocations(pipe.stage_names), "allocation"), **share) as loader:
            loader.set_epoch(epoch)
            made = []
            for one in loader:
                made.append(content(one))
                if data.draw(st.integers(0, 2), "resize?") == 0:
                    loader.resize(data.draw(allocations(pipe.stage_names), "resize"))
                if len(made) >= stop:
                    break
            state = json.loads(json.dumps(loader.state_dict()))
        with load(pipe, **share) as resumed:
            resumed.load_state_dict(state)
            assert resumed.epoch == (epoch + 1 if len(made) == len(expected) else epoch)
            if resumed.epoch == epoch:
                made += [content(one) for one in resumed]
    assert made == [bits for _, bits in single]


@settings(max_examples=15)
@given(
    shape=st.sampled_from(SHAPES),
    shuffle=st.sampled_from([None, "rows", "batches"]),
    batch=st.integers(1, 20),
    world=st.integers(1, 4),
    drop_last=st.booleans(),
    in_order=st.booleans(),
)
def test_every_row_comes_once_over_all_ranks_and_ranks_have_as_many_batches(
    data_sets: Any, shape: Any, shuffle: str | None, batch: int, world: int, drop_last: bool, in_order: bool
) -> None:
    total = sum(map(sum, shape))
    if total < world or (drop_last and total // world < batch):
        return
    pipe = pipeline(data_sets.folder(shape), shuffle, 2, 0, batch, drop_last)
    rows, counts = [], set()
    for rank in range(world):
        with load(pipe, rank=rank, world_size=world, in_order=in_order) as loader:
            made = [ids(one) for one in loader]
        rows += [row for one in made for row in one]
        counts.add(len(made))
    if drop_last:
        assert len(rows) == len(set(rows)) == world * (total // world // batch) * batch
    else:
        assert sorted(rows) == list(range(total))
    assert len(counts) == 1 or batch == 1


@settings(max_examples=15)
@given(
    shape=st.sampled_from(SHAPES[1:]),
    batch=st.integers(2, 12),
    stop=st.integers(0, 30),
    seed=st.integers(0, 9),
)
def test_out_of_order_every_batch_comes_once_also_across_a_resume(
    data_sets: Any, numbered: Callable[..., Any], reference: Callable[..., Any],
    shape: Any, batch: int, stop: int, seed: int,
) -> None:  # fmt: skip
    pipe = pipeline(data_sets.folder(shape), "rows", 2, seed, batch, False).map(log)
    expected = reference(
        numbered(shape), batch_size=batch, shuffle="rows", row_groups=2, seed=seed, block_rows=20
    )
    made = []
    with load(pipe, in_order=False, allocation=Allocation.shared(4)) as loader:
        for one in loader:
            made.append(ids(one))
            if len(made) >= stop:
                break
        state = json.loads(json.dumps(loader.state_dict()))
    with load(pipe, in_order=False, allocation=Allocation.shared(4)) as resumed:
        resumed.load_state_dict(state)
        if resumed.epoch == 0:
            made += [ids(one) for one in resumed]
    assert sorted(made) == sorted(expected)


def test_a_loader_tells_the_least_memory_that_was_left(data_sets: Any) -> None:
    with load(pipeline(data_sets.folder(SHAPES[1]), None, 2, 0, 9, False)) as loader:
        assert loader.least_left(60.0) is None
        list(loader)
        left = loader.least_left(60.0)
        assert left is None or left > 0  # where the system does not say


def test_slots_given_while_an_epoch_begins_are_that_epochs(
    data_sets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Ray that takes seconds, in which a tuner may decide."""
    start = ThreadFleet.start
    with load(pipeline(data_sets.folder(SHAPES[1]), None, 2, 0, 9, False)) as loader:

        def slowly(fleet: ThreadFleet, run: Any, threads: int) -> None:
            start(fleet, run, threads)
            loader.resize({"load": 5})

        monkeypatch.setattr(ThreadFleet, "start", slowly)
        stream = iter(loader)
        assert loader.stats().stage("load").slots == 5
        assert len(list(stream)) == len(loader)


def test_a_loop_that_could_not_begin_has_not_used_up_where_to_go_on(
    data_sets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = pipeline(data_sets.folder(SHAPES[1]), None, 2, 0, 9, False)
    with load(pipe) as loader:
        stream = iter(loader)
        for _ in range(2):
            next(stream)
        state = loader.state_dict()
        rest = [ids(batch) for batch in stream]
    with load(pipe) as loader:
        loader.load_state_dict(state)
        with monkeypatch.context() as patch:
            patch.setattr(ThreadFleet, "start", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                iter(loader)
        assert [ids(batch) for batch in loader] == rest


def test_a_close_that_is_cut_short_is_gone_on_with_at_the_end(
    data_sets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second Ctrl-C while the workers end."""
    loader = load(pipeline(data_sets.folder(SHAPES[1]), None, 2, 0, 9, False))
    with monkeypatch.context() as patch:
        patch.setattr(ThreadFleet, "close", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            loader.close()
    assert loader._finalizer.alive
    loader._finalizer()
    assert not loader._fleet._threads  # type: ignore[attr-defined]


def test_a_daemon_thread_that_reads_when_the_program_ends_ends_without_a_word(data_sets: Any) -> None:
    """As other daemon threads do; it would print an error after a job that went well."""
    gate, ended = threading.Event(), threading.Event()
    pipe = pipeline(data_sets.folder(SHAPES[1]), None, 2, 0, 9, False).map(
        lambda block: gate.wait() and block
    )
    loader = load(pipe)

    def read() -> None:
        try:
            list(loader)
        finally:
            ended.set()

    threading.Thread(target=read, daemon=True).start()
    while not loader.stats().stage("transform").running:
        os.sched_yield()
    threading.Timer(0.1, gate.set).start()
    loader._finalizer()  # as at the end of the program
    assert not ended.wait(0.2)


def test_batches_finished_ahead_of_the_one_in_order_are_remembered_and_not_made_again(data_sets: Any) -> None:
    """The first batch's task is held up, others overtake it, the state is saved, another loader goes on."""
    folder = data_sets.folder(SHAPES[1])
    gate = threading.Event()

    def slow_first(block: dict[str, Any]) -> dict[str, Any]:
        if 0 in block["id"]:
            gate.wait(60)
        return block

    pipe = Pipeline.from_parquet(folder).batch(10).map(slow_first)
    with load(pipe, in_order=False, allocation=Allocation.shared(4)) as loader:
        iterator = iter(loader)
        first = [ids(next(iterator)) for _ in range(3)]
        state = loader.state_dict()
        gate.set()
    assert state["batch"] == 0
    assert len(state["ahead"]) == 3
    assert all(0 not in rows for rows in first)
    with load(pipe, in_order=False) as resumed:
        resumed.load_state_dict(state)
        rest = [ids(one) for one in resumed]
    assert len(rest) == len(resumed) - 3
    assert sorted(row for rows in first + rest for row in rows) == list(range(71))


@pytest.mark.parametrize(("row_groups", "said"), [(1, True), (20, False)])
def test_a_shuffle_that_mixes_nothing_says_so(
    data_sets: Any, caplog: pytest.LogCaptureFixture, row_groups: int, said: bool
) -> None:
    """Of many small files, as sinks of streams write them, eight row groups have fewer rows than a batch."""
    with load(pipeline(data_sets.folder(SHAPES[3]), "batches", row_groups, 0, 16, False)) as loader:
        assert ([ids(one) for one in loader] == [ids(one) for one in loader]) is said
    message = f"`shuffle(row_groups={row_groups})` after `batch(16)` changes nothing"
    assert (message in caplog.text) is said


RESUME = """
import json, sys
from intune.pipelines import Budget, Pipeline, plan, loader
from intune.pipelines.executors.threads import ThreadFleet
plan.BLOCK_ROWS = loader.BLOCK_ROWS = 20
ThreadFleet.chunk_rows = 16
answers = []
for case in json.load(sys.stdin):
    pipe = Pipeline.from_parquet(case["folder"])
    pipe = pipe.shuffle(2, seed=5).batch(8) if case["shuffle"] == "rows" else pipe.batch(8).shuffle(2, seed=5)
    options = {"executor": "threads", "budget": Budget(cpus=1, memory=1 << 28), "rank": 1, "world_size": 2}
    with pipe.loader(in_order=case["in_order"], **options) as made:
        made.load_state_dict(case["state"])
        answers.append([batch["id"].tolist() for batch in made])
json.dump(answers, sys.stdout)
"""


def test_a_new_process_goes_on_with_exactly_the_next_batch(data_sets: Any) -> None:
    folder = data_sets.folder(SHAPES[4])
    cases, before, whole = [], [], []
    for shuffle in ("rows", "batches"):
        for stop, in_order in ((1, True), (11, True), (7, False)):
            pipe = pipeline(folder, shuffle, 2, 5, 8, False)
            with load(pipe, rank=1, world_size=2, in_order=in_order) as loader:
                loader.set_epoch(2)
                whole.append([ids(one) for one in loader])
                loader.set_epoch(2)
                iterator = iter(loader)
                before.append([ids(next(iterator)) for _ in range(stop)])
                state = loader.state_dict()
            cases.append({"folder": str(folder), "shuffle": shuffle, "in_order": in_order, "state": state})
    done = subprocess.run(
        [sys.executable, "-c", RESUME],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for case, seen, rest, full in zip(cases, before, json.loads(done.stdout), whole, strict=True):
        if case["in_order"]:
            assert seen + rest == full
        else:
            assert sorted(seen + rest) == sorted(full)


# ---- loops and epochs ------------------------------------------------------------------------------------------


def test_every_loop_is_an_epoch_and_has_its_own_order(
    data_sets: Any, numbered: Callable[..., Any], reference: Callable[..., Any]
) -> None:
    pipe = pipeline(data_sets.folder(SHAPES[1]), "rows", 2, 3, 9, False)
    with load(pipe) as loader:
        for epoch in range(4):
            assert loader.epoch == epoch
            assert [ids(one) for one in loader] == reference(
                numbered(SHAPES[1]),
                batch_size=9,
                shuffle="rows",
                row_groups=2,
                seed=3,
                epoch=epoch,
                block_rows=20,
            )
        loader.set_epoch(1)
        assert [ids(one) for one in loader] == reference(
            numbered(SHAPES[1]), batch_size=9, shuffle="rows", row_groups=2, seed=3, epoch=1, block_rows=20
        )
        assert loader.epoch == 2


def test_a_loop_left_early_begins_the_same_epoch_anew(data_sets: Any) -> None:
    with load(pipeline(data_sets.folder(SHAPES[1]), "rows", 2, 0, 9, False)) as loader:
        seen = []
        for one in loader:
            seen.append(ids(one))
            if len(seen) == 3:
                break
        assert loader.state_dict()["batch"] == 3
        again = [ids(one) for one in loader]
        assert again[:3] == seen
        assert len(again) == len(loader)


def test_a_loop_that_counts_its_batches_ends_the_epoch(data_sets: Any) -> None:
    """`zip(range(len(loader)), loader)` takes every batch and does not ask for one more."""
    pipe = pipeline(data_sets.folder(SHAPES[1]), "rows", 2, 0, 9, False)
    with load(pipe) as loader, load(pipe) as plain:
        for epoch in range(3):
            counted = [ids(one) for _, one in zip(range(len(loader)), loader, strict=False)]
            assert counted == [ids(one) for one in plain]
            assert (loader.epoch, loader.state_dict()["batch"]) == (epoch + 1, 0)


def test_a_loop_closed_by_another_thread_is_not_taken_for_a_whole_epoch(data_sets: Any) -> None:
    waits, go = threading.Event(), threading.Event()

    def slow(block: dict[str, Any]) -> dict[str, Any]:
        waits.set()
        go.wait(60)
        return block

    slowed = load(Pipeline.from_parquet(str(data_sets.folder(SHAPES[1]))).batch(9).map(slow))
    raised: list[BaseException] = []

    def read() -> None:
        try:
            for _ in slowed:
                pass
        except LoaderError as error:
            raised.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    assert waits.wait(60)
    closer = threading.Thread(target=slowed.close)
    closer.start()
    thread.join(60)
    go.set()
    closer.join(60)
    assert "it was closed" in str(raised[0])
    assert (slowed.epoch, slowed.state_dict()["batch"]) == (0, 0)


@pytest.mark.parametrize("when", ["before", "within", "after"])
def test_a_loop_that_begins_while_the_loader_is_closed_is_refused(
    data_sets: Any, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """By another thread, which finds no loop to close, wherever the one that begins it is."""
    start, stop = ThreadFleet.start, ThreadFleet.stop
    loader = load(pipeline(data_sets.folder(SHAPES[1]), None, 2, 0, 9, False))

    def close() -> None:
        thread = threading.Thread(target=loader.close)
        thread.start()
        thread.join()

    def closed_meanwhile(fleet: ThreadFleet, run: Any, threads: int) -> None:
        if when == "before":
            close()
        elif when == "within":
            # As if the workers were being ended, and their runs were left already.
            monkeypatch.setattr(ThreadFleet, "stop", lambda *_: (stop(fleet), begun.set(), go.wait(60)))
            closer.start()
            assert begun.wait(60)
        start(fleet, run, threads)
        if when == "after":
            close()

    begun, go = threading.Event(), threading.Event()
    closer = threading.Thread(target=loader.close)
    monkeypatch.setattr(ThreadFleet, "start", closed_meanwhile)
    raised: list[BaseException] = []

    def read() -> None:
        try:
            for _ in loader:
                pass
        except BaseException as error:
            raised.append(error)
        finally:
            go.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(60)
    if when == "within":
        go.set()
        closer.join(60)
    assert not reader.is_alive(), "the loop hangs"
    assert [type(error) for error in raised] == [LoaderError]
    assert (loader.epoch, loader.state_dict()["batch"]) == (0, 0)


@pytest.mark.parametrize("in_order", [True, False])
def test_threads_that_share_a_loop_get_each_batch_once_and_all_come_to_its_end(
    data_sets: Any, in_order: bool
) -> None:
    pipe = pipeline(data_sets.folder(SHAPES[4]), "rows", 2, 0, 3, False)
    for _ in range(5):
        with load(pipe, in_order=in_order) as loader:
            iterator = iter(loader)
            ready, got = threading.Barrier(4), []

            def read(iterator: Iterator[Any] = iterator, ready: Any = ready, got: list[Any] = got) -> None:
                ready.wait(60)
                got.append([row for one in iterator for row in ids(one)])
                assert next(iterator, None) is None

            threads = [threading.Thread(target=read) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
            assert len(got) == 4, "a thread raised or hangs"
            assert sorted(row for rows in got for row in rows) == list(range(453))
            assert (loader.epoch, loader.state_dict()["batch"]) == (1, 0)
            assert loader.stats().rows == 453


def test_threads_that_wait_for_a_shared_loop_wake_when_it_is_closed(data_sets: Any) -> None:
    waits, go = threading.Event(), threading.Event()

    def slow(block: dict[str, Any]) -> dict[str, Any]:
        waits.set()
        go.wait(60)
        return block

    loader = load(Pipeline.from_parquet(str(data_sets.folder(SHAPES[1]))).batch(9).map(slow))
    iterator = iter(loader)
    raised: list[BaseException] = []

    def read() -> None:
        try:
            next(iterator)
        except LoaderError as error:
            raised.append(error)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert waits.wait(60)
    closer = threading.Thread(target=loader.close)
    closer.start()
    for thread in threads:
        thread.join(60)
    go.set()
    closer.join(60)
    assert ["it was closed" in str(error) for error in raised] == [True] * 3
    assert (loader.epoch, loader.state_dict()["batch"]) == (0, 0)


def test_the_garbage_collector_may_end_a_loop_in_a_worker_that_holds_its_lock(data_sets: Any) -> None:
    """An iterator in a cycle is closed by whichever thread collects: it must not wait for itself."""
    collect, collected, go = threading.Event(), threading.Event(), threading.Event()

    def clock() -> float:
        if collect.is_set() and threading.current_thread() is not reader:
            collect.clear()
            gc.collect()
            collected.set()
        return time.monotonic()

    def slow(block: dict[str, Any]) -> dict[str, Any]:
        if block["id"][0] >= 36:
            go.wait(60)
        return block

    class Holder:
        """Refers to itself, so that only the collector finds it."""

        def __init__(self, batches: Iterator[Any]) -> None:
            self.me, self.batches = self, batches

    rows: list[int] = []

    def use() -> None:
        pipe = Pipeline.from_parquet(str(data_sets.folder(SHAPES[1]))).batch(9).map(slow)
        with load(pipe, clock=clock) as loader:
            gc.disable()
            try:
                holder = Holder(iter(loader))
                next(holder.batches)
                del holder
                collect.set()
                go.set()  # a worker reports its batch, and reads the clock under the lock
                collected.wait(60)
            finally:
                gc.enable()
            rows.extend(row for one in loader for row in ids(one))

    reader = threading.Thread(target=use, daemon=True)
    reader.start()
    reader.join(60)
    assert collected.is_set()
    assert rows == list(range(71))


def test_the_garbage_collector_may_end_a_loader_in_a_worker_that_holds_its_lock(
    data_sets: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The others, which need that lock to end, must not be waited for there, nor be said to hang."""
    collect, collected = threading.Event(), threading.Event()

    def clock() -> float:
        if collect.is_set() and threading.current_thread() is not threading.main_thread():
            collect.clear()
            gc.collect()
            collected.set()
        return time.monotonic()

    class Trainer:
        """Refers to itself, so that only the collector finds it."""

        def __init__(self) -> None:
            pipe = Pipeline.from_parquet(str(data_sets.folder(SHAPES[1]))).batch(9)
            self.me, self.loader = self, load(pipe, clock=clock)
            self.batches = iter(self.loader)

    before = set(threading.enumerate())
    gc.disable()
    try:
        trainer = Trainer()
        next(trainer.batches)
        run = trainer.batches._run  # type: ignore[attr-defined]
        del trainer
        collect.set()
        with run.lock:
            run.work.notify_all()
        assert collected.wait(60)
    finally:
        gc.enable()
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
    assert not caplog.messages


@pytest.mark.parametrize("held", ["lock", "place"])
def test_a_signal_handler_may_close_the_loader_in_the_middle_of_anything(
    data_sets: Any, caplog: pytest.LogCaptureFixture, held: str
) -> None:
    """It runs in the thread that just then holds the loop's locks, for which the workers wait as well."""
    loader = load(pipeline(data_sets.folder(SHAPES[1]), None, 2, 0, 9, False))
    closed: list[bool] = []
    raised: list[BaseException] = []

    def handler() -> None:
        if threading.current_thread() is reader and not closed:
            closed.append(True)
            loader.close()

    class Queue(deque[Any]):
        def popleft(self) -> Any:
            handler()
            return super().popleft()

    def use() -> None:
        batches: Any = iter(loader)
        next(batches)
        if held == "place":
            batches._queue = Queue(batches._queue)
        else:
            deliver = batches._run.scheduler.deliver
            batches._run.scheduler.deliver = lambda: (deliver(), handler())[0]
        try:
            for _ in batches:
                pass
        except BaseException as error:
            raised.append(error)

    reader = threading.Thread(target=use, daemon=True)
    reader.start()
    reader.join(60)
    assert closed
    deadline = time.monotonic() + 60
    while not loader.closed and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    assert loader.closed
    assert all(isinstance(error, LoaderError) for error in raised)
    assert not caplog.records, "workers were waited for in vain"


def test_a_second_loop_ends_the_first(data_sets: Any) -> None:
    with load(pipeline(data_sets.folder(SHAPES[1]), None, 1, 0, 9, False)) as loader:
        first = iter(loader)
        next(first)
        second = iter(loader)
        with pytest.raises(LoaderError, match=r"this loop over the loader is over: .*another loop has begun"):
            next(first)
        assert [row for one in second for row in ids(one)] == list(range(71))
        with pytest.raises(StopIteration):
            next(second)


def test_set_epoch_within_a_loop_is_for_the_next_one(data_sets: Any) -> None:
    with load(pipeline(data_sets.folder(SHAPES[1]), "rows", 2, 0, 9, False)) as loader:
        for _ in loader:
            loader.set_epoch(7)
        assert loader.epoch == 7
        assert loader.state_dict()["epoch"] == 7


def test_the_state_says_what_was_handed_over_not_what_was_made_ahead(data_sets: Any) -> None:
    with load(
        pipeline(data_sets.folder(SHAPES[4]), None, 1, 0, 9, False), allocation=Allocation.shared(4)
    ) as loader:
        assert loader.state_dict()["batch"] == 0
        for count, _ in enumerate(loader, 1):
            state = loader.state_dict()
            assert (state["epoch"], state["batch"], state["ahead"]) == (0, count, [])
        state = loader.state_dict()
        assert (state["epoch"], state["batch"]) == (1, 0)
        loader.set_epoch(4)
        assert loader.state_dict()["epoch"] == 4


def test_a_state_survives_set_epoch_of_its_own_epoch_and_no_other(data_sets: Any) -> None:
    pipe = pipeline(data_sets.folder(SHAPES[1]), "rows", 2, 0, 9, False)
    with load(pipe) as loader:
        loader.set_epoch(2)
        iterator = iter(loader)
        seen = [ids(next(iterator)) for _ in range(3)]
        state = loader.state_dict()
        loader.load_state_dict(state)
        loader.set_epoch(2)  # what a training loop does first
        assert loader.state_dict() == state
        rest = [ids(one) for one in loader]
        loader.set_epoch(2)
        assert [ids(one) for one in loader] == seen + rest
        loader.load_state_dict(state)
        loader.set_epoch(3)
        assert len(list(loader)) == len(loader)


def test_of_an_epoch_that_a_state_counts_to_its_end_nothing_is_left(data_sets: Any) -> None:
    """As where a checkpoint is due at the last step, and the script that resumes names the epoch it was saved in."""
    with load(pipeline(data_sets.folder(SHAPES[1]), "rows", 2, 0, 9, False)) as loader:
        loader.set_epoch(2)
        for _ in loader:
            state = loader.state_dict()
        assert (state["epoch"], state["batch"]) == (2, len(loader))
    with load(pipeline(data_sets.folder(SHAPES[1]), "rows", 2, 0, 9, False)) as loader:
        loader.load_state_dict(state)
        seen = []
        for epoch in (2, 3):
            loader.set_epoch(epoch)
            seen.append(len(list(loader)))
        assert seen == [0, len(loader)]
        loader.set_epoch(2)  # asked for once more, it is read
        assert len(list(loader)) == len(loader)


def test_only_the_epoch_that_was_interrupted_is_continued_the_next_is_whole(data_sets: Any) -> None:
    with load(pipeline(data_sets.folder(SHAPES[1]), "rows", 2, 0, 9, False)) as loader:
        iterator = iter(loader)
        next(iterator), next(iterator)
        loader.load_state_dict(loader.state_dict())
        assert len(list(loader)) == len(loader) - 2
        assert len(list(loader)) == len(loader)


def test_the_state_at_the_end_of_an_epoch_continues_with_the_next(data_sets: Any) -> None:
    pipe = pipeline(data_sets.folder(SHAPES[1]), "rows", 2, 0, 9, False)
    with load(pipe) as loader:
        iterator = iter(loader)
        for _ in range(len(loader)):
            next(iterator)
        state = loader.state_dict()  # the loop does not know yet that it is over
        assert state["batch"] == len(loader)
        loader.load_state_dict(state)
        assert loader.epoch == 1
        assert loader.state_dict()["batch"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: None, "`state` is not a loader's state .*; give what state_dict"),
        (lambda state: {}, "`state` is not a loader's state .*'version'"),
        (lambda state: {**state, "batch": "many"}, "`state` is not a loader's state"),
        (lambda state: {**state, "version": 99}, "`state` has version 99, but this is 1"),
        (lambda state: {**state, "batch": 100}, "`state` says epoch 0, batch 100, .*an epoch has 8 batches"),
        (lambda state: {**state, "batch": -1}, "`state` says epoch 0, batch -1"),
        (lambda state: {**state, "epoch": -1}, "`state` says epoch -1"),
        (lambda state: {**state, "ahead": [8]}, r"`state` says epoch 0, batch 2, ahead \[8\]"),
        (lambda state: {**state, "ahead": [1]}, r"`state` says epoch 0, batch 2, ahead \[1\]"),
        (
            lambda state: {**state, "plan": {**state["plan"], "world_size": 2}},
            "saved with world_size 2, but this loader has 1; its position means nothing here: .*`set_epoch`",
        ),
        (lambda state: {**state, "plan": {**state["plan"], "batch_size": 5}}, "saved with batch_size 5"),
        (lambda state: {**state, "plan": {**state["plan"], "data": "?"}}, "saved of other data: files were"),
        (
            lambda state: {**state, "plan": {**state["plan"], "shuffle": [2, 1]}},
            r"saved with shuffle \[2, 1\]",
        ),
        (lambda state: {**state, "plan": {}}, "saved of other data"),
    ],
)
def test_a_wrong_state_is_refused_and_changes_nothing(data_sets: Any, change: Any, message: str) -> None:
    with load(pipeline(data_sets.folder(SHAPES[1]), "rows", 2, 0, 9, False)) as loader:
        iterator = iter(loader)
        next(iterator), next(iterator)
        state = loader.state_dict()
        with pytest.raises(LoaderError, match=message):
            loader.load_state_dict(change(state))
        assert loader.state_dict() == state
        assert len(list(iterator)) == len(loader) - 2


@pytest.mark.parametrize("epoch", [-1, 1.5, True, "1"])
def test_nonsensical_epochs_are_refused(data_sets: Any, epoch: Any) -> None:
    with (
        load(pipeline(data_sets.folder(SHAPES[0]), None, 1, 0, 2, False)) as loader,
        pytest.raises(ConfigError, match=r"`epoch`=.* must be a whole number, 0 or more"),
    ):
        loader.set_epoch(epoch)


def test_numbers_of_numpy_are_numbers_and_a_state_holds_pythons(data_sets: Any) -> None:
    pipe = pipeline(data_sets.folder(SHAPES[0]), None, 1, 0, 2, False)
    with load(pipe, rank=np.int64(1), world_size=np.int64(2), max_skipped=np.int64(0)) as loader:
        loader.set_epoch(np.int64(3))
        state = loader.state_dict()
        assert json.loads(json.dumps(state)) == state
        assert (state["epoch"], state["plan"]["rank"]) == (3, 1)


# ---- the end ---------------------------------------------------------------------------------------------------


def workers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("intune-")]


def open_files(folder: Path) -> list[str]:
    links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    return [
        target
        for link in links
        if os.path.exists(link) and (target := os.readlink(link)).startswith(str(folder))
    ]


def test_closing_twice_is_fine_and_what_is_closed_says_so(data_sets: Any) -> None:
    folder = data_sets.folder(SHAPES[1])
    loader = load(pipeline(folder, None, 1, 0, 9, False))
    iterator = iter(loader)
    next(iterator)
    assert open_files(folder)
    state = loader.state_dict()
    loader.close()
    loader.close()
    assert workers() == []
    assert open_files(folder) == []
    with pytest.raises(LoaderError, match="this loop over the loader is over: it was closed"):
        next(iterator)
    for use in (
        lambda: iter(loader),
        lambda: loader.resize({"load": 1}),
        lambda: loader.load_state_dict(state),
    ):
        with pytest.raises(LoaderError, match="the loader is closed; make a new one"):
            use()
    assert loader.stats().batches == 1
    assert loader.state_dict() == state
    assert len(loader) == 8


def test_when_it_is_closed_no_function_is_called_any_more(data_sets: Any) -> None:
    """A task has many batches: what is left of those in hand is left out."""
    entered, go = threading.Semaphore(0), threading.Event()
    calls: list[int] = []

    def slow(block: dict[str, Any]) -> dict[str, Any]:
        calls.append(len(block["id"]))
        entered.release()
        go.wait(60)
        return block

    with small(10_000, 10_000):
        pipe = Pipeline.from_parquet(str(data_sets.folder(SHAPES[4]))).batch(4).map(slow)
        loader = load(pipe, allocation=Allocation.shared(1))
        iterator = iter(loader)
        assert entered.acquire(timeout=60)
        closer = threading.Thread(target=loader.close)
        closer.start()
        while not iterator._run.closed:  # type: ignore[attr-defined]
            time.sleep(0.001)
        go.set()
        closer.join(60)
    assert calls == [4]
    assert workers() == []


def test_when_a_function_raises_no_other_is_called_any_more(data_sets: Any) -> None:
    entered, failed = threading.Event(), threading.Event()
    others: list[int] = []

    def function(block: dict[str, Any]) -> dict[str, Any]:
        first = int(block["id"][0])
        if first == 0:
            entered.wait(60)
            raise ArithmeticError("the first batch")
        others.append(first)
        entered.set()
        failed.wait(60)
        return block

    with small(64, 10_000):
        pipe = Pipeline.from_parquet(str(data_sets.folder(SHAPES[4]))).batch(4).map(function)
        loader = load(pipe, allocation=Allocation.shared(2))
        with pytest.raises(StageError, match="the first batch"):
            next(iter(loader))
        failed.set()
        loader.close()
    assert len(others) == 1, "the rest of its task is left out"


def test_what_the_trainer_changes_is_its_batch_not_the_constants_of_a_function(
    data_sets: Any, tmp_path: Path
) -> None:
    constant = np.ones(71)
    constant.flags.writeable = False
    np.arange(71.0).tofile(tmp_path / "numbers")
    mapped = np.memmap(tmp_path / "numbers", dtype=np.float64, mode="r")

    def function(block: dict[str, Any]) -> dict[str, Any]:
        rows = len(block["id"])
        return {"constant": constant[:rows], "mapped": mapped[:rows]}

    folder = data_sets.folder(SHAPES[1])
    before, after = (
        Pipeline.from_parquet(folder).map(function).batch(9),
        Pipeline.from_parquet(folder).batch(9).map(function),
    )
    for pipe in (before, after):
        with load(pipe) as loader:
            for one in loader:
                assert one["constant"].tolist() == [1.0] * len(one["constant"])
                one["constant"].add_(1)
                # Where the memory is the file's, this would end the process.
                assert one["mapped"].data_ptr() != mapped.ctypes.data
    assert constant.tolist() == [1.0] * 71


@pytest.mark.parametrize("first", ["batch", "map"])
def test_slices_of_an_array_that_a_function_keeps_are_not_the_pipelines_memory(
    data_sets: Any, first: str
) -> None:
    """Once, tasks ran one after another since each was taken to need all of it, in vain."""
    pool = np.arange(1 << 20)

    def sample(block: dict[str, Any]) -> dict[str, Any]:
        first = int(block["id"][0])
        block["negative"] = pool[first : first + len(block["id"])]
        return block

    source = Pipeline.from_parquet(str(data_sets.folder(SHAPES[4])))
    with load(source.batch(4).map(sample) if first == "batch" else source.map(sample).batch(4)) as loader:
        for batch in loader:
            assert batch["negative"][0] == batch["id"][0]
            batch["negative"] += 1  # a batch is the trainer's
        assert loader.stats().memory_peak < 1 << 20
    assert np.array_equal(pool, np.arange(1 << 20))


@pytest.mark.parametrize("in_with", [True, False])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_exception_in_the_loop_leaves_nothing(
    data_sets: Any, in_with: bool, error: type[BaseException]
) -> None:
    pipe = pipeline(data_sets.folder(SHAPES[4]), "rows", 2, 0, 9, False)

    def train() -> None:
        if in_with:
            with load(pipe) as loader:
                for _ in loader:
                    raise error
        for _ in load(pipe):
            raise error

    with pytest.raises(error):
        train()
    gc.collect()
    deadline = time.monotonic() + 60
    while workers() and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    assert workers() == []


def test_a_loader_that_is_dropped_half_read_frees_its_threads_and_blocks(data_sets: Any) -> None:
    before = pa.total_allocated_bytes()
    loader = load(
        pipeline(data_sets.folder(SHAPES[4]), "rows", 2, 0, 9, False), allocation=Allocation.shared(3)
    )
    for count, _ in enumerate(loader):
        if count == 2:
            break
    del _
    assert workers()
    del loader
    gc.collect()
    deadline = time.monotonic() + 60
    while workers() and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    assert workers() == []
    assert pa.total_allocated_bytes() <= before


@pytest.mark.parametrize("raised", [KeyboardInterrupt, ValueError])
def test_a_loader_that_an_error_ended_is_freed_without_the_garbage_collector(
    data_sets: Any, raised: type[BaseException]
) -> None:
    """Which may not come for long. Meanwhile its workers, processes perhaps, would keep their memory."""

    def fail(block: dict[str, Any]) -> dict[str, Any]:
        raise raised

    gc.collect()
    gc.disable()
    try:
        loader = load(Pipeline.from_parquet(str(data_sets.folder(SHAPES[1]))).batch(9).map(fail))
        with pytest.raises((KeyboardInterrupt, StageError)):
            list(loader)
        freed = weakref.ref(loader)
        del loader
        deadline = time.monotonic() + 60
        while (freed() is not None or workers()) and time.monotonic() < deadline:
            threading.Event().wait(0.01)
        assert freed() is None
        assert workers() == []
    finally:
        gc.enable()


def test_a_loader_sent_to_another_process_says_what_to_send(data_sets: Any) -> None:
    """To a task of Ray or a process of multiprocessing: "cannot pickle '_thread.RLock' object" helped nobody."""
    with (
        load(pipeline(data_sets.folder(SHAPES[4]), "rows", 2, 0, 9, False)) as loader,
        pytest.raises(TypeError, match="send the pipeline"),
    ):
        pickle.dumps(loader)


def test_in_a_fork_the_loader_says_so_and_nothing_hangs(data_sets: Any) -> None:
    loader = load(
        pipeline(data_sets.folder(SHAPES[4]), "rows", 2, 0, 9, False), allocation=Allocation.shared(3)
    )
    iterator = iter(loader)
    next(iterator)
    state = loader.state_dict()
    uses: list[Callable[[], Any]] = [
        lambda: iter(loader),
        lambda: next(iterator),
        lambda: loader.resize({"load": 2}),
        lambda: loader.load_state_dict(state),
        loader.stats,
    ]
    # A worker may hold the lock at the moment of the fork: in the child nobody will ever let go of it.
    held, done_forking = threading.Event(), threading.Event()

    def hold() -> None:
        with iterator._run.lock:  # type: ignore[attr-defined]
            held.set()
            done_forking.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(60)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            message = f"made in process {os.getppid()} and cannot be used in its fork"
            for use in uses:
                with pytest.raises(LoaderError, match=message):
                    use()
            loader.close()
            del iterator, uses
            gc.collect()
            code = 0
        finally:
            os._exit(code)
    done_forking.set()
    holder.join()
    deadline = time.monotonic() + 60
    while (done := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > deadline:
            os.kill(child, 9)
            os.waitpid(child, 0)
            pytest.fail("the fork hangs")
        threading.Event().wait(0.01)
    assert os.waitstatus_to_exitcode(done[1]) == 0
    assert len(list(iterator)) == len(loader) - 1, "the parent goes on undisturbed"
    loader.close()


# ---- memory ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve row groups of 4,000 rows of 8 columns of 8 bytes: 256 KB each."""
    folder = tmp_path_factory.mktemp("numbers")
    rng = np.random.default_rng(0)
    table = pa.table({f"c{i}": rng.integers(0, 1 << 40, 24_000) for i in range(8)})
    for part in range(2):
        pq.write_table(table, folder / f"{part}.parquet", row_group_size=4000, use_dictionary=False)
    return folder


GROUP = 4000 * 8 * 8


@pytest.mark.parametrize("shuffle", [None, "rows"])
@pytest.mark.parametrize("step_s", [0.0, 0.005])
def test_held_bytes_stay_below_the_limit_and_the_task_in_hand_and_end_at_nothing(
    numbers: Path, shuffle: str | None, step_s: float
) -> None:
    pipe = pipeline(numbers, shuffle, 2, 0, 1000, False).map(lambda block: {"y": block["c0"] + 1})
    limit = 6 * GROUP
    with small(4000, 2000), load(pipe, allocation=Allocation.shared(4, memory=limit)) as loader:
        held = []
        for _ in loader:
            stats = loader.stats()
            held.append(stats.memory_held)
            assert stats.memory_limit == limit
            if step_s:
                threading.Event().wait(step_s)
        stats = loader.stats()
    assert 0 < max(held) <= stats.memory_peak <= limit + GROUP
    assert stats.memory_held == 0


def test_a_slow_trainer_makes_no_more_than_its_workers_can_use(numbers: Path) -> None:
    made: list[int] = []

    def count(block: dict[str, Any]) -> dict[str, Any]:
        made.append(len(block["c0"]))
        return block

    with small(4000, 1000), load(Pipeline.from_parquet(numbers).batch(1000).map(count)) as loader:
        iterator = iter(loader)
        next(iterator)
        seen = -1
        while seen != len(made):  # until the workers have stopped by themselves
            seen = len(made)
            threading.Event().wait(0.15)
        assert len(made) < 40, "of 48 batches most were made for a trainer that asked for one"
        assert loader.stats().memory_held <= loader.stats().memory_limit + GROUP
        assert len(list(iterator)) == 47


def test_twenty_epochs_do_not_make_memory_grow(numbers: Path) -> None:
    pipe = pipeline(numbers, "rows", 2, 0, 1000, False).map(lambda block: {**block, "y": block["c0"] * 2})
    held, resident = [], []
    with small(4000, 2000), load(pipe) as loader:
        for _ in range(20):
            for _ in loader:
                pass
            held.append(loader.stats().memory_held)
            resident.append(resident_bytes())
    assert held == [0] * 20
    grown = max(resident[15:]) - max(resident[:6])
    assert grown < 8 << 20, f"{grown / 1e6:.1f} MB more after 20 epochs of 3 MB"


def test_a_batch_that_is_kept_stays_as_it_was(data_sets: Any) -> None:
    with load(pipeline(data_sets.folder(SHAPES[4]), "rows", 2, 0, 9, False)) as loader:
        kept = list(loader)
        again = [content(one) for one in kept]
        loader.set_epoch(0)
        assert [content(one) for one in loader] == again
    assert [content(one) for one in kept] == again


# ---- resizing and what is measured -----------------------------------------------------------------------------


class Gate:
    """A function whose calls wait for a permit each; counts how many run at once."""

    def __init__(self) -> None:
        self.permits = threading.Semaphore(0)
        self.changed = threading.Condition()
        self.running = self.ended = self.most = 0

    def __call__(self, block: dict[str, Any]) -> dict[str, Any]:
        with self.changed:
            self.running += 1
            self.most = max(self.most, self.running)
            self.changed.notify_all()
        self.permits.acquire()
        with self.changed:
            self.running -= 1
            self.ended += 1
            self.changed.notify_all()
        return block

    def wait(self, running: int, ended: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: (self.running, self.ended) == (running, ended), 20)


def test_resizing_takes_effect_and_stops_no_thread(data_sets: Any) -> None:
    gate = Gate()
    pipe = Pipeline.from_parquet(data_sets.folder(SHAPES[4])).batch(4).map(gate)
    one_batch_a_task = small(20, 1)
    with one_batch_a_task, load(pipe, allocation={"load": 1, "batch": 1, "transform": 1}) as loader:
        iterator = iter(loader)
        gate.wait(running=1, ended=0)
        threads = set(workers())
        loader.resize({"transform": 4})
        assert loader.stats().stage("transform").slots == 4
        gate.wait(running=4, ended=0)
        assert threads <= set(workers())
        loader.resize({"transform": 1})
        gate.permits.release(3)
        gate.wait(running=1, ended=3)
        gate.most = 0
        gate.permits.release(1000)
        assert len(list(iterator)) == len(loader) == gate.ended
        assert gate.most == 1
        assert threads <= set(workers())


@pytest.mark.parametrize("change", [{"load": 0}, {"nothing": 1}, 3, {"load": "2"}, {}])
def test_a_nonsensical_resize_is_refused_and_changes_nothing(data_sets: Any, change: Any) -> None:
    with load(pipeline(data_sets.folder(SHAPES[1]), None, 1, 0, 9, False)) as loader:
        iterator = iter(loader)
        next(iterator)
        before = loader.allocation
        with pytest.raises(ConfigError):
            loader.resize(change)
        assert loader.allocation == before
        assert len(list(iterator)) == len(loader) - 1


def test_what_is_measured_adds_up(data_sets: Any) -> None:
    pipe = pipeline(data_sets.folder(SHAPES[1]), "rows", 2, 0, 10, False).map(log).to("cpu")
    with load(pipe, allocation=dict.fromkeys(pipe.stage_names, 2)) as loader:
        assert loader.stats().rows == 0
        for _ in range(2):
            for _ in loader:
                pass
        stats = loader.stats(resident=True)
    assert (stats.rows, stats.batches, stats.epoch, stats.batch) == (142, 16, 2, 0)
    assert [stage.name for stage in stats.stages] == list(pipe.stage_names) == list(loader.stages)
    for stage in stats.stages:
        assert stage.rows == 142
        assert stage.slots == 2
        assert (stage.queue, stage.running, stage.retries) == (0, 0, 0)
        assert stage.busy_s > 0
        assert stage.busy_s + stage.starved_s + stage.blocked_s == pytest.approx(stage.slot_s)
    assert stats.stage("load").tasks == 2 * 4
    assert stats.stage("load").bytes_out > 0
    assert stats.memory_resident > 1 << 20
    assert (stats.redone, stats.workers_lost, stats.skipped) == (0, 0, 0)
    assert stats.elapsed_s >= stats.step_s + stats.wait_s > 0


def test_the_trainers_step_and_its_waiting_are_told_apart(data_sets: Any) -> None:
    now = [0.0]
    with load(pipeline(data_sets.folder(SHAPES[1]), None, 1, 0, 10, False), clock=lambda: now[0]) as loader:
        for _ in loader:
            now[0] += 3.0  # the trainer's step: the clock stands still otherwise
        stats = loader.stats()
    assert stats.step_s == 8 * 3.0
    assert stats.wait_s == 0.0
    assert stats.elapsed_s == 24.0
    assert stats.rows_per_s == pytest.approx(71 / 24)


# ---- choosing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 2, "world_size": 2}, "`rank`=2 must be below `world_size`=2; ranks count from 0"),
        ({"rank": -1}, "`rank`=-1 must be a whole number, 0 or more"),
        ({"world_size": 0}, "`world_size`=0 must be a whole number, 1 or more"),
        ({"world_size": 1.0}, "`world_size`=1.0 must be a whole number"),
        ({"world_size": 100}, "`world_size`=100 is more than the 71 rows there are; use fewer ranks"),
        ({"on_error": "ignore"}, "`on_error`='ignore' is unknown; use 'raise' or 'skip'"),
        ({"max_skipped": -1}, "`max_skipped`=-1 must be a whole number, 0 or more"),
        ({"executor": "spark"}, "`executor`='spark' is unknown; use 'auto', 'threads' or 'ray'"),
        ({"budget": "4GiB"}, "`budget` must be a Budget, but str was given"),
        ({"allocation": {"lod": 3}}, "no stage 'lod'; .*did you mean 'load'"),
        ({"allocation": {"load": 0}}, "slots of 'load'=0 must be a whole number from 1"),
        ({"allocation": 4}, "an allocation must be a mapping"),
    ],
)
def test_nonsensical_options_are_refused_before_a_thread_starts(
    data_sets: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load(pipeline(data_sets.folder(SHAPES[1]), None, 1, 0, 9, False), **options)
    assert workers() == []


def test_a_budget_below_what_one_delivery_takes_is_refused_with_what_to_do(tmp_path: Path) -> None:
    table = pa.table({"wide": np.zeros(30_000), "more": np.zeros(30_000)})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=10_000)
    with (
        small(10_000),
        pytest.raises(
            ConfigError,
            match=r"`budget` allows 1.00 MiB, but .* needs about .* MiB at once; allow more, shuffle over fewer",
        ),
    ):
        load(
            Pipeline.from_parquet(tmp_path).shuffle(8).batch(10_000 * 3),
            budget=Budget(cpus=1, memory=1 << 20),
        )


def test_by_default_there_is_one_pool_of_as_many_slots_as_cpus(data_sets: Any) -> None:
    with load(
        pipeline(data_sets.folder(SHAPES[1]), None, 1, 0, 9, False), budget=Budget(cpus=3, memory=1 << 24)
    ) as loader:
        assert loader.allocation.is_shared
        assert loader.budget.cpus == 3
        assert loader.allocation.total >= 3
        assert loader.stages == ("load", "batch")


def test_auto_means_threads_where_no_cluster_is_connected_or_named(
    data_sets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    with load(pipeline(data_sets.folder(SHAPES[0]), None, 1, 0, 9, False), executor="auto") as loader:
        assert loader.executor == "threads"
        assert len(list(loader)) == 1


def test_an_epoch_that_ends_while_it_is_looked_at_counts_once(
    data_sets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else time went back from one look to the next, and the interval between them told nothing."""
    pipe = Pipeline.from_parquet(data_sets.folder([[40]])).batch(4)
    with pipe.loader(executor="threads") as loader:
        loop = iter(loader)
        next(loop)
        before = loader.stats().elapsed_s
        loop.close()  # type: ignore[attr-defined]
        ended = loader.stats()
        monkeypatch.setattr(loader, "_current", lambda: loop)  # seen just before
        assert loader.stats().elapsed_s == ended.elapsed_s >= before > 0
