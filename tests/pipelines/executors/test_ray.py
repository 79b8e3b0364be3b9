"""The Ray executor: the same batches as threads, whatever is resized and whoever dies."""

import contextlib
import hashlib
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path
from types import ModuleType

import cloudpickle
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from intune.pipelines import Budget, Pipeline
from intune.pipelines.errors import (
    ConfigError,
    CorruptError,
    LoaderError,
    StageError,
    StageTimeout,
    WorkerLostError,
)
from intune.pipelines.executors import ray_cluster
from intune.pipelines.executors.ray import RayFleet
from intune.pipelines.executors.ray_records import Worker, blocks_of
from intune.pipelines.executors.ray_worker import MOST_THREADS, RayWorker
from intune.pipelines.executors.ray_workers import RayWorkers
from intune.pipelines.loader import Loader

ROWS, GROUP = 24_000, 1_000
BUDGET = Budget(cpus=2, memory=512 << 20)
TIGHT = Budget(cpus=2, memory=3 << 19)
"""With it workers are far from done when the trainer is, so that the death of one is always missed."""
PATIENCE = 150
"""Seconds after which what is waited for is not to come any more, however busy the machine."""


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """One local Ray for all tests of this file: starting one takes seconds."""
    ray = ray_cluster.connect(BUDGET)
    this = sys.modules[__name__]
    for pickling in (cloudpickle, ray.cloudpickle):
        pickling.register_pickle_by_value(this)  # lest every worker imports it, and pytest with it
    yield ray
    for pickling in (cloudpickle, ray.cloudpickle):
        pickling.unregister_pickle_by_value(this)
    ray_cluster.disconnect(ray, ray_cluster.connection(ray))


class Shared(RayWorker):
    """A worker that begins anew with every loader, so that its process need not."""

    def hello(self, probe=None):
        if probe is not None:
            self.__init__(self.number)
        return super().hello(probe)


@pytest.fixture(scope="module")
def spare(cluster):
    """Workers without a loader. A process takes as long to start as most tests take."""
    return []


@pytest.fixture(autouse=True)
def workers_are_shared(request, spare, monkeypatch):
    """Loaders take over the workers that tests before left, but for tests that have `own_workers`."""
    if "own_workers" in request.fixturenames:
        return
    spawn, end = RayWorkers._spawn, RayWorkers._end

    def take_over(self):
        if self._books:
            return spawn(self)
        return Worker(number=next(self._numbers), actor=spare.pop() if spare else start(self))

    def start(self):
        return self.ray.remote(Shared).options(num_cpus=0, max_concurrency=MOST_THREADS).remote(0)

    def leave(self, workers, starting):
        if starting or self._books or not self.is_connected():
            return end(self, workers, starting)
        spare.extend(worker.actor for worker in workers if self.lives(worker))
        return end(self, [], starting)

    monkeypatch.setattr(RayWorkers, "_spawn", take_over)
    monkeypatch.setattr(RayWorkers, "_end", leave)


@pytest.fixture
def own_workers():
    """Those of the test are started for it and end with it."""


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Row groups as small as these would be read together; here every one is to be a task of its own."""
    monkeypatch.setattr("intune.pipelines.plan.BLOCK_ROWS", GROUP)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ray")
    rng = np.random.default_rng(0)
    for part in range(3):
        rows = ROWS // 3
        table = pa.table(
            {
                "id": np.arange(part * rows, (part + 1) * rows),
                "x": rng.random(rows).astype(np.float32),
                "bag": pa.array([list(range(i % 4)) for i in range(rows)], type=pa.list_(pa.int64())),
                **{f"unread{i}": rng.random(rows) for i in range(8)},
            }
        )
        pq.write_table(table, folder / f"{part}.parquet", row_group_size=GROUP)
    return folder


def double(block):
    end = time.perf_counter() + 0.002  # long enough that kills hit tasks in flight
    while time.perf_counter() < end:
        pass
    return {**block, "x": block["x"] * 2}


def digest(loader, each=lambda index, loader: None) -> str:
    """Of all batches, in order."""
    hashed = hashlib.sha256()
    for index, batch in enumerate(loader):
        for tensor in (batch["id"], batch["x"], batch["bag"].values, batch["bag"].offsets):
            hashed.update(tensor.numpy().tobytes())
        each(index, loader)
    return hashed.hexdigest()


def pipeline(data, **options):
    return Pipeline.from_parquet(data).shuffle(4, seed=3).batch(250).map(double, **options).to("cpu")


@pytest.fixture(scope="module")
def expected(data) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("intune.pipelines.plan.BLOCK_ROWS", GROUP)
        with pipeline(data).loader(executor="threads") as loader:
            return digest(loader)


def ray_loader(pipe, budget=BUDGET, **options):
    return pipe.loader(executor="ray", budget=budget, **options)


def test_batches_are_those_of_threads_while_slots_change(data, expected):
    rng = random.Random(0)

    def resize(index, loader):
        if index % 7 == 0:
            loader.resize({stage: rng.randint(1, 5) for stage in rng.sample(loader.stages, 2)})

    with ray_loader(pipeline(data)) as loader:
        pids = sorted(loader._fleet.pids())
        assert digest(loader, resize) == expected
        assert sorted(loader._fleet.pids()) == pids  # no process was restarted
        stats = loader.stats()
        assert stats.rows == ROWS
        assert stats.memory_held == 0
        assert 0 < stats.memory_peak <= stats.memory_limit


def far(loader) -> None:
    """As if the workers were on another machine: what they make comes through the object store."""
    for worker in loader._fleet._workers.alive:
        assert worker.near
        worker.near = False


def test_batches_from_another_machine_are_the_same(data, expected):
    with ray_loader(pipeline(data)) as loader:
        far(loader)
        assert digest(loader) == expected
        assert loader.stats().memory_held == 0


def test_batches_are_cut_where_they_are_used_and_the_stage_is_still_seen(data, expected, monkeypatch):
    called = []
    submit = RayFleet._submit

    def watched(self, run, generation, task, inputs):
        called.append(run.job.plan.levels[task.level].operation)
        submit(self, run, generation, task, inputs)

    monkeypatch.setattr(RayFleet, "_submit", watched)
    with ray_loader(pipeline(data)) as loader:
        assert digest(loader) == expected
        stages = {stage.name: stage for stage in loader.stats().stages}
        assert all(stage.rows == ROWS for stage in stages.values())
        assert stages["batch"].tasks == called.count("map") > 0
        assert set(called) == {"load", "merge", "map"}
        fleet = loader._fleet
        assert not fleet._outputs  # nothing is kept for nobody
        assert not any(worker.held or worker.running for worker in fleet._workers.alive)


def test_batches_of_two_row_groups_survive_the_death_of_the_worker_of_one(data, caplog):
    """Cut across blocks of several workers, not yet cut when one of them dies."""
    pipe = Pipeline.from_parquet(data).batch(700).map(double)
    with pipe.loader(executor="threads") as loader:
        expected = digest(loader)
    rng = random.Random(2)

    def kill(index, loader):
        if index == 3:
            os.kill(rng.choice(loader._fleet.pids()), signal.SIGKILL)

    with ray_loader(pipe, TIGHT) as loader:
        assert digest(loader, kill) == expected
        assert loader.stats().workers_lost > 0
    with ray_loader(pipe) as loader:
        far(loader)
        assert digest(loader) == expected


@pytest.mark.parametrize(
    "steps",
    [
        lambda pipe: pipe.batch(300).shuffle(5, seed=2).map(double),
        lambda pipe: pipe.batch(300).map(double).shuffle(5, seed=2).map(double),
        lambda pipe: pipe.map(double).shuffle(3, seed=1).batch(700, drop_last=True).map(double).map(double),
        lambda pipe: pipe.batch(100).map(double).map(double).to("cpu"),
    ],
)
def test_a_worker_elsewhere_gets_of_a_block_what_its_task_takes(data, monkeypatch, steps):
    """Of a window in which batches were mixed, say, every task got all."""
    pipe, rng = steps(Pipeline.from_parquet(data)), random.Random(3)

    def anywhere(self, run, task, blocks):
        return rng.choice(self._workers.alive) if self._workers.alive else None

    monkeypatch.setattr(Loader, "_chunk_rows", lambda self: 500)
    share = {"rank": 1, "world_size": 2}  # its first block is not the data's, nor begins where the block does
    with pipe.loader(executor="threads", **share) as loader:
        expected = digest(loader)
    monkeypatch.setattr(RayFleet, "_choose", anywhere)
    with ray_loader(pipe, **share) as loader:
        assert digest(loader) == expected


def test_epochs_differ_and_repeat(data):
    with ray_loader(Pipeline.from_parquet(data, columns=["id"]).shuffle(4, seed=3).batch(1000)) as loader:
        first, second = ([batch["id"].tolist() for batch in loader] for _ in range(2))
        loader.set_epoch(0)
        assert [batch["id"].tolist() for batch in loader] == first != second


def test_a_new_loader_continues_with_the_next_batch(data):
    pipe, cuts = pipeline(data), (37, 95)
    whole, states = [], {}
    with ray_loader(pipe) as loader:
        stream = iter(loader)
        for index in range(len(loader)):
            if index in cuts:
                states[index] = loader.state_dict()
            whole.append(next(stream)["id"].numpy().copy())
    for cut in cuts:
        with ray_loader(pipe) as loader:
            loader.load_state_dict(states[cut])
            rest = [batch["id"].numpy().copy() for batch in loader]
        assert len(rest) == len(whole) - cut
        assert all(np.array_equal(a, b) for a, b in zip(whole[cut:], rest, strict=True))


def test_killing_a_worker_at_random_and_all_at_once_changes_nothing(data, expected, caplog):
    rng = random.Random(5)
    one, all_of_them = rng.randrange(30), rng.randrange(50, ROWS // 250 - 10)

    def kill(index, loader):
        pids = loader._fleet.pids()
        for pid in {one: pids[:1], all_of_them: pids}.get(index, []):
            with contextlib.suppress(ProcessLookupError):  # killed just before, and not missed yet
                os.kill(pid, signal.SIGKILL)

    with ray_loader(pipeline(data), TIGHT) as loader, caplog.at_level(logging.WARNING, "intune"):
        assert digest(loader, kill) == expected
        assert loader.stats().workers_lost >= 2
    assert "are made again" in caplog.text


def test_a_worker_dies_that_only_holds_blocks(data, monkeypatch):
    """No task is given to it any more, so that nobody learns of its death but who wants a block of it."""
    choose = RayFleet._choose

    def apart(self, run, task, blocks):
        if task.level == 0 and not self.workers_lost:
            return self._workers.alive[0 if task.index < 4 else 1]
        return choose(self, run, task, blocks)

    monkeypatch.setattr(RayFleet, "_choose", apart)
    read = Pipeline.from_parquet(data, columns=["id", "x", "bag"])
    pipe = read.shuffle(24, seed=1).batch(250).map(lambda block: block)
    with pipe.loader(executor="threads") as loader:
        expected = digest(loader)
    slots = {"load": 4, "shuffle": 1, "batch": 1, "transform": 1}

    def kill(index, loader):
        if index == 0:
            settle(loader)
            holder = loader._fleet._workers.alive[0]
            assert holder.held
            assert not holder.running
            os.kill(holder.pid, signal.SIGKILL)

    with pipe.loader(executor="ray", budget=TIGHT, allocation=slots) as loader:
        assert digest(loader, kill) == expected
        assert loader.stats().workers_lost == 1


def settle(loader) -> None:
    """Until the workers have done all they may do ahead."""
    calm = 0
    while calm < 10:
        time.sleep(0.02)  # real processes: nobody tells when they are idle
        calm = 0 if any(worker.running for worker in loader._fleet._workers.alive) else calm + 1


@pytest.mark.usefixtures("own_workers")
def test_the_others_go_on_where_there_is_no_room_for_a_new_worker(data, expected, monkeypatch):
    """As when a node is lost: the processors of its workers are gone too."""

    def nowhere(self):
        return Worker(number=9, actor=self.ray.remote(RayWorker).options(num_cpus=99).remote(9))

    def impatient(self, worker):
        with pytest.raises(self.ray.exceptions.GetTimeoutError):
            self.ray.get(worker.actor.hello.remote(), timeout=1.0)
        raise ConfigError("no room")

    def kill(index, loader):
        if index == 5:
            os.kill(loader._fleet.pids()[0], signal.SIGKILL)

    with ray_loader(pipeline(data), TIGHT) as loader:
        monkeypatch.setattr(RayWorkers, "_spawn", nowhere)
        monkeypatch.setattr(RayWorkers, "_introduce", impatient)
        monkeypatch.setattr("intune.pipelines.executors.ray_workers.START_PATIENCE", 0.0)
        assert digest(loader, kill) == expected
        assert loader.stats().workers_lost == 1
        loader.set_epoch(0)
        with pytest.raises(WorkerLostError, match="none could be started in its place"):
            digest(loader, kill)
        assert loader.stats().workers_lost == 2


def test_a_worker_that_starts_while_an_epoch_is_left_learns_of_the_next(data, expected, monkeypatch):
    told, go = threading.Event(), threading.Event()
    wait = RayWorkers._await_told

    def slow(self, call):
        wait(self, call)
        if threading.current_thread() is not threading.main_thread() and not told.is_set():
            told.set()
            assert go.wait(PATIENCE)

    with ray_loader(pipeline(data)) as loader:
        fleet = loader._fleet
        next(iter(loader))
        stream = iter(loader)
        next(stream)
        monkeypatch.setattr(RayWorkers, "_await_told", slow)
        victim = fleet._workers.alive[0]
        os.kill(victim.pid, signal.SIGKILL)
        threading.Thread(target=fleet._died, args=(victim,)).start()
        assert told.wait(PATIENCE)
        stream = iter(loader)
        go.set()
        while len(fleet._workers.alive) < 2:
            time.sleep(0.01)  # a real process starts
        assert digest(stream) == expected


def test_a_task_that_kills_its_worker_fails_the_job_and_is_named(data, monkeypatch):
    monkeypatch.setattr("intune.pipelines.executors.ray.SUSPECT_AFTER", 1)  # for a worker takes long to start
    monkeypatch.setattr("intune.pipelines.executors.ray.MOST_DEATHS", 1)

    def poison(block):
        if 12_345 in block["id"]:
            os._exit(7)
        return block

    pipe = Pipeline.from_parquet(data).batch(250).map(poison)
    with ray_loader(pipe) as loader, pytest.raises(WorkerLostError) as caught:
        for _ in loader:
            pass
    assert "1.parquet, row group 4" in str(caught.value)
    assert "took its worker down 2 times" in str(caught.value)


def test_workers_let_go_of_what_they_made_for_a_loop_that_was_left(data, tmp_path):
    go = tmp_path / "go"

    def waits(block):
        until = time.monotonic() + PATIENCE
        while not go.exists() and time.monotonic() < until:
            time.sleep(0.01)  # a real process: nothing else keeps it from going on
        return block

    with ray_loader(Pipeline.from_parquet(data).shuffle(4).batch(250).map(waits)) as loader:
        fleet, stream = loader._fleet, iter(loader)
        kept = []
        until = time.monotonic() + PATIENCE
        while not kept and time.monotonic() < until:
            time.sleep(0.01)  # real processes, here and below
            with fleet._changed:
                kept = list(blocks_of(list(fleet._outputs.values())))
        assert kept
        del stream
        until = time.monotonic() + PATIENCE
        left = kept
        while left and time.monotonic() < until:  # a worker does calls at the same time, in no order
            calls = [
                block.worker.actor.export.remote(fleet._workers.generation, block.key, 0, 1) for block in kept
            ]
            left = [block for block in fleet._ray.get(calls) if block is not None]
            time.sleep(0.01)
        assert not left
        go.touch()


def test_what_a_function_loaded_is_there_in_the_next_epoch(data):
    class Lazy:
        """Reads its table, say, when it is first called."""

        table = None

        def __call__(self, block):
            fresh = self.table is None
            self.table = 1
            return {"fresh": np.full(len(block["id"]), fresh)}

    pipe = Pipeline.from_parquet(data).batch(1000).map(Lazy(), workers="process")
    with ray_loader(pipe) as loader:
        loaded = [sum(bool(batch["fresh"][0]) for batch in loader) for _ in range(3)]
        assert 1 <= sum(loaded) <= len(loader._fleet.pids())


def test_what_a_function_prints_is_seen(data, capfd):
    word = "".join(random.SystemRandom().choices("ghijklmnopq", k=12))  # Ray holds back what was said before

    def talk(block):
        if block["id"][0] == 0:
            print(word, flush=True)
        return block

    seen = ""
    with ray_loader(Pipeline.from_parquet(data).batch(1000).map(talk)) as loader:
        list(loader)
        until = time.monotonic() + PATIENCE
        while word not in seen and time.monotonic() < until:
            time.sleep(0.05)  # real processes: Ray looks for what they wrote now and then
            seen += "".join(capfd.readouterr())
    assert word in seen


class Unable:
    """As where this package is not installed."""

    def __init__(self):
        raise ImportError("not on this node")

    def hello(self, probe):
        pass


class Able:
    """But for the environment that it wants."""

    def hello(self, probe):
        pass


@pytest.mark.usefixtures("own_workers")
@pytest.mark.parametrize(
    ("actor", "environment", "why"),
    [
        (Unable, {}, "not on this node"),
        (Able, {"working_dir": "file:///nowhere/job.zip"}, r"/nowhere/job\.zip"),
    ],
)
def test_workers_that_cannot_start_are_an_error_that_says_why(data, monkeypatch, actor, environment, why):
    def spawn(self):
        options = {"num_cpus": 0, "runtime_env": environment}
        return Worker(number=9, actor=self.ray.remote(actor).options(**options).remote())

    monkeypatch.setattr(RayWorkers, "_spawn", spawn)
    with pytest.raises(ConfigError, match=rf"could not be started: .*{why}"):
        ray_loader(pipeline(data), Budget(cpus=1, memory=BUDGET.memory))


def test_errors_of_user_code_arrive_with_their_cause_and_place(data):
    def broken(block):
        raise KeyError("no such thing")

    pipe = Pipeline.from_parquet(data).batch(250).map(broken)
    with ray_loader(pipe) as loader, pytest.raises(StageError, match="stage 'transform', batch") as caught:
        next(iter(loader))
    assert "0.parquet, row group" in str(caught.value)
    assert isinstance(caught.value.__cause__, KeyError)
    assert any("in broken" in note for note in caught.value.__cause__.__notes__)


def test_an_error_of_the_script_s_own_class_arrives_as_that(data):
    class OddError(Exception):
        """Made here, so that it travels by value, as one of a script does."""

    def broken(block):
        raise OddError("no")

    pipe = Pipeline.from_parquet(data).batch(250).map(broken)
    with ray_loader(pipe) as loader, pytest.raises(StageError) as caught:
        next(iter(loader))
    assert type(caught.value.__cause__) is OddError


def test_a_function_that_cannot_be_sent_is_an_error_that_says_so(data):
    lock = threading.Lock()
    pipe = Pipeline.from_parquet(data).batch(250).map(lambda block: block if lock else {})
    with ray_loader(pipe) as loader, pytest.raises(ConfigError, match="cannot be sent to Ray's workers"):
        next(iter(loader))


def test_a_function_that_workers_cannot_import_is_an_error_that_says_so(data, monkeypatch):
    module = ModuleType("only_here")  # as one whose folder the workers do not look into
    exec("def same(block): return block", module.__dict__)
    monkeypatch.setitem(sys.modules, "only_here", module)
    pipe = Pipeline.from_parquet(data).batch(250).map(module.same)
    said = r"cannot be loaded by Ray's workers \(ModuleNotFoundError: .*only_here"
    with ray_loader(pipe) as loader, pytest.raises(ConfigError, match=said):
        next(iter(loader))


def test_what_cannot_be_used_is_skipped_and_counted(data, caplog):
    def picky(block):
        if block["id"][0] == 500:
            raise ValueError("not this one")
        return block

    pipe = Pipeline.from_parquet(data).batch(250).map(picky)
    with ray_loader(pipe, on_error="skip") as loader:
        ids = np.concatenate([batch["id"].numpy() for batch in loader])
        assert loader.stats().skipped == 1
    assert np.array_equal(ids, np.setdiff1d(np.arange(ROWS), np.arange(500, 750)))


def test_a_corrupt_page_is_named(data, tmp_path):
    raw = bytearray((data / "0.parquet").read_bytes())
    footer = pq.read_metadata(data / "0.parquet")
    at = footer.row_group(3).column(1).data_page_offset
    raw[at : at + 40] = b"\xff" * 40
    (tmp_path / "bad.parquet").write_bytes(raw)
    pipe = Pipeline.from_parquet(tmp_path / "bad.parquet").batch(250)
    with ray_loader(pipe) as loader, pytest.raises(CorruptError, match=r"bad\.parquet, row group 3"):
        for _ in loader:
            pass


def test_a_call_that_takes_too_long_is_named(data):
    def hang(block):
        if block["id"][0] == 0:
            time.sleep(30)  # a real process: nothing else leaves a call hanging
        return block

    pipe = Pipeline.from_parquet(data).batch(250).map(hang, timeout=0.3)
    with ray_loader(pipe) as loader, pytest.raises(StageTimeout, match="timeout"):
        next(iter(loader))


def test_the_processor_time_of_a_call_with_a_time_limit_is_its_stages(data):
    def burn(block):
        until = time.thread_time() + 0.01
        while time.thread_time() < until:
            pass
        return block

    pipe = Pipeline.from_parquet(data).batch(1000).map(burn, timeout=PATIENCE)
    with ray_loader(pipe) as loader:
        batches = len(list(loader))
        assert loader.stats().stage("transform").cpu_s >= 0.01 * batches


def test_completion_order_delivers_every_row_once(data):
    with ray_loader(pipeline(data), in_order=False) as loader:
        ids = np.concatenate([batch["id"].numpy() for batch in loader])
    assert np.array_equal(np.sort(ids), np.arange(ROWS))


def test_loaders_on_a_ray_started_here_do_not_take_each_others_processors(data, expected):
    """One to train and one to validate, for instance: the second found no free CPU."""
    one = Budget(cpus=1, memory=BUDGET.memory)
    with ray_loader(pipeline(data)) as train, pipeline(data).loader(budget=one) as validation:
        assert validation.executor == "ray"
        assert [len(loader._fleet.pids()) for loader in (train, validation)] == [2, 1]
        batches = iter(train)
        next(batches)
        assert digest(validation) == expected
        assert len(list(batches)) == len(train) - 1


@pytest.fixture
def of_the_user(monkeypatch):
    """As if the cluster were not one started here."""
    monkeypatch.setattr("intune.pipelines.executors.ray_workers.started_here", lambda connection: False)


@pytest.mark.usefixtures("of_the_user")
def test_a_full_cluster_is_an_error_that_says_so(cluster, data, monkeypatch):
    monkeypatch.setattr("intune.pipelines.executors.ray_workers.ROOM_PATIENCE", 0.5)
    holder = cluster.remote(num_cpus=2)(type("Holder", (), {"ping": lambda self: 1})).remote()
    cluster.get(holder.ping.remote())
    try:
        with pytest.raises(ConfigError, match=r"no free CPU .* give it fewer \(`cpus`"):
            ray_loader(pipeline(data))
    finally:
        cluster.kill(holder)


@pytest.mark.usefixtures("of_the_user")
def test_a_loader_begins_with_the_workers_there_is_room_for(data, expected, monkeypatch, caplog):
    """As where ranks begin together: all find the same processors free, and one is quicker."""
    monkeypatch.setattr("intune.pipelines.executors.ray_workers.ROOM_PATIENCE", 0.1)
    monkeypatch.setattr(RayWorkers, "_size", lambda self, budget: 3)
    with caplog.at_level(logging.WARNING, "intune"), ray_loader(pipeline(data)) as loader:
        assert digest(loader) == expected
        assert 1 <= len(loader._fleet.pids()) <= 2
        assert "of 3 Ray workers" in caplog.text


def test_a_trial_s_loader_has_the_processors_that_were_reserved_for_it(cluster, data):
    """Ray Tune reserves a trial's processors by a placement group: no others may be free."""

    def trial():
        with Pipeline.from_parquet(data).batch(250).loader(executor="ray") as loader:
            free = cluster.available_resources().get("CPU", 0)
            return loader.budget.cpus, free, sum(len(batch["id"]) for batch in loader)

    group = cluster.util.placement_group([{"CPU": 1}, {"CPU": 1}])
    reserved = cluster.util.scheduling_strategies.PlacementGroupSchedulingStrategy(
        group, 0, placement_group_capture_child_tasks=True
    )
    try:
        made = cluster.remote(num_cpus=1, scheduling_strategy=reserved)(trial).remote()
        assert cluster.get(made) == (1, 0, ROWS)
    finally:
        cluster.util.remove_placement_group(group)


def test_every_rank_wants_its_share_of_the_cluster(cluster, data):
    pipe = Pipeline.from_parquet(data).batch(250)
    with pipe.loader(executor="ray", rank=1, world_size=2) as loader:
        assert loader.budget.cpus == 1


@pytest.mark.usefixtures("of_the_user")
def test_a_loader_that_is_closed_or_cannot_be_made_leaves_no_worker(data, monkeypatch):
    monkeypatch.setattr("intune.pipelines.executors.ray_workers.ROOM_PATIENCE", 4.0 * PATIENCE)
    with pytest.raises(ConfigError, match="`budget` allows") as kept:
        Pipeline.from_parquet(data).shuffle(24).batch(20_000).loader(
            executor="ray", budget=Budget(cpus=1, memory=1 << 20)
        )
    loader = ray_loader(pipeline(data))  # while the exception, and so the frame, is still at hand
    assert kept.value is not None
    next(iter(loader))
    pids = loader._fleet.pids()
    assert len(pids) == 2
    loader.close()
    loader.close()
    _gone, alive = psutil.wait_procs(
        [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=PATIENCE
    )
    assert not alive


def test_a_ray_that_was_shut_down_is_an_error_and_none_is_started_for_it(data, expected, monkeypatch):
    monkeypatch.setattr("intune.pipelines.executors.ray.WATCH_S", 0.01)
    with ray_loader(pipeline(data)) as loader:
        with monkeypatch.context() as gone:
            stream = iter(loader)
            next(stream)
            gone.setattr("intune.pipelines.executors.ray_workers.connection", lambda ray: "")
            with pytest.raises(LoaderError, match="Ray was shut down"):
                for _ in stream:
                    pass
            with pytest.raises(LoaderError, match="Ray was shut down"):
                iter(loader)
        assert digest(loader) == expected


@pytest.mark.parametrize("where", [(RayFleet, "start"), (RayWorkers, "brief"), (RayWorkers, "have_one")])
def test_a_loop_that_begins_while_the_loader_is_closed_is_refused(data, monkeypatch, where):
    """By another thread, which finds no loop to close."""
    loader = ray_loader(pipeline(data))
    real = getattr(*where)

    def closed_meanwhile(*arguments):
        closer = threading.Thread(target=loader.close)
        closer.start()
        closer.join(PATIENCE)
        return real(*arguments)

    monkeypatch.setattr(*where, closed_meanwhile)
    raised = []

    def read():
        try:
            raised.append(list(loader))
        except BaseException as error:
            raised.append(error)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(PATIENCE)
    assert [type(error) for error in raised] == [LoaderError]


def test_only_the_last_user_of_the_ray_started_here_ends_it(monkeypatch):
    ended = []

    class FakeRay:
        now = "ours"

        def is_initialized(self):
            return bool(self.now)

        def get_runtime_context(self):
            return self

        def get_node_id(self):
            return self.now

        get_worker_id = get_node_id

        def shutdown(self):
            ended.append(self.now)

    ray = FakeRay()
    ours = ray_cluster.connection(ray)
    monkeypatch.setattr(ray_cluster, "_users", 2)
    monkeypatch.setattr(ray_cluster, "_started", ours)
    ray_cluster.disconnect(ray, "that of a user, before")
    ray_cluster.disconnect(ray, ours)
    assert not ended
    ray.now = "the user's, after ours was shut down"
    ray_cluster.disconnect(ray, ours)
    assert not ended
    monkeypatch.setattr(ray_cluster, "_users", 1)
    monkeypatch.setattr(ray_cluster, "_started", ray_cluster.connection(ray))
    ray_cluster.disconnect(ray, ray_cluster.connection(ray))
    assert ended == [ray.now]


def test_a_program_that_ends_leaves_nothing(data, tmp_path):
    """Interrupted in one loop, and a loader forgotten after another."""
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(
            f"""
            import os, signal
            from intune.pipelines import Budget, Pipeline
            pipe = Pipeline.from_parquet({str(data)!r}).batch(100)
            loader = pipe.loader(executor="ray", budget=Budget(cpus=1, memory=256 << 20))
            print(*loader._fleet.pids(), flush=True)
            try:
                for batch in loader:
                    os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt:
                print(sum(len(batch["id"]) for batch in loader))
            """
        )
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with tempfile.TemporaryDirectory(prefix="r") as folder:  # not pytest's: names of sockets must be short
        # What `ray start` leaves, also where that cluster is gone: no cluster at hand.
        note = Path(folder) / "ray" / "ray_current_cluster"
        note.parent.mkdir()
        note.write_text("192.0.2.1:6379")
        done = subprocess.run(
            [sys.executable, program],
            capture_output=True, text=True, timeout=PATIENCE, env={**clean, "RAY_TMPDIR": folder},
        )  # fmt: skip
    *pids, rows = [int(number) for number in done.stdout.split()]
    assert pids
    assert rows == ROWS
    assert (done.returncode, done.stderr) == (0, "")
    deadline = time.monotonic() + PATIENCE
    while any(psutil.pid_exists(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)  # real processes of another program: nobody to ask when they are gone
    assert not any(psutil.pid_exists(pid) for pid in pids)
