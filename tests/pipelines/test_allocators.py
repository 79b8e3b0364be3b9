"""Freed memory that goes back to the system, seen by the system itself, in a process of its own."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import pytest

from intune.pipelines.allocators import chosen_by_user

CHILD = """
import json, threading
import numpy as np
from intune.pipelines.allocators import give_back, keep_freed_memory
from intune.pipelines.memory import resident_bytes
KEEP
sizes, threads = [], []
filled, told, done = threading.Barrier(9), threading.Barrier(9), threading.Barrier(9)
def work():
    for _ in range(3):  # from the second time on the C library does not map them apart
        piece = np.ones(3_000_000)
        del piece
    piece = np.ones(3_000_000)
    filled.wait()
    del piece
    told.wait()
    give_back()
    done.wait()
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads: thread.start()
filled.wait(); sizes.append(resident_bytes())
told.wait(); done.wait(); sizes.append(resident_bytes())
for thread in threads: thread.join()
print(json.dumps(sizes))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the calls are glibc's")
@pytest.mark.parametrize("keep", ["", "keep_freed_memory()"])
def test_what_threads_freed_goes_back_to_the_system(keep: str) -> None:
    # Tools that look for defects set these.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", CHILD.replace("KEEP", keep)],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    full, after = json.loads(done.stdout)
    assert full - after > 0.8 * 8 * 24_000_000


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
