"""Functions in worker processes: the same batches as on threads, whatever dies, hangs or raises, and nothing left."""

import contextlib
import errno
import gc
import logging
import mmap
import os
import random
import re
import resource
import select
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import numpy as np
import psutil
import pyarrow as pa
import pytest
import torch

from intune.pipelines import Allocation, Budget, Pipeline, Ragged
from intune.pipelines.errors import (
    ConfigError,
    LoaderError,
    StageError,
    StageTimeout,
    WorkerLostError,
)
from intune.pipelines.executors import fork_server
from intune.pipelines.executors.fork_server import server_pids
from intune.pipelines.executors.packing import by_value
from intune.pipelines.executors.process import HANDED_OVER, Process, handed_over
from intune.pipelines.executors.processes import REST_S, RETRIES, SPARE_S, ProcessPool, process_pool
from intune.pipelines.executors.segments import Segment
from intune.pipelines.memory import resident_bytes, roots
from intune.pipelines.stages import Map

BATCH = 50


@pytest.fixture(scope="module")
def data(tmp_path_factory, write_parquet, numbered) -> Path:
    """2,000 rows: numbers, strings, lists."""
    return write_parquet(tmp_path_factory.mktemp("processes"), numbered([[250] * 4, [500, 500]]))


class Caller:
    """Runs any function in the one process of a pool."""

    def __init__(self) -> None:
        import cloudpickle

        self._dumps = cloudpickle.dumps
        self.stage = Map(function=lambda block: block.pop("f")(block), workers="process", name="any")
        self.pool = ProcessPool([self.stage])

    def __call__(self, function, **block):
        return self.pool(self.stage, {"f": function, **block})


@pytest.fixture(scope="module")
def call() -> Iterator[Caller]:
    caller = Caller()
    yield caller
    caller.pool.close()


def pool_of(function, **options) -> tuple[ProcessPool, Map]:
    stage = Map(function=function, workers="process", **options)
    return ProcessPool([stage]), stage


def scramble():
    """A function that uses, changes, adds and drops columns of every kind; made here so as to travel by value."""

    def function(block):
        block["x"] += block["id"] % 7  # in place
        block["bag"].values[:] *= 3
        made = {"sum": np.add.reduceat(np.append(block["bag"].values, 0), block["bag"].offsets[:-1]), **block}
        made["half"] = made["x"][::-1]
        made["upper"] = pa.compute.utf8_upper(block["name"])
        del made["name"]
        return made

    return function


def same(one, other):
    assert list(one) == list(other)
    for name, column in one.items():
        there = other[name]
        assert type(column) is type(there)
        if isinstance(column, Ragged):
            assert torch.equal(column.values, there.values)
            assert torch.equal(column.offsets, there.offsets)
        elif isinstance(column, torch.Tensor):
            assert column.dtype == there.dtype
            assert torch.equal(column, there)
        else:
            assert column.equals(there)


def read(data, function, workers, **options):
    pipe = Pipeline.from_parquet(data).shuffle(row_groups=2, seed=3).batch(BATCH)
    with pipe.map(function, workers=workers).loader(executor="threads", **options) as loader:
        return list(loader)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# ---- the same as on threads ----------------------------------------------------------------------------------


def test_batches_are_those_of_threads_bit_by_bit(data):
    here, there = read(data, scramble(), "thread"), read(data, scramble(), "process")
    assert len(here) == 40
    for one, other in zip(here, there, strict=True):
        same(one, other)


def test_tensors_come_and_go(call):
    tensor = torch.arange(10, dtype=torch.bfloat16).reshape(5, 2)
    made = call(
        lambda block: {"t": block["t"].t().contiguous().t() * 2, "x": block["x"]}, t=tensor, x=np.arange(5)
    )
    assert torch.equal(made["t"], tensor * 2)


def test_blocks_before_batch_too(data):
    def function(block):
        return {"id": block["id"], "next": block["id"] + 1}

    for workers in ("thread", "process"):
        pipe = Pipeline.from_parquet(data).map(function, workers=workers).batch(BATCH)
        with pipe.loader(executor="threads") as loader:
            batches = list(loader)
        assert torch.cat([batch["next"] for batch in batches]).tolist() == list(range(1, 2001))


def test_functions_run_elsewhere_and_others_here(data):
    def mark(name):
        return lambda block: {**block, name: np.full(len(block["id"]), os.getpid())}

    pipe = Pipeline.from_parquet(data).batch(BATCH).map(mark("a"), workers="process").map(mark("b"))
    with pipe.loader(executor="threads", allocation={"load": 1, "transform": 2}) as loader:
        batches = list(loader)
        pids = set(loader._fleet.pids())
        list(loader)
        assert set(loader._fleet.pids()) >= pids  # kept for the next epoch
        assert len(loader._fleet.pids()) <= 2  # no more than tasks run at once
        assert loader.stats(resident=True).memory_resident > loader.stats().memory_resident
    assert {int(batch["a"][0]) for batch in batches} <= pids
    assert {int(batch["b"][0]) for batch in batches} == {os.getpid()}


def test_none_is_started_before_it_is_needed(data):
    pipe = Pipeline.from_parquet(data).batch(BATCH).map(lambda block: block, workers="process")
    with pipe.loader(executor="threads") as loader:
        assert loader._fleet.pids() == []
    assert process_pool([Map(function=len)]) is None


def test_batches_that_are_kept_are_not_written_over(call):
    """More results are held than a process has segments for; and those held are the caller's to change."""
    made = [call(lambda block: {"x": block["x"] * 2}, x=np.full(1000, n)) for n in range(3 * HANDED_OVER)]
    for batch in made:
        batch["x"] += 1
    assert [int(batch["x"][0]) for batch in made] == [2 * n + 1 for n in range(3 * HANDED_OVER)]
    assert all((batch["x"] == batch["x"][0]).all() for batch in made)


def test_a_time_limit_may_be_longer_than_the_system_waits_at_once(data):
    pipe = Pipeline.from_parquet(data).batch(BATCH).map(lambda block: block, workers="process", timeout=1e9)
    with pipe.loader(executor="threads", allocation={"transform": 1}) as loader:
        assert len(list(loader)) == len(loader)


def test_who_keeps_a_column_of_many_batches_keeps_no_others(call):
    """Once, the labels of an evaluation kept all that came with them."""

    def function(block):
        return {"label": block["x"], "wide": np.zeros((len(block["x"]), 100))}

    count = 5 * HANDED_OVER
    labels = [call(function, x=np.full(1000, float(n)))["label"] for n in range(count)]
    whole, alone = 808_000, 8_000
    assert sum(roots(labels).values()) <= HANDED_OVER * 1.1 * whole + count * alone
    assert [label[0] for label in labels] == list(range(count))


def test_what_a_function_keeps_is_not_written_over(call):
    def remember(block):
        import builtins

        kept = builtins.__dict__.setdefault("_kept", [])
        kept.append(block["x"])
        return {"all": np.array([[column[0], column[-1]] for column in kept])}

    for n in range(5):
        made = call(remember, x=np.full(5000, n))
    assert made["all"].tolist() == [[n, n] for n in range(5)]


def test_blocks_may_grow(call):
    for rows in (10, 100_000, 10, 1_000_000, 0):
        made = call(lambda block: {"x": np.repeat(block["x"], 2)}, x=np.arange(rows))
        assert np.array_equal(made["x"], np.repeat(np.arange(rows), 2))


def test_processor_time_spent_in_processes_is_booked(call):
    def burn(block):
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass
        return block

    before = call.pool.cpu_s
    call(burn)
    assert 0.05 <= call.pool.cpu_s - before < 0.5


# ---- what a process is like ----------------------------------------------------------------------------------


def test_processes_keep_to_one_processor_unless_told_otherwise(monkeypatch):
    def look(block):
        return {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "PYTHONPATH")}

    for told, found in ((None, "1"), ("3", "3")):
        monkeypatch.setenv("PYTHONPATH", "/nowhere")
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        if told:
            monkeypatch.setenv("OMP_NUM_THREADS", told)
        pool, stage = pool_of(look)
        assert pool(stage, {}) == {"OMP_NUM_THREADS": found, "PYTHONPATH": "/nowhere"}
        pool.close()


def test_a_process_has_the_options_that_this_interpreter_was_started_with(monkeypatch):
    """Else a function warns, or reads a text, otherwise than in a thread."""
    monkeypatch.setattr(fork_server, "_server", None)
    monkeypatch.setattr(sys, "warnoptions", ["ignore::UserWarning"])
    monkeypatch.setitem(sys._xoptions, "utf8", True)
    pool, stage = pool_of(lambda block: {"options": sys.warnoptions, "utf8": sys.flags.utf8_mode})
    assert pool(stage, {}) == {"options": ["ignore::UserWarning"], "utf8": 1}
    pool.close()


def test_what_a_function_does_not_need_is_not_imported(monkeypatch):
    """Torch's import takes seconds, and that of all that makes a pipeline as long as all else."""
    monkeypatch.setattr(fork_server, "_server", None)  # that of other tests has what their functions needed
    pool, stage = pool_of(lambda block: {"modules": set(sys.modules), **block})
    modules = pool(stage, {"x": np.zeros(3)})["modules"]
    pool.close()
    assert not modules & {"torch", "pyarrow.parquet", "pyarrow.compute", "intune.pipelines.loader"}


def test_modules_are_found_where_this_process_finds_them(tmp_path, monkeypatch):
    (tmp_path / "lookup_table.py").write_text("def function(block):\n    return {'n': __name__}\n")
    monkeypatch.syspath_prepend(tmp_path)
    import lookup_table

    pool, stage = pool_of(lookup_table.function)
    assert pool(stage, {}) == {"n": "lookup_table"}
    pool.close()


def test_memory_shared_has_no_name(call):
    def maps(block):
        return {"maps": Path("/proc/self/maps").read_text(), **block}

    made = call(maps, x=np.zeros(100_000))
    for where in (made["maps"], Path("/proc/self/maps").read_text()):
        assert "/memfd:intune (deleted)" in where
        assert "/dev/shm" not in made["maps"]


def test_of_a_function_with_a_large_table_a_process_keeps_that_alone():
    """Once it kept the stream that the table came in as well, for as long as it had work."""
    pool, stage = pool_of(lambda block: block)
    pool(stage, {})
    table = np.ones(64 << 20, np.uint8)
    before = resident_bytes(pool.pids())
    pool.replace(stage.name, by_value(lambda block: {"rows": len(table)}))
    assert pool(stage, {}) == {"rows": len(table)}
    assert resident_bytes(pool.pids()) - before < 1.5 * len(table)
    pool.close()


# ---- what goes wrong in a function ---------------------------------------------------------------------------


def test_classes_of_the_script_stay_as_the_script_has_them(call):
    class Batch:
        scale = 1

        def scaled(self):
            return self.scale

    class Odd(Exception):
        scale = 1

    def make(block):
        return {"batch": Batch()}

    def fail(block):
        raise Odd

    method = Batch.scaled
    for Batch.scale in (2, 3):
        made = call(make)["batch"]
        assert type(made) is Batch
        assert made.scaled() == Batch.scale
    assert Batch.scaled is method
    Odd.scale = 2
    with pytest.raises(Odd):
        call(fail)
    assert Odd.scale == 2


def test_exceptions_come_back_with_their_traceback(call):
    class Mine(Exception):
        pass

    def function(block):
        raise Mine("broken", 7)

    with pytest.raises(Mine) as caught:
        call(function)
    assert caught.value.args == ("broken", 7)
    # The line itself is shown where cloudpickle keeps the name of its file, which newer versions do not.
    assert re.search(r"line \d+, in function\n", caught.value.__notes__[-1])
    assert "('broken', 7)" in caught.value.__notes__[-1]
    pid = call.pool.pids()
    assert call(lambda block: {"pid": os.getpid()})["pid"] == pid[0]  # it goes on


def test_exceptions_that_cannot_travel_are_told(call):
    class Odd(Exception):
        def __init__(self, one, two):
            super().__init__(f"{one} and {two}")

    class Held(Exception):
        def __init__(self):
            super().__init__("held")
            self.lock = threading.Lock()

    class Mute(Exception):
        def __str__(self):
            raise RuntimeError

        __reduce__ = None

    for make, words in ((lambda: Odd(1, 2), "Odd: 1 and 2"), (Held, "Held: held"), (Mute, "Mute: ")):

        def function(block, make=make):
            raise make()

        with pytest.raises(StageError, match=f"the function raised {words}") as caught:
            call(function)
        assert "in function" in str(caught.value.__cause__)


def test_exit_of_a_function_is_an_exit(call):
    with pytest.raises(SystemExit) as caught:
        call(lambda block: sys.exit(4))
    assert caught.value.code == 4


def test_results_that_cannot_travel_are_refused(call):
    with pytest.raises(StageError, match="what the function returned cannot leave its process"):
        call(lambda block: {"x": threading.Lock()})
    with pytest.raises(StageError, match=r"the block cannot be sent to a process \(TypeError"):
        call(lambda block: block, x=threading.Lock())


def test_the_loader_names_the_place(data):
    def function(block):
        if 300 in block["id"]:
            raise KeyError("shop")
        return block

    pipe = Pipeline.from_parquet(data).batch(BATCH).map(function, workers="process")
    with pipe.loader(executor="threads") as loader:
        with pytest.raises(
            StageError, match=r"stage 'transform', batch.* 6.*part-000.*KeyError: 'shop'"
        ) as caught:
            list(loader)
        assert isinstance(caught.value.__cause__, KeyError)
    with pipe.loader(executor="threads", on_error="skip") as loader:
        assert len(list(loader)) < 40
        assert loader.stats().skipped == 1


def test_functions_that_cannot_travel_are_refused_when_the_loader_is_made(data):
    lock = threading.Lock()
    pipe = Pipeline.from_parquet(data).batch(BATCH).map(lambda block: lock and block, workers="process")
    with pytest.raises(
        ConfigError, match=r"`function` of stage 'transform' cannot be sent to a process .*lock"
    ):
        pipe.loader(executor="threads")


def test_functions_that_cannot_be_made_again_are_told():
    class Unwilling:
        def __call__(self, block):
            return block

        def __reduce__(self):
            return int, ("x",)

    pool, stage = pool_of(Unwilling())
    with pytest.raises(
        StageError, match=r"could not be made ready in a worker process: ValueError: invalid lit"
    ):
        pool(stage, {})
    pool.close()


# ---- time limits ---------------------------------------------------------------------------------------------


def test_a_function_that_hangs_is_ended(data):
    def function(block):
        while 300 in block["id"]:  # holds the lock
            pass
        return block

    def workers() -> int:
        return sum(not thread.name.startswith("intune-process-starter") for thread in threading.enumerate())

    threads = threading.active_count()
    pipe = Pipeline.from_parquet(data).batch(BATCH).map(function, workers="process", timeout=1.0)
    with pipe.loader(executor="threads", allocation={"transform": 2}) as loader:
        with pytest.raises(StageTimeout, match=r"stage 'transform', batch.* 6.*`timeout`=1 s"):
            list(loader)
        started = workers() - threads
        loader.set_epoch(0)
        with pytest.raises(StageTimeout):
            list(loader)
        assert workers() - threads == started  # none was given up
        assert loader.stats().workers_lost == 0
    assert threading.active_count() == threads


def test_a_batch_whose_function_hangs_can_be_skipped(data):
    def function(block):
        if 300 in block["id"]:
            time.sleep(60)
        return block

    pipe = Pipeline.from_parquet(data).batch(BATCH).map(function, workers="process", timeout=3.0)
    with pipe.loader(executor="threads", on_error="skip") as loader:
        ids = torch.cat([batch["id"] for batch in loader]).tolist()
        assert ids == [*range(300), *range(350, 2000)]
        assert loader.stats().skipped == 1


def test_starting_a_process_is_not_counted_as_the_functions_time(monkeypatch):
    timed = []
    monkeypatch.setattr(Process, "_wait", lambda self, timeout: timed.append((timeout, self.fresh)))
    pool, stage = pool_of(lambda block: block, timeout=0.1)
    try:
        assert pool(stage, {"n": 1}) == {"n": 1}
    finally:
        pool.close()
    assert timed == [(0.1, False)]


# ---- processes that die --------------------------------------------------------------------------------------


def kill_now_and_then(fleet, rng, stop):
    """Up to three, which no call can take for more than its three further tries."""
    kills = 0
    while kills < RETRIES and not stop.wait(rng.uniform(0.0, 0.1)):
        if pids := fleet.pids():
            os.kill(rng.choice(pids), signal.SIGKILL)
            kills += 1


def test_kills_at_random_moments_change_nothing(data, caplog):
    scrambled = scramble()

    def slow(block):
        end = time.process_time() + 0.004  # long enough that kills hit calls under way
        while time.process_time() < end:
            pass
        return scrambled(block)

    expected = read(data, scrambled, "thread")
    rng = random.Random(5)
    pipe = Pipeline.from_parquet(data).shuffle(row_groups=2, seed=3).batch(BATCH)
    with pipe.map(slow, workers="process").loader(executor="threads") as loader:
        while loader.stats().workers_lost < 4:
            stop = threading.Event()
            killer = threading.Thread(target=kill_now_and_then, args=(loader._fleet, rng, stop))
            killer.start()
            loader.set_epoch(0)
            for one, other in zip(expected, loader, strict=True):
                same(one, other)
            stop.set()
            killer.join()
        lost = loader.stats().workers_lost
    assert caplog.text.count("was killed by SIGKILL") == lost
    assert "running the function again in a new one" in caplog.text


def test_all_processes_killed_at_once_at_work(data, tmp_path, caplog):
    folder = str(tmp_path)

    def function(block):
        """Kills its process the first time it sees a batch."""
        try:
            os.close(os.open(f"{folder}/{block['id'][0]}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return block
        os.kill(os.getpid(), signal.SIGKILL)

    pipe = Pipeline.from_parquet(data).batch(400).map(function, workers="process")
    with pipe.loader(executor="threads", allocation={"transform": 2}) as loader:
        ids = torch.cat([batch["id"] for batch in loader]).tolist()
        assert loader.stats().workers_lost == 5
    assert ids == list(range(2000))
    message = next(record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    assert "stage 'transform', batch" in message
    assert "part-00" in message
    assert "running the function again in a new one (try 2 of 4)" in message


@pytest.mark.parametrize("how", [signal.SIGSEGV, 3], ids=["segfault", "exit"])
def test_a_function_that_always_takes_its_process_down_ends_the_job(data, how, monkeypatch):
    tries = RETRIES + 1
    if how == 3:  # once in full is enough
        monkeypatch.setattr("intune.pipelines.executors.processes.RETRIES", 0)
        tries = 1

    def function(block):
        if isinstance(how, signal.Signals):
            import resource

            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os.kill(os.getpid(), how)
        os._exit(how)

    words = "was killed by SIGSEGV" if isinstance(how, signal.Signals) else "ended with exit code 3"
    pipe = Pipeline.from_parquet(data).batch(2000).map(function, workers="process")
    with pipe.loader(executor="threads") as loader:
        with pytest.raises(
            WorkerLostError, match=rf"stage 'transform', batch 0 .*part-000.* {tries} times; .*{words}"
        ):
            list(loader)
        assert loader.stats().workers_lost == tries


def test_a_death_is_seen_though_a_program_that_the_function_started_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("intune.pipelines.executors.processes.RETRIES", 0)

    def function(block):
        (tmp_path / "said").touch()  # the shell in the background may open it only after this process's end
        os.system(f"(echo begun; sleep 20; echo ended) > {tmp_path}/said & echo $! > {tmp_path}/pid")
        os._exit(3)

    pool, stage = pool_of(function)
    with pytest.raises(WorkerLostError, match="exit code 3"):
        pool(stage, {})
    assert "ended" not in (tmp_path / "said").read_text()
    shell = psutil.Process(int((tmp_path / "pid").read_text()))
    for program in (*shell.children(), shell):
        program.kill()
    pool.close()


@pytest.mark.parametrize("then", ["raises", "goes on"])
def test_a_process_that_hung_up_tells_how_it_ended_and_not_of_memory(monkeypatch, then):
    """As one that a function's `os.closerange` or an error of its own cuts off: ending takes it some time."""
    monkeypatch.setattr("intune.pipelines.executors.processes.RETRIES", 0)
    patience = 60.0 if then == "raises" else 0.1
    monkeypatch.setattr("intune.pipelines.executors.processes.DYING_S", patience)

    def function(block):
        import atexit

        os.closerange(3, 256)
        if then == "raises":
            atexit.register(time.sleep, 0.2)
        else:
            signal.pause()

    pool, stage = pool_of(function)
    words = "ended with exit code 1" if then == "raises" else r"hung up but went on, and was ended \(does the"
    with pytest.raises(WorkerLostError, match=words):
        pool(stage, {})
    pool.close()


def test_a_process_that_died_idle_costs_no_try(caplog, monkeypatch):
    monkeypatch.setattr("intune.pipelines.executors.processes.RETRIES", 0)
    pool, stage = pool_of(lambda block: {"pid": os.getpid()})
    pid = pool(stage, {})["pid"]
    process = pool._idle[0]
    process.kill()
    process._process.wait(60)
    assert pool(stage, {})["pid"] != pid
    assert pool.workers_lost == 1
    assert f"an idle worker process (pid {pid}) was killed by SIGKILL" in caplog.text
    pool.close()


def test_ctrl_c_does_not_reach_a_process_even_while_it_starts():
    process = Process()
    for _ in range(20):
        for pid in server_pids():
            os.kill(pid, signal.SIGINT)
    while process.pid is None:
        os.sched_yield()
    os.kill(process.pid, signal.SIGINT)
    process.prepare("f", b"\x80\x04N.")  # None
    os.kill(process.pid, signal.SIGINT)
    process.prepare("g", b"\x80\x04N.")
    assert process.alive
    process.hang_up()
    assert process.end(10.0) == "ended with exit code 0"


# ---- nothing is left -----------------------------------------------------------------------------------------


def test_descriptors_and_processes_do_not_pile_up(data, tmp_path):
    folder = str(tmp_path)

    def function(block):
        if block["id"][0] == 0 and len(os.listdir(folder)) < 3:
            Path(folder, str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return block

    before = descriptors()
    pipe = Pipeline.from_parquet(data).batch(BATCH).map(function, workers="process")
    with pipe.loader(executor="threads", allocation={"load": 1, "transform": 2}) as loader:
        counts = []
        for _ in range(12):
            for number, _ in enumerate(loader):
                if number == 20 and len(counts) % 2:
                    break  # a loop left early
            del _
            loader.set_epoch(0)
            counts.append(descriptors())
        pids = loader._fleet.pids()
        assert len(pids) <= 4  # threads; those at work on a loop left early are not at hand for the next
        files = len(loader.dataset.files)  # they stay open from epoch to epoch
        # Socket, lifeline, and for each segment its file and its mapping's.
        assert counts[-1] <= before + files + len(pids) * (2 + 2 * (2 + HANDED_OVER))
    assert descriptors() == before
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)  # not even as a zombie


def test_closing_ends_what_runs_and_refuses_more():
    began = threading.Event()
    pool, stage = pool_of(lambda block: time.sleep(60))
    errors = []

    def work():
        try:
            pool(stage, {}, lambda: began.set() or "here")
        except LoaderError as error:
            errors.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    while not pool.pids():
        os.sched_yield()
    pids = pool.pids()
    pool.close(patience=0.2)
    thread.join(60)
    assert errors == ["the loader was closed while this ran"]
    assert not Path(f"/proc/{pids[0]}").exists()
    with pytest.raises(LoaderError):
        pool(stage, {})
    pool.close()


def test_processes_end_at_once_though_they_hold_much_and_do_what_is_to_be_done_at_their_exit(tmp_path, capfd):
    def work(block):
        import atexit

        import torch  # taking which apart takes a second

        atexit.register((tmp_path / "exited").write_text, str(torch.zeros(1).item()))
        print("worked", end="")
        return block

    stage = Map(function=work, workers="process", name="any")
    pool = ProcessPool([stage])
    pool(stage, {"x": np.zeros(1)})
    (process,) = pool._idle
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = sum(psutil.Process(process.pid).cpu_times()[:2])
    pool.close()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    ending = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime - used
    assert ending < 0.3  # of processor time, which does not depend on who else is at work
    assert process._process.code == 0
    assert (tmp_path / "exited").read_text() == "0.0"
    assert capfd.readouterr().out == "worked"


def test_closing_does_not_wait_for_a_process_that_is_still_starting():
    class Slow:
        def __reduce__(self):
            return time.sleep, (60.0,)  # as an import that takes long

    slow = Slow()
    stage = Map(function=lambda block: slow and block, workers="process", name="any")
    pool = ProcessPool([stage])
    errors = []

    def ask():
        try:
            pool(stage, {"x": np.zeros(1)})
        except LoaderError as error:
            errors.append(str(error))

    thread = threading.Thread(target=ask)
    thread.start()
    while not pool.pids():
        time.sleep(0.01)
    time.sleep(0.2)
    pool.close(patience=60.0)
    thread.join(60)
    assert errors == ["the loader was closed while this ran"]


def test_idle_processes_can_be_ended_and_others_come():
    stage = Map(function=lambda block: block, workers="process", name="any")
    pool = ProcessPool([stage])
    try:
        pool(stage, {"x": np.zeros(1)})
        (first,) = pool.pids()
        pool.end_idle()
        assert pool.pids() == []
        pool(stage, {"x": np.zeros(1)})
        assert pool.pids() not in ([], [first])
        assert pool.workers_lost == 0
    finally:
        pool.close()


def test_processes_that_are_wanted_no_more_are_ended_after_a_while():
    stage = Map(function=lambda block: block, workers="process", name="any")
    now = [0.0]
    pool = ProcessPool([stage], clock=lambda: now[0])
    try:
        borrowed = [pool._borrow(stage) for _ in range(3)]
        for process in borrowed:
            pool._give_back(process)
        while len(pids := pool.pids()) < 3:
            os.sched_yield()
        pool.resize(1)
        pool(stage, {"x": np.zeros(1)})
        assert pool.pids() == pids  # they may be wanted again soon
        now[0] += 0.9 * SPARE_S
        pool(stage, {"x": np.zeros(1)})
        assert pool.pids() == pids
        now[0] += 0.2 * SPARE_S
        pool(stage, {"x": np.zeros(1)})
        assert pool.pids() == pids[2:]
        assert [psutil.pid_exists(pid) for pid in pids] == [False, False, True]
        now[0] += 2 * SPARE_S
        pool.resize(1)
        assert pool.pids() == pids[2:]
        pool.resize(0)
        assert pool.pids() == []
        assert pool.workers_lost == 0
    finally:
        pool.close()


def test_a_loader_wants_as_many_processes_as_slots_that_may_use_one(data):
    same = Pipeline.from_parquet(data).batch(64).map(dict).map(dict, workers="process", name="there")
    with same.loader(executor="threads", budget=Budget(cpus=2, memory=1 << 28)) as loader:
        for given, wanted in ((Allocation.shared(5), 5), ({"load": 3, "transform": 4, "there": 2}, 2)):
            loader.resize(given)
            assert loader._fleet._processes._most == wanted


def test_an_exception_in_the_training_loop_leaves_nothing(data):
    before = descriptors()
    pipe = Pipeline.from_parquet(data).batch(BATCH).map(lambda block: block, workers="process")
    pids = []

    def train():
        with pipe.loader(executor="threads") as loader:
            for batch in loader:
                pids.extend(loader._fleet.pids())
                raise ZeroDivisionError(len(batch))

    with pytest.raises(ZeroDivisionError):
        train()
    assert pids
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    gc.collect()  # the batch, memory of a process's, is held by the exception's frames
    assert descriptors() == before


# Where a pool is all there is to see, a script makes one: a loader's batches are torch's, whose import takes longer
# than all else.
HANG = """
    import os, re, sys, threading
    from intune.pipelines.executors.processes import ProcessPool
    from intune.pipelines.stages import Map

    def hang(block):
        print("hangs")
        re.match(r"(a+)+$", "a" * 60 + "b")  # holds Python's lock for ages

    stage = Map(function=hang, workers="process")
    pool = ProcessPool([stage])
    pool._give_back(pool._borrow(stage))  # it is there before the fork
    threading.Thread(target=pool, args=(stage, {})).start()
    if os.fork() == 0:
        sys.stdin.read()
        os._exit(0)
"""

LOOP = """
    import sys
    from intune.pipelines import Pipeline

    pipe = Pipeline.from_parquet(sys.argv[1]).batch(50).map(lambda block: block, workers="process")
    with pipe.loader(executor="threads") as loader:
        while True:
            for number, batch in enumerate(loader):
                if number == 3:
                    print("hangs", flush=True)
"""

PLAIN = """
    import sys
    import numpy as np
    from beside import offset
    from intune.pipelines import Pipeline

    SCALE = 10

    def scaled(ids):
        return ids * SCALE + offset(ids)

    def function(block):
        return {"made": scaled(block["id"]), "name": np.full(len(block["id"]), ord(__name__[0]))}

    pipe = Pipeline.from_parquet(sys.argv[1]).batch(500).map(function, workers="process")
    for batch in pipe.loader(executor="threads"):
        print(int(batch["made"].sum()), int(batch["name"][0]))
"""


@contextlib.contextmanager
def start(folder: Path, script: str, data: Path, **options) -> Iterator[subprocess.Popen]:
    """A program, which is killed where a test of it fails: it may hang."""
    path = folder / "script.py"
    path.write_text(textwrap.dedent(script))
    with subprocess.Popen(
        [sys.executable, str(path), str(data)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    ) as program:  # fmt: skip
        try:
            yield program
        finally:
            program.kill()


def workers_of(pid: int) -> list[int]:
    """Descriptors that tell when a process's worker processes, and what forks them, have ended."""
    below = psutil.Process(pid).children(recursive=True)
    chosen = [
        process.pid for process in below if "executors.fork_server_process" in " ".join(process.cmdline())
    ]
    assert len(chosen) > 1
    return [os.pidfd_open(p) for p in chosen]


def assert_ended(workers: list[int]) -> None:
    left = 0
    for descriptor in workers:
        waiting = select.poll()
        waiting.register(descriptor, select.POLLIN)
        if not waiting.poll(10_000):
            left += 1
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        os.close(descriptor)
    assert not left, f"{left} worker process(es) outlived the parent"


def test_no_process_outlives_a_parent_that_is_killed(data, tmp_path):
    """Though it is in the middle of a function that holds the lock, and a fork of the parent lives on."""
    with start(tmp_path, HANG, data) as parent:
        assert parent.stdout.readline() == "hangs\n"
        workers = workers_of(parent.pid)
        parent.kill()
        assert_ended(workers)
        parent.stdin.close()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of a fork beside threads
def test_a_fork_while_a_process_starts_does_not_hold_its_line(monkeypatch):
    """As a DataLoader forks its workers: the process would live on with such a child when this one is killed."""
    pair, before, left = socket.socketpair, set(os.listdir("/proc/self/fd")), []

    def fork():
        child = os.fork()
        if not child:
            others = {int(name) for name in set(os.listdir("/proc/self/fd")) - before}
            os._exit(
                sum(
                    stat.S_ISSOCK(os.fstat(fd).st_mode)
                    for fd in others
                    if Path(f"/proc/self/fd/{fd}").exists()
                )
            )
        left.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    forks = threading.Thread(target=fork)

    def opened(*arguments):
        monkeypatch.setattr(socket, "socketpair", pair)
        ends = pair(*arguments)
        forks.start()
        forks.join(0.2)
        return ends

    monkeypatch.setattr(socket, "socketpair", opened)
    process = Process()
    forks.join()
    process.hang_up()
    process.end(10.0)
    assert left == [0]


def test_ctrl_c_ends_the_trainer_and_with_it_the_processes(data, tmp_path):
    with start(tmp_path, LOOP, data, process_group=0) as parent:
        assert parent.stdout.readline() == "hangs\n"
        workers = workers_of(parent.pid)
        os.killpg(parent.pid, signal.SIGINT)  # as the terminal does: to all of them
        assert parent.wait(150.0) == -signal.SIGINT
        assert_ended(workers)
        complaint = parent.stderr.read()
    assert complaint.count("Traceback") == 1
    assert complaint.rstrip().endswith("KeyboardInterrupt")


def test_a_script_needs_no_main_guard(data, tmp_path):
    """And a file beside it may be called as a module that Python begins with: in the script itself it is in nobody's
    way, for the interpreter has the module by then."""
    begun = [sys.executable, "-c", "import sys; print('types' in sys.modules)"]
    if subprocess.run(begun, capture_output=True, text=True, check=True).stdout == "True\n":
        (tmp_path / "types.py").write_text("raise RuntimeError('not this one')")
    (tmp_path / "beside.py").write_text("def offset(ids):\n    return 1\n")
    with start(tmp_path, PLAIN, data) as script:
        output, complaint = script.communicate(timeout=150)
    ids = np.arange(2000).reshape(4, 500)
    assert complaint == ""
    assert output.splitlines() == [f"{total} {ord('_')}" for total in (ids * 10 + 1).sum(axis=1)]


CLOSED = """
    import os
    import sys

    for stream in (0, 1, 2):
        os.close(stream)
    program = f"import sys; sys.path[:] = {sys.path!r}; exec(open({sys.argv[0]!r} + '.2').read())"
    os.execv(sys.executable, [sys.executable, "-c", program, *sys.argv[1:]])
"""

TALKS = """
    import os
    import sys
    from intune.pipelines.executors.processes import ProcessPool
    from intune.pipelines.stages import Map

    def function(block):
        print("a word")
        os.system("echo a word; echo a word >&2")
        return block

    stage = Map(function=function, workers="process")
    pool = ProcessPool([stage])
    with open(sys.argv[1] + "-rows", "w") as file:
        print("a word")
        file.write(str(sum(pool(stage, {"rows": rows})["rows"] for rows in (500, 1500))))
    pool.close()
"""


def test_functions_may_print_where_the_standard_streams_are_closed(data, tmp_path):
    """As those of services are: descriptors get the numbers of the streams then."""
    (tmp_path / "script.py.2").write_text(textwrap.dedent(TALKS))
    with start(tmp_path, CLOSED, data) as script:
        assert script.wait(150) == 0
    assert Path(f"{data}-rows").read_text() == "2000"


STOPPED = """
    import time
    from intune.pipelines.executors.processes import ProcessPool
    from intune.pipelines.stages import Map

    def function(block):
        time.sleep(0.2)
        print("works", flush=True)
        for _ in range(6):
            time.sleep(0.05)
        return block

    stage = Map(function=function, workers="process", timeout=3.0)
    pool = ProcessPool([stage])
    print(pool(stage, {"n": 1})["n"])
    pool.close()
"""


def test_time_for_which_the_whole_job_is_stopped_is_not_the_functions(data, tmp_path):
    with start(tmp_path, STOPPED, data, process_group=0) as job:
        assert job.stdout.readline() == "works\n"
        os.killpg(job.pid, signal.SIGSTOP)
        time.sleep(3.2)  # longer than the function may take
        os.killpg(job.pid, signal.SIGCONT)
        output, complaint = job.communicate(timeout=150)
    assert (output, complaint) == ("1\n", "")


SPAWNED = """
    import multiprocessing
    from intune.pipelines.executors.processes import ProcessPool
    from intune.pipelines.stages import Map

    class Odd(Exception):
        pass

    def function(block):
        return block

    def broken(block):
        raise Odd("no")

    def train():
        stages = [Map(function=function, workers="process"), Map(function=broken, workers="process", name="broken")]
        pool = ProcessPool(stages)
        print(pool(stages[0], {"n": 2000})["n"])
        try:
            pool(stages[1], {})
        except Odd:
            print("it is the same class", flush=True)

    if __name__ == "__main__":
        process = multiprocessing.get_context("spawn").Process(target=train)
        process.start()
        process.join()
"""


def test_functions_of_a_script_travel_from_a_process_that_the_script_spawned(data, tmp_path):
    with start(tmp_path, SPAWNED, data) as script:
        output, complaint = script.communicate(timeout=150)
    assert complaint == ""
    assert output.splitlines() == ["2000", "it is the same class"]


# ---- for others than pipelines -------------------------------------------------------------------------------


def numbered_function():
    def function(block):
        from intune.pipelines.executors.worker_number import worker_number

        return {"number": worker_number(), "pid": os.getpid(), "there": list(range(block["n"]))}

    return function


def test_processes_have_numbers_and_the_number_of_a_dead_one_is_given_again():
    pool, stage = pool_of(numbered_function())
    try:
        one, other = pool._borrow(stage), pool._borrow(stage)
        assert (one.number, other.number) == (0, 1)
        pool._give_back(one)
        pool._give_back(other)
        first = pool(stage, {"n": 3})
        assert first["there"] == [0, 1, 2]
        assert first["number"] in (0, 1)
        os.kill(first["pid"], signal.SIGKILL)
        while psutil.pid_exists(first["pid"]):
            time.sleep(0.01)
        numbers = []
        for _ in range(2):
            process = pool._borrow(stage)
            numbers.append(process.number)
        assert sorted(numbers) == [0, 1]
        for process in list(pool._busy):
            pool._give_back(process)
    finally:
        pool.close()


def test_a_function_can_be_replaced_by_another_in_the_same_process():
    import cloudpickle

    pool, stage = pool_of(lambda block: {"made": "one", "pid": os.getpid()})
    try:
        first = pool(stage, {})
        other = cloudpickle.dumps(lambda block: {"made": "other", "pid": os.getpid()})
        pool.replace(stage.name, other)
        second = pool(stage, {})
        assert (first["made"], second["made"]) == ("one", "other")
        assert first["pid"] == second["pid"]
        prepared = pool._idle[0]._prepared[stage.name]
        same = bytes(bytearray(prepared))
        pool.replace(stage.name, same)
        pool(stage, {})
        assert pool._idle[0]._prepared[stage.name] is prepared
        pool.replace(stage.name, same, anew=True)
        pool(stage, {})
        assert pool._idle[0]._prepared[stage.name] is same
    finally:
        pool.close()


# ---- processes that start --------------------------------------------------------------------------------------


def test_work_goes_on_while_further_processes_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that finds none idle takes whichever is free first, and does not wait for one of its own to start."""
    stage = Map(function=lambda block: {**block, "pid": np.full(1, os.getpid())}, workers="process", name="f")
    pool = ProcessPool([stage])
    block = {"x": np.zeros(1)}
    first = int(pool(stage, block)["pid"][0])
    held = threading.Event()
    prepare = Process.prepare

    def slowly(self: Process, name: str, function: bytes) -> None:
        if self.fresh:
            held.wait()
        prepare(self, name, function)

    monkeypatch.setattr(Process, "prepare", slowly)
    with ThreadPoolExecutor(4) as threads:
        try:
            calls = threads.map(lambda _: int(pool(stage, block)["pid"][0]), range(40), timeout=120.0)
            assert set(calls) == {first}
        finally:
            held.set()
    pool.close(10.0)
    assert not pool.pids()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("intune-process")]


def test_a_process_that_is_still_starting_does_not_hold_up_the_end() -> None:
    stage = Map(function=lambda block: block, workers="process", name="f")
    pool = ProcessPool([stage])
    pool(stage, {"x": np.zeros(1)})
    with pool._changed:
        pool._waiting = 1
        pool._start_beside(stage)
        pool._waiting = 0
    began = time.perf_counter()
    pool.close(120.0)
    assert time.perf_counter() - began < 60.0
    assert not pool.pids()
    with pytest.raises(LoaderError):
        pool(stage, {"x": np.zeros(1)})


class Refused:
    """A process that the system allows no more, seen as `fork_server.Child`."""

    pid = code = None
    running = False
    refused = "[Errno 11] Resource temporarily unavailable"
    problem = f"could not be started ({refused})"

    def wait(self, patience: float) -> bool:
        return True

    def release(self) -> None:
        pass


def test_where_no_further_process_is_allowed_calls_wait_for_those_there_are(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As in a container with a limit of pids: it was the function that was said to take processes down."""
    pool, stage = pool_of(lambda block: block)
    one = pool._borrow(stage)
    monkeypatch.setattr(fork_server, "fork", lambda *_: Refused())
    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(pool, stage, {"n": 1})
        deadline = time.monotonic() + 60.0
        while "going on with fewer" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)
        pool._give_back(one)
        assert other.result(60.0) == {"n": 1}
    assert pool.workers_lost == 0
    pool.end_idle()
    with pytest.raises(WorkerLostError, match=r"could not be started: \[Errno 11\] .*; allow more processes"):
        pool(stage, {"n": 1})
    pool.close()


def refuse(*_: object) -> NoReturn:
    raise OSError(errno.EMFILE, "Too many open files")


@pytest.mark.parametrize("lacks", ["a descriptor", "a thread"])
def test_calls_go_on_with_fewer_processes_where_the_system_allows_no_more(
    lacks: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start = threading.Thread.start

    def started(thread: threading.Thread) -> None:
        if thread.name.startswith("intune-process-starter"):
            raise RuntimeError("can't start new thread")
        start(thread)

    pool, stage = pool_of(lambda block: block)
    if lacks == "a thread":
        pool(stage, {})  # only beside one that is ready another is started in a thread
        monkeypatch.setattr(threading.Thread, "start", started)
    one = pool._borrow(stage)
    monkeypatch.setattr(socket, "socketpair", refuse)
    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(pool._borrow, stage)
        deadline = time.monotonic() + 60.0
        while "going on with fewer" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)
        pool._give_back(one)
        assert other.result(60.0) is one
    pool._give_back(one)
    pool.close(10.0)
    assert not pool.pids()
    assert caplog.messages[0].startswith("a further worker process did not start (")


def test_processes_without_work_keep_no_memory_for_their_next_calls() -> None:
    now = [0.0]
    stage = Map(function=lambda block: {"y": block["x"] + 1}, workers="process")
    pool = ProcessPool([stage], clock=lambda: now[0])
    x = np.arange(200_000)

    def kept() -> int:
        (process,) = pool._idle
        found = [os.fstat(segment.descriptor).st_blocks * 512 for segment in process._segments.values()]
        return sum(found)

    made = pool(stage, {"x": x})
    assert kept() >= 2 * x.nbytes
    pool.give_back_memory()
    assert kept() >= 2 * x.nbytes  # the next call may come at once
    now[0] = REST_S
    pool.give_back_memory()
    assert x.nbytes <= kept() < 2 * x.nbytes
    np.testing.assert_array_equal(made["y"], x + 1)
    del made
    pool.give_back_memory()
    assert kept() == 0
    np.testing.assert_array_equal(pool(stage, {"x": x})["y"], x + 1)
    pool.close()


@pytest.mark.parametrize(
    ("allowed", "processes", "each"),
    [
        (1024, 1, 4),
        (1024, 18, 4),
        (1024, 32, 1),
        (1024, 64, 0),
        (64, 1000, 0),
        (resource.RLIM_INFINITY, 500, 4),
    ],
)
def test_the_more_processes_the_fewer_descriptors_each_takes(
    monkeypatch: pytest.MonkeyPatch, allowed: int, processes: int, each: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (allowed, allowed))
    assert handed_over(processes) == each


def test_results_that_wait_take_no_descriptors_where_there_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    real = resource.getrlimit
    few = lambda limit: (32, 32) if limit == resource.RLIMIT_NOFILE else real(limit)  # noqa: E731
    monkeypatch.setattr(resource, "getrlimit", few)
    pool, stage = pool_of(lambda block: {"y": block["x"] + 1})
    pool(stage, {"x": np.arange(100)})
    before = descriptors()
    kept = [pool(stage, {"x": np.arange(number, number + 100)}) for number in range(6)]
    assert descriptors() - before == 2
    for number, made in enumerate(kept):
        np.testing.assert_array_equal(made["y"], np.arange(number, number + 100) + 1)
    pool.close()


def test_where_there_are_no_descriptors_that_is_said_and_none_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool, stage = pool_of(lambda block: block)
    before = descriptors()
    with monkeypatch.context() as patched:
        patched.setattr(socket, "socketpair", refuse)
        with pytest.raises(WorkerLostError, match=r"could not be started: .* Too many open files"):
            pool(stage, {})
    for missing in (Segment, "create"), (mmap, "mmap"):
        with monkeypatch.context() as patched:
            patched.setattr(*missing, refuse)
            with pytest.raises(
                WorkerLostError, match=r"Too many open files\); allow more open files \(ulimit"
            ):
                pool(stage, {})
    assert descriptors() == before
    assert not pool.pids()
    pool.close()
