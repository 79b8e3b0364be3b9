"""Ray's workers at their end, without Ray."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from intune.pipelines.executors import ray_cluster, ray_workers
from intune.pipelines.executors.ray import RayFleet
from intune.pipelines.executors.ray_records import Worker
from intune.pipelines.executors.ray_workers import RayWorkers


def test_a_second_ctrl_c_leaves_no_cluster_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends the waiting for workers that were killed, and no more."""
    ended: list[str] = []

    def interrupted(pid: int) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(ray_workers, "connection", lambda ray: "here")
    monkeypatch.setattr(ray_workers, "disconnect", lambda ray, used: ended.append(used))
    monkeypatch.setattr("psutil.pid_exists", interrupted)
    killed: list[Any] = []
    here = SimpleNamespace(get_node_id=lambda: "node")
    workers: Any = object.__new__(RayWorkers)
    workers.ray = SimpleNamespace(
        kill=lambda actor, no_restart: killed.append(actor),
        is_initialized=lambda: True,
        get_runtime_context=lambda: here,
    )
    workers.alive = [Worker(number=0, actor="actor", pid=1, node="node")]
    workers.changed = threading.Condition(threading.RLock())
    workers._closed, workers._starting, workers._connection = False, {}, "here"
    with pytest.raises(KeyboardInterrupt):
        workers.close()
    assert killed == ["actor"]
    assert ended == ["here"]


def test_a_loader_may_be_collected_while_another_one_connects() -> None:
    """Python's collector runs in the middle of anything; what it closes must not wait for who called it."""
    done = threading.Event()

    def connecting() -> None:
        with ray_cluster._lock:
            ray_cluster.disconnect(None, "of another")
        done.set()

    threading.Thread(target=connecting, daemon=True).start()
    assert done.wait(10)


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
