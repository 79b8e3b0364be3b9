"""Who is woken for work, and what threads without work give back."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from intune.pipelines.executors.crew import Crew
from intune.pipelines.idle import PATIENCE, LastFirst, Rest
from intune.pipelines.run import Run


def waiters(
    condition: LastFirst, lock: threading.Lock, count: int
) -> tuple[list[int], list[threading.Thread]]:
    """Threads that wait, one after another; the list is of those woken."""
    woken: list[int] = []
    threads = []
    for number in range(count):
        there = threading.Event()

        def wait(number: int = number, there: threading.Event = there) -> None:
            with lock:
                there.set()
                condition.wait()
                woken.append(number)

        threads.append(threading.Thread(target=wait))
        threads[-1].start()
        there.wait()
        with lock:
            pass  # it has let go of the lock: it waits
    return woken, threads


def test_the_thread_that_began_to_wait_last_is_woken_first() -> None:
    lock = threading.Lock()
    condition = LastFirst(lock)
    woken, threads = waiters(condition, lock, 3)
    for left in (2, 1, 0):
        with lock:
            condition.notify()
        threads[left].join(60)
    assert woken == [2, 1, 0]


def test_all_are_woken() -> None:
    lock = threading.Lock()
    condition = LastFirst(lock)
    woken, threads = waiters(condition, lock, 3)
    with lock:
        condition.notify_all()
        condition.notify_all()  # nobody is left: nothing happens
    for thread in threads:
        thread.join(60)
    assert sorted(woken) == [0, 1, 2]


def test_a_wait_ends_when_its_time_is_over_and_is_forgotten() -> None:
    lock = threading.Lock()
    condition = LastFirst(lock)
    with lock:
        assert not condition.wait(0.0)
        condition.notify()  # there is nobody whom it could be meant for
        assert not condition.wait(0.0)


def test_rest_gives_back_ever_more_rarely_and_begins_anew_after_work() -> None:
    given: list[float | None] = []
    rest = Rest(lambda: given.append(rest.patience))
    seen = []
    while (patience := rest.patience) is not None:
        seen.append(patience)
        rest.pause()
    assert tuple(seen) == PATIENCE
    assert len(given) == len(PATIENCE)
    rest.work()
    assert rest.patience == PATIENCE[0]


def test_where_all_rest_memory_is_kept_to_the_last() -> None:
    given: list[int] = []
    rest = Rest(lambda: given.append(1))
    for _ in PATIENCE[1:]:
        rest.pause(spare=False)
        assert not given
    rest.pause(spare=False)
    assert given == [1]
    assert rest.patience is None


def test_a_thread_is_spare_once_others_have_worked_meanwhile_and_not_while_all_rest() -> None:
    work = SimpleNamespace(plan=SimpleNamespace(levels=[None]))
    task = SimpleNamespace(inputs=(), key=(0, 0))

    class Scheduler:
        next_due: float | None = None
        short_of_memory = False
        offered: ClassVar[list[Any]] = []

        def take(self, now: float) -> Any:
            return self.offered.pop() if self.offered else None

    scheduler = Scheduler()
    run = Run(work, scheduler, retries=0, max_skipped=0, on_skip=print)  # type: ignore[arg-type]
    told: list[bool] = []

    class Told(Rest):
        def pause(self, spare: bool = True) -> None:
            super().pause(spare)
            told.append(spare)
            if len(told) == 1:
                scheduler.offered.append(task)
                assert run.take() is not None  # another thread's work
            else:
                run.closed = True

    assert run.take(Told(lambda: None)) is None
    assert told == [False, True]


def test_short_waits_add_up_to_one_rest_and_work_ends_them() -> None:
    given: list[int] = []
    rest = Rest(lambda: given.append(1))
    assert not rest.waited(0.6 * PATIENCE[0])
    rest.work()
    assert not rest.waited(0.6 * PATIENCE[0])
    assert rest.patience == pytest.approx(0.4 * PATIENCE[0])
    assert rest.waited(0.5 * PATIENCE[0])
    rest.pause()
    assert given == [1]
    assert rest.patience == PATIENCE[1]


def test_a_crew_has_no_more_threads_than_calls_at_once_and_raises_what_they_raise() -> None:
    crew = Crew(2, "test-crew")
    names = {crew.call(lambda: threading.current_thread().name) for _ in range(20)}
    assert names == {"test-crew-1"}
    with pytest.raises(ZeroDivisionError):
        crew.call(lambda: 1 // 0)

    meeting = threading.Barrier(2)
    helper = threading.Thread(target=crew.call, args=(meeting.wait, 5))
    helper.start()
    crew.call(meeting.wait, 5)  # only if both run at once
    helper.join(60)


def test_where_the_system_allows_a_crew_no_more_threads_those_there_are_do_the_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start, allowed = threading.Thread.start, {"test-crew-1"}

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith("test-crew") and thread.name not in allowed:
            refused.set()
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    crew = Crew(2, "test-crew")
    begun, refused, go = threading.Event(), threading.Event(), threading.Event()

    def long() -> None:
        begun.set()
        go.wait(60)

    busy = threading.Thread(target=crew.call, args=(long,))
    busy.start()
    assert begun.wait(60)
    other: Future[int] = Future()
    waiting = threading.Thread(target=lambda: other.set_result(crew.call(int, "7")))
    waiting.start()
    assert refused.wait(60)
    go.set()
    assert other.result(30) == 7
    busy.join(60)
    waiting.join(60)
    allowed.clear()
    with pytest.raises(RuntimeError, match="can't start new thread"):
        Crew(2, "test-crew").call(int)


def test_threads_that_are_left_without_work_give_their_memory_back(tmp_path: Path) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("reads /proc")
    script = tmp_path / "script.py"
    script.write_text(
        """
import threading
import time

import pyarrow as pa

from intune.pipelines.executors.crew import Crew
from intune.pipelines.memory import resident_bytes

meeting = threading.Barrier(4)


def work():
    blocks = [pa.allocate_buffer(1 << 20, resizable=False) for _ in range(48)]
    for block in blocks:
        memoryview(block).cast("B")[:] = bytes(1 << 20)
    meeting.wait()  # all four threads hold 48 MiB now


crew = Crew(4, "crew")
before = resident_bytes()
callers = [threading.Thread(target=crew.call, args=(work,)) for _ in range(4)]
for caller in callers:
    caller.start()
for caller in callers:
    caller.join()
deadline = time.monotonic() + 60
while resident_bytes() - before > 48 << 20 and time.monotonic() < deadline:
    crew.call(time.sleep, 0.02)  # one of them goes on working
print((resident_bytes() - before) >> 20)
"""
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=150, check=True
    )
    assert int(done.stdout) <= 48


def test_a_thread_that_is_to_look_again_soon_rests_all_the_same() -> None:
    """As where the system has no memory for a task: looks every 50 ms must not keep idle threads from giving back."""

    class Soon:
        next_due = 0.0
        short_of_memory = True

        def take(self, now: float) -> None:
            self.next_due = now + 0.01

    work = SimpleNamespace(plan=SimpleNamespace(levels=[None]))
    run = Run(work, Soon(), retries=0, max_skipped=0, on_skip=print)  # type: ignore[arg-type]
    rested = threading.Event()
    thread = threading.Thread(target=run.take, args=(Rest(rested.set),))
    thread.start()
    found = rested.wait(60)
    run.closed = True
    thread.join(60)
    assert found
    assert not thread.is_alive()
