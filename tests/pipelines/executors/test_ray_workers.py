"""Ray's workers at their end, without Ray."""

from __future__ import annotations

import os
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from intune.pipelines.budget import Budget
from intune.pipelines.errors import ConfigError
from intune.pipelines.executors import choice, ray_cluster, ray_workers
from intune.pipelines.executors.ray import RayFleet
from intune.pipelines.executors.ray_records import Worker
from intune.pipelines.executors.ray_workers import RayWorkers


class Cluster:
    """What is left of Ray where nothing is asked of it but to end."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ended: list[str] = []
        self.killed: list[Any] = []
        monkeypatch.setattr(ray_workers, "connection", lambda ray: "here")
        monkeypatch.setattr(ray_workers, "disconnect", lambda ray, used: self.ended.append(used))
        here = SimpleNamespace(get_node_id=lambda: "node")
        self.workers: Any = object.__new__(RayWorkers)
        self.workers.ray = SimpleNamespace(
            kill=lambda actor, no_restart: self.killed.append(actor),
            is_initialized=lambda: True,
            get_runtime_context=lambda: here,
            util=SimpleNamespace(
                client=SimpleNamespace(ray=SimpleNamespace(is_connected=lambda: self.is_client))
            ),
        )
        self.is_client = False
        self.workers.alive = []
        self.workers.changed = threading.Condition(threading.RLock())
        self.workers._closed, self.workers._starting, self.workers._connection = False, {}, "here"


def test_a_second_ctrl_c_leaves_no_cluster_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends the waiting for workers that were killed, and no more."""

    def interrupted(pid: int) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr("psutil.pid_exists", interrupted)
    cluster = Cluster(monkeypatch)
    cluster.workers.alive = [Worker(number=0, actor="actor", pid=1, node="node")]
    with pytest.raises(KeyboardInterrupt):
        cluster.workers.close()
    assert cluster.killed == ["actor"]
    assert cluster.ended == ["here"]


def test_a_client_does_not_take_processes_of_its_own_machine_for_workers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those of the node it is connected to have numbers that other processes have here."""
    cluster = Cluster(monkeypatch)
    cluster.workers.alive = [Worker(number=0, actor="actor", pid=1, node="node")]
    assert cluster.workers.pids() == [1]
    cluster.is_client = True
    assert cluster.workers.pids() == []
    cluster.workers.close()  # waits for no process with such a number to end


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_does_not_wait_for_the_ray_of_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    """What serves the connection are threads, which a fork has not: nothing it asks is ever answered."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: True))
    assert choice.choose("auto") == "ray"
    child = os.fork()
    if child == 0:
        code = 1
        try:
            assert choice.choose("auto") == "threads"
            assert choice.budget_for("threads").cpus >= 1
            assert Budget.detect().cpus >= 1
            with pytest.raises(ConfigError, match="fork of a process that is connected to Ray; start"):
                RayWorkers(Budget.detect(), None, lambda error: None)  # type: ignore[arg-type]
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert choice.choose("auto") == "ray"


def test_they_may_be_closed_just_when_one_is_to_be_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = Cluster(monkeypatch).workers
    workers._connection = "gone"  # whichever comes first, nothing is asked of Ray
    raised: list[BaseException] = []

    def close() -> None:
        try:
            workers.close()
        except BaseException as error:
            raised.append(error)

    closer = threading.Thread(target=close)
    start = threading.Thread.start

    def begin(thread: threading.Thread) -> None:
        if thread is not closer:
            closer.start()
            closer.join(0.2)  # it comes as far as it can
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", begin)
    workers.replace()
    closer.join(60)
    assert not raised
    assert not workers._starting


def test_a_loader_may_be_collected_while_another_one_connects() -> None:
    """Python's collector runs in the middle of anything; what it closes must not wait for who called it."""
    done = threading.Event()

    def connecting() -> None:
        with ray_cluster._lock:
            ray_cluster.disconnect(None, "of another")
        done.set()

    threading.Thread(target=connecting, daemon=True).start()
    assert done.wait(60)


def test_a_late_output_of_an_epoch_that_was_left_is_not_taken_for_the_next_ones() -> None:
    """Both have tasks of the same names."""
    fleet: Any = object.__new__(RayFleet)
    fleet._changed = threading.Condition(threading.RLock())
    fleet._run, fleet._outputs = SimpleNamespace(), {(0, 1): "of the next epoch"}
    worker = Worker(number=0, actor=None)
    finished: list[Any] = []
    left: Any = SimpleNamespace(finished=lambda *told, **_: finished.append(told))
    task: Any = SimpleNamespace(key=(0, 1), attempt=1)
    fleet._keep(left, task, worker, SimpleNamespace(roots={}, skipped=[], cpu_s={}))
    assert fleet._outputs == {(0, 1): "of the next epoch"}
    assert not worker.held
    assert not finished


def test_all_workers_load_the_job_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a function imports may take seconds in every one of them."""
    workers, said = Cluster(monkeypatch).workers, []

    class Gone(Exception):
        pass

    def get(call: int) -> None:
        said.append(f"waited for {call}")
        if call == 1:
            raise Gone

    workers.ray.get, workers.ray.put = get, lambda what: what
    workers.ray.exceptions = SimpleNamespace(RayActorError=Gone, RayTaskError=ZeroDivisionError)
    workers.generation, workers._told = 0, None

    def actor(number: int) -> Any:
        def begin(*told: Any) -> int:
            said.append(f"told {number}")
            return number

        return SimpleNamespace(begin=SimpleNamespace(remote=begin))

    members = [Worker(number=number, actor=actor(number)) for number in range(3)]
    workers.take_up(b"job", b"functions")
    assert workers.brief(members) == [members[1]]
    assert said == [f"told {n}" for n in range(3)] + [f"waited for {n}" for n in range(3)]


def test_functions_go_to_ray_once_while_they_stay_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    workers, put = Cluster(monkeypatch).workers, []
    workers.ray.put = put.append
    workers.generation, workers._told = 0, None
    for functions in (b"one", b"one", b"other"):
        workers.take_up(b"job", functions)
    assert put == [b"one", b"job", b"job", b"other", b"job"]


def test_a_cluster_that_scales_from_nothing_is_asked_for_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its autoscaler starts none for those who ask for nothing: the job ended, since no CPU was free."""
    workers = Cluster(monkeypatch).workers
    workers._books = True
    workers.ray.cluster_resources = lambda: {"memory": 1e9}
    assert workers._size(Budget(cpus=3, memory=1 << 30)) == 3


def test_it_is_said_once_what_functions_may_wait_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One that starts a task and waits for it, where the loader holds all CPUs, hung without a word."""
    workers = Cluster(monkeypatch).workers
    workers._books, workers._group = True, None
    free = {"CPU": 1.0}
    workers.ray.available_resources = lambda: free
    workers.alive = [Worker(number=0, actor=None)]
    fleet: Any = object.__new__(RayFleet)
    fleet._workers, fleet._changed, fleet._heard, now = workers, workers.changed, 0.0, [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def said(at: float) -> int:
        now[0], looks = at, iter([False, False, True])
        fleet._closed = SimpleNamespace(wait=lambda seconds: next(looks))
        caplog.clear()
        fleet._watch()
        return len(caplog.records)

    assert said(99.0) == 0  # nothing runs
    workers.alive[0].running[0, 0] = None
    assert said(99.0) == 0  # there is room for what it waits for
    free.clear()
    assert said(59.0) == 0
    assert said(61.0) == 1


@pytest.mark.parametrize(("comes", "looks"), [(1, 1), (3, 3), (99, 10)])
def test_a_node_may_take_minutes_to_start_the_first_worker(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, comes: int, looks: int
) -> None:
    """It boots, or installs what `runtime_env` names: the job ended after a minute, and the next try found it done."""
    workers, looked = Cluster(monkeypatch).workers, []

    def wait(calls: list[str], timeout: float) -> tuple[list[str], list[str]]:
        looked.append(timeout)
        return (calls[:1], calls[1:]) if len(looked) == comes else ([], calls)

    workers.ray.wait = wait
    came, late = workers._await_first(["a", "b"])
    assert (came, late) == ((["a"], ["b"]) if comes < 99 else ([], ["a", "b"]))
    assert sum(looked) == looks * ray_workers.NOTICE_S <= ray_workers.START_PATIENCE
    assert len(caplog.records) == looks - 1
