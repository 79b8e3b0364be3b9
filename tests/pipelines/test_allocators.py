"""Freed memory that goes back to the system, seen by the system itself, in a process of its own."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys

import pytest

from intune.pipelines import allocators
from intune.pipelines.allocators import chosen_by_user, keep_between_tasks

CHILD = """
import json, threading
import numpy as np
from intune.pipelines.allocators import give_back, keep_freed_memory
from intune.pipelines.memory import resident_bytes
sizes = []
def work():
    for _ in range(3):  # from the second time on the C library does not map them apart
        piece = np.ones(1_000_000)
        del piece
    piece = np.ones(1_000_000)
    filled.wait()
    del piece
    told.wait()
    give_back()
    done.wait()
for _ in range(2):
    filled, told, done = threading.Barrier(9), threading.Barrier(9), threading.Barrier(9)
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads: thread.start()
    filled.wait(); full = resident_bytes()
    told.wait(); done.wait(); sizes.append((full, resident_bytes()))
    for thread in threads: thread.join()
    keep_freed_memory()
print(json.dumps(sizes))
"""


def said(script: str) -> str:
    """What a process of its own prints, in which nobody chose the C library's thresholds."""
    # Tools that look for defects set these.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=150, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the calls are glibc's")
def test_what_threads_freed_goes_back_to_the_system_kept_on_purpose_or_not() -> None:
    for full, after in json.loads(said(CHILD)):
        assert full - after > 0.8 * 8 * 8_000_000


@pytest.mark.parametrize(
    ("environment", "chosen"),
    [
        ({}, False),
        ({"MALLOC_TRIM_THRESHOLD_": "131072"}, True),
        ({"MALLOC_MMAP_THRESHOLD_": "1"}, True),
        ({"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}, False),
        ({"GLIBC_TUNABLES": "glibc.malloc.arena_max=2:glibc.malloc.trim_threshold=64"}, True),
        ({"MALLOC_ARENA_MAX": "2"}, False),
    ],
)
def test_thresholds_that_somebody_chose_stay(environment: dict[str, str], chosen: bool) -> None:
    assert chosen_by_user(environment) is chosen


FAULTS = """
import ctypes, resource, threading
import numpy as np
from intune.pipelines import allocators
allocators._set_thresholds(ctypes.CDLL(None), 1 << 20, 1 << 19)  # where large pieces have not been freed yet
def work():
    for round in range(8):
        if round == 4:
            before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        columns = [np.ones(200_000) for _ in range(20)]  # 32 MB
        del columns
    print(resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before)
for _ in range(2):
    thread = threading.Thread(target=work)
    thread.start(); thread.join()
    allocators.keep_between_tasks(8 << 30, 2)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the calls are glibc's")
def test_a_thread_keeps_what_its_task_freed_for_the_next_one() -> None:
    before, keeping = map(int, said(FAULTS).split())
    assert 5 * keeping < before  # not how many: a system may map large pages in


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What is asked of the C library."""
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(allocators, "_set_thresholds", lambda library, *thresholds: asked.append(thresholds))
    monkeypatch.setattr(allocators, "_thresholds", (0, 0))
    monkeypatch.setattr(allocators, "_kept", 0)
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    return asked


def test_what_threads_keep_is_a_share_of_the_pipelines_memory(
    kept: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    mib = 1 << 20
    keep_between_tasks(100 * mib, 2)
    keep_between_tasks(800 * mib, 2)
    keep_between_tasks(4000 * mib, 2)
    keep_between_tasks(1 << 40, 2)
    keep_between_tasks(800 * mib, 2)  # another loader has more
    assert kept == [
        (4 * mib, 4 * mib),  # by its own rule glibc would keep up to 64 MiB for every thread
        (20 * mib, 20 * mib),
        (100 * mib, 64 * mib),
        (256 * mib, 64 * mib),
        (256 * mib, 64 * mib),
    ]
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    keep_between_tasks(1 << 40, 2)
    assert len(kept) == 5


def test_a_c_library_that_refuses_a_high_threshold_gets_the_highest_that_it_takes() -> None:
    class Library:
        def __init__(self) -> None:
            self.set: list[tuple[int, int]] = []

        def mallopt(self, what: int, value: int) -> int:
            if what == allocators.MMAP_THRESHOLD and value > 32 << 20:
                return 0
            self.set.append((what, value))
            return 1

    library = Library()
    allocators._set_thresholds(library, 256 << 20, 64 << 20)
    assert library.set == [
        (allocators.MMAP_THRESHOLD, 32 << 20),
        (allocators.TRIM_THRESHOLD, 256 << 20),
    ]


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of a fork beside threads
def test_a_fork_while_another_thread_gives_memory_back_can_do_so_too() -> None:
    with allocators._lock:
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            allocators.give_back()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
