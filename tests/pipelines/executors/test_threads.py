"""Worker threads: a read that nobody wants any more ends between two parts of its row groups."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from intune.pipelines import Budget, Pipeline, idle
from intune.pipelines.executors.processes import ProcessPool
from intune.pipelines.executors.threads import ThreadFleet
from intune.pipelines.run import Run

GROUPS = 3000
"""Row groups of two rows that are one task: far more parts than one call may read."""


class Watched:
    """Arrow's file, which says how many row groups are read, and waits before going on to the second part."""

    def __init__(self, inner: Any, read: list[int], begun: threading.Event, go: threading.Event) -> None:
        self._inner, self._read, self._begun, self._go = inner, read, begun, go

    def read_row_groups(self, groups: list[int], **options: Any) -> Any:
        self._read.append(len(groups))
        self._begun.set()
        assert self._go.wait(60)
        return self._inner.read_row_groups(groups, **options)


@pytest.mark.parametrize("leave", ["close", "break"])
def test_a_block_of_very_many_row_groups_is_given_up_when_nobody_wants_it(
    leave: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, a loader took 5 s to close and warned of user code where there was none: a worker was in one such call."""
    pq.write_table(
        pa.table({"x": np.arange(2 * GROUPS), "y": np.arange(2 * GROUPS)}),
        tmp_path / "x.parquet",
        row_group_size=2,
    )
    read: list[int] = []
    begun, go = threading.Event(), threading.Event()
    real = pq.ParquetFile
    loader = (
        Pipeline.from_parquet(str(tmp_path))
        .batch(64)
        .loader(executor="threads", budget=Budget(cpus=1, memory=64 << 20))
    )
    monkeypatch.setattr(
        "intune.pipelines.reading.reader.pq.ParquetFile",
        lambda *a, **k: Watched(real(*a, **k), read, begun, go),
    )
    batches = iter(loader)
    assert begun.wait(60)
    if leave == "break":
        del batches
        go.set()
        monkeypatch.undo()
        assert sum(len(batch["x"]) for batch in loader) == 2 * GROUPS  # a later loop gets all
    else:
        threading.Timer(0.05, go.set).start()  # while the loader waits for its worker
    with caplog.at_level(logging.WARNING, "intune"):
        loader.close()
    assert not caplog.records
    assert sum(read) < GROUPS, f"all of {GROUPS} row groups were read for nobody"


@pytest.mark.parametrize("allowed", [0, 3])
def test_where_the_system_allows_no_more_threads_those_there_are_do_the_work(
    allowed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pq.write_table(pa.table({"x": np.arange(10)}), tmp_path / "x.parquet")
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == f"intune-worker-{allowed}":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    pipeline = Pipeline.from_parquet(str(tmp_path)).batch(5)
    budget = Budget(cpus=1, memory=64 << 20)
    with pipeline.loader(executor="threads", budget=budget, allocation={"load": 8}) as loader:
        if allowed:
            assert [batch["x"].tolist() for batch in loader] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
            loader.resize({"load": 9})  # as a tuner does now and then, for days
            said = "no further thread can be started (can't start new thread); going on with 3"
            assert caplog.messages == [said]
        else:
            with pytest.raises(RuntimeError, match="can't start new thread"):
                iter(loader)


@pytest.mark.parametrize("timeout", [None, 30.0])
def test_the_processor_time_of_functions_is_their_stages(tmp_path: Path, timeout: float | None) -> None:
    def burn(block: dict[str, Any]) -> dict[str, Any]:
        until = time.thread_time() + 0.01
        while time.thread_time() < until:
            pass
        return block

    pq.write_table(pa.table({"x": np.arange(10)}), tmp_path / "x.parquet")
    pipeline = Pipeline.from_parquet(str(tmp_path)).batch(2).map(burn, timeout=timeout)
    with pipeline.loader(executor="threads", budget=Budget(cpus=1, memory=64 << 20)) as loader:
        assert len(list(loader)) == 5
        assert loader.stats().stage("transform").cpu_s >= 0.05


@pytest.mark.parametrize("where", [(ThreadFleet, "resize"), (ThreadFleet, "stop"), (Run, "close")])
def test_an_interrupt_while_a_loop_begins_or_is_left_keeps_no_thread_from_the_next_loop(
    where: tuple[type, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, the threads waited at the loop that nobody had closed, and the next one waited for them for ever."""
    pq.write_table(pa.table({"x": np.arange(1000)}), tmp_path / "x.parquet", row_group_size=10)
    at_work = threading.Event()
    real = getattr(*where)

    def function(block: dict[str, Any]) -> dict[str, Any]:
        at_work.set()
        return block

    def interrupt(*arguments: Any) -> None:
        monkeypatch.undo()
        if real is ThreadFleet.resize:
            real(*arguments)
        assert at_work.wait(60)
        raise KeyboardInterrupt

    pipeline = Pipeline.from_parquet(str(tmp_path)).batch(10).map(function)
    with pipeline.loader(executor="threads", budget=Budget(cpus=1, memory=64 << 20)) as loader:
        batches = None if real is ThreadFleet.resize else iter(loader)
        monkeypatch.setattr(*where, interrupt)
        with pytest.raises(
            KeyboardInterrupt
        ) as kept:  # keeps the loop alive, as a notebook's last traceback does
            batches = iter(loader)
        found: list[int] = []
        reader = threading.Thread(
            target=lambda: found.extend(int(batch["x"][0]) for batch in loader), daemon=True
        )
        reader.start()
        reader.join(60)
        assert found == list(range(0, 1000, 10))
        assert loader.stats().memory_held == 0
        del kept, batches


def test_threads_without_work_have_memory_given_back_that_is_kept_for_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(pa.table({"x": np.arange(10)}), tmp_path / "x.parquet")
    given = threading.Event()
    monkeypatch.setattr(idle, "PATIENCE", (0.001,) * 3)
    monkeypatch.setattr(ProcessPool, "give_back_memory", lambda pool: given.set())
    pipeline = Pipeline.from_parquet(str(tmp_path)).batch(5).map(dict, workers="process")
    with pipeline.loader(executor="threads", budget=Budget(cpus=1, memory=64 << 20)) as loader:
        assert sum(1 for _ in loader) == 2
        assert given.wait(60)
