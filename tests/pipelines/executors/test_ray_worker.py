"""What a Ray worker does with what it is told, without Ray."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import cloudpickle
import numpy as np
import pytest

from intune.pipelines import Pipeline
from intune.pipelines.errors import CorruptError, LoaderError, NotFoundError, StageError
from intune.pipelines.executors.ray_worker import (
    Functions,
    OneAtATime,
    Outcome,
    RayWorker,
    Recipe,
    failure,
    raised,
)
from intune.pipelines.operations import Job
from intune.pipelines.plan import make_plan
from intune.pipelines.reading.dataset import open_dataset
from intune.pipelines.reading.reader import Reader
from intune.pipelines.stages import Map


@pytest.fixture
def worker(monkeypatch) -> Iterator[RayWorker]:
    monkeypatch.setattr("intune.pipelines.executors.ray_worker.keep_freed_memory", lambda: None)
    monkeypatch.setattr("ray.get", lambda stored: stored)
    made = RayWorker(0)
    # Its threads would live as long as the process.
    monkeypatch.setattr(made, "_crew", SimpleNamespace(call=lambda run, *told: run(*told)))
    yield made
    if made._reader is not None:
        made._reader.close()


@pytest.fixture
def job(data_sets) -> bytes:
    """Of eight rows in two files, loaded and put into batches."""
    pipe = Pipeline.from_parquet(data_sets.folder([[4], [4]])).batch(4)
    dataset = open_dataset(pipe.load.source)
    plan = make_plan(dataset.row_groups(), pipe.order())
    return cloudpickle.dumps(Job(plan=plan, dataset=dataset))


def functions(digest: bytes, what: Any = ()) -> Functions:
    return Functions(digest, [cloudpickle.dumps(what)])


def load(worker: RayWorker, generation: int, index: int = 0) -> Outcome:
    made: Outcome = worker.run(generation, Recipe(0, index, ()), 1, "keep", [])
    return made


def test_functions_are_loaded_once_while_they_stay_the_same(worker, job):
    """One that has read a large table, or opened a connection, would do so again in every epoch."""
    worker.begin(1, job, functions(b"a", (["one"],)))
    first = worker._operations.job.maps[0]
    first.append("state")
    worker.begin(2, job, functions(b"a", (["one"],)))
    assert worker._operations.job.maps[0] is first
    worker.begin(3, job, functions(b"b", (["another"],)))
    assert worker._operations.job.maps == (["another"],)


def test_what_was_measured_of_a_function_is_known_in_the_next_epoch(worker, job):
    worker.begin(1, job, functions(b""))
    measured = id(worker._operations.job.joining)
    worker.end(1)
    gc.collect()
    worker.begin(2, job, functions(b""))
    assert id(worker._operations.job.joining) == measured


def test_blocks_of_an_epoch_that_was_left_are_let_go(worker, job):
    worker.begin(1, job, functions(b""))
    assert load(worker, 1).error is None
    assert worker.export(1, (0, 0, 1), 0, 1) is not None
    worker.end(1)
    assert worker.export(1, (0, 0, 1), 0, 1) is None
    assert isinstance(raised(load(worker, 1)), LoaderError)
    worker.begin(2, job, functions(b""))
    load(worker, 2)
    worker.end(1)  # late
    assert worker.export(2, (0, 0, 1), 0, 1) is not None


def test_an_epoch_that_takes_long_to_load_does_not_end_the_next(worker, job, monkeypatch):
    """After a Ctrl-C the loader does not wait for it."""
    loading, go = threading.Event(), threading.Event()

    def slow(stored: bytes) -> bytes:
        loading.set()
        assert go.wait(60)
        return stored

    monkeypatch.setattr("ray.get", slow)
    late = threading.Thread(target=worker.begin, args=(1, job, functions(b"old", ("old",))))
    late.start()
    assert loading.wait(60)
    monkeypatch.setattr("ray.get", lambda stored: stored)
    worker.begin(2, job, functions(b"new", ("new",)))
    go.set()
    late.join(60)
    assert load(worker, 2).error is None
    assert worker._operations.job.maps == ("new",)


def test_a_file_that_another_machine_lacks_is_an_error_that_says_so(worker, job, monkeypatch):
    """The usual trap of a first cluster: the data lies on the trainer's disk."""

    def missing(self, block):
        raise NotFoundError("x.parquet: no such file")

    monkeypatch.setattr(Reader, "read", missing)
    worker.begin(1, job, functions(b""))
    assert str(raised(load(worker, 1))) == "x.parquet: no such file"
    monkeypatch.setattr(worker, "_near", False)
    error = raised(load(worker, 1))
    assert isinstance(error, NotFoundError)
    assert "every node of the Ray cluster" in str(error)


def test_a_function_that_wants_a_process_is_called_by_one_thread_at_a_time():
    inside, most, began = 0, 0, threading.Barrier(4)

    def shared(block):
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        threading.Event().wait(0.001)  # lets the others in, if they may
        inside -= 1
        return block

    call, stage = OneAtATime(), Map(function=shared, workers="process")

    def work() -> None:
        began.wait(60)
        for _ in range(5):
            call(stage, {"x": np.zeros(1)})

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most == 1


def told_of(error: BaseException, cause: BaseException | None = None) -> BaseException:
    """What arrives in the trainer's process of what was raised in a worker."""
    try:
        try:
            if cause is not None:
                raise cause
            raise error
        except Exception as first:
            raise (error if cause is not None else first) from cause
    except Exception as all_of_it:
        return raised(failure(all_of_it))


def test_where_an_error_was_raised_is_told():
    arrived = told_of(StageError("at that place"), KeyError("no such thing"))
    assert str(arrived) == "at that place"
    assert isinstance(arrived.__cause__, KeyError)
    (note,) = arrived.__cause__.__notes__
    assert note.startswith("In the Ray worker:\nTraceback")
    assert "raise cause" in note
    (note,) = told_of(RuntimeError("a defect")).__notes__
    assert "a defect" in note


def test_an_error_of_ours_says_all_in_its_sentence():
    assert not hasattr(told_of(CorruptError("file x")), "__notes__")


class OnlyThere(Exception):
    """As if its module were found by the worker alone."""

    def __reduce__(self) -> Any:
        return _only_there, (self.args,)


def _only_there(arguments: Any) -> Exception:
    if threading.current_thread() is threading.main_thread():
        raise ModuleNotFoundError("no such module here")
    return OnlyThere(*arguments)


class Unspeakable(Exception):
    """Has neither words nor a way to travel."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__()

    def __str__(self) -> str:
        raise ValueError("no words")


def test_an_error_whose_class_is_not_to_be_had_arrives_in_words():
    told: list[Outcome] = []
    thread = threading.Thread(target=lambda: told.append(failure(OnlyThere("in words"))))
    thread.start()
    thread.join(60)
    arrived = raised(told[0])
    assert isinstance(arrived, StageError)
    assert str(arrived).endswith("OnlyThere: in words")
    assert "Unspeakable" in str(told_of(Unspeakable(1, 2)))
