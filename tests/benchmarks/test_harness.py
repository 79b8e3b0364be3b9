"""Fresh processes: what comes back, what a failure says, and how memory is counted."""

import mmap
import os
import signal
import subprocess
import sys
from typing import Any

import psutil
import pytest

from benchmarks import harness, memory


def python(program: str) -> list[str]:
    return [sys.executable, "-c", program]


def test_the_last_line_comes_back_with_peak_memory() -> None:
    found = harness.run_command(python("print('noise'); print('warm'); print('{\"rows\": 7}')"), name="small")
    assert found["rows"] == 7
    assert found["peak_is_pss"] or found["peak_bytes"] == 0  # gone before it could be looked at


def test_the_peak_stays_when_memory_is_given_back() -> None:
    size = 64 * 2**20
    program = f"kept = b'x' * {size}; print(1, flush=True); input(); del kept; print(2, flush=True); input()"
    with subprocess.Popen(python(program), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        sampler = memory.PeakSampler(process.pid)
        process.stdout.readline()
        sampler.look()
        held = sampler.peak
        process.stdin.write(b"\n")
        process.stdin.flush()
        process.stdout.readline()
        sampler.look()
        freed, _ = memory.tree_bytes(memory.tree(process.pid))
        process.stdin.write(b"\n")
        process.stdin.close()
    assert held > size
    assert freed < held - size / 2
    assert sampler.peak == held


def test_a_failure_names_the_contender_and_shows_what_it_said() -> None:
    with pytest.raises(
        harness.ContenderFailed, match=r"(?s)rival ended with status 1.*ValueError: no such file"
    ):
        harness.run_command(python("raise ValueError('no such file')"), name="rival")


def test_one_that_hangs_is_ended_with_its_children() -> None:
    program = (
        "import subprocess, sys, time; child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    with pytest.raises(harness.ContenderFailed, match="limit 1 s") as caught:
        harness.run_command(python(program), name="sleeper", timeout=1.0)
    child = int(str(caught.value).splitlines()[1])
    assert memory.process_bytes(child)[0] == 0


def test_rounds_go_on_without_a_contender_that_failed() -> None:
    def fail() -> dict[str, Any]:
        raise harness.ContenderFailed("gone")

    results, failures = harness.interleave(
        {"good": lambda: {"rows": 1}, "bad": fail}, rounds=3, seed=0, progress=lambda _: None
    )
    assert [run["rows"] for run in results["good"]] == [1, 1, 1]
    assert failures == {"bad": "gone"}
    assert "bad" not in results


def test_pages_shared_by_two_processes_count_once() -> None:
    size = 64 * 2**20
    with mmap.mmap(-1, size) as shared:
        shared.write(b"x" * size)
        before, _ = memory.tree_bytes([os.getpid()])
        child = os.fork()
        if child == 0:
            for page in range(0, size, mmap.PAGESIZE):
                shared[page]
            os.kill(os.getpid(), signal.SIGSTOP)  # so that its pages stay mapped while they are counted
            os._exit(0)
        try:
            os.waitpid(child, os.WUNTRACED)
            both, exact = memory.tree_bytes([os.getpid(), child])
            resident = psutil.Process(child).memory_info().rss
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    assert exact
    assert resident > size  # the child holds the pages too, and they are
    assert both - before < size / 2  # not counted a second time


def test_the_tree_holds_children_and_is_empty_once_ended() -> None:
    process = subprocess.Popen(python("input()"), stdin=subprocess.PIPE)
    try:
        assert process.pid in memory.tree(os.getpid())
    finally:
        process.communicate(b"\n")
    assert memory.tree(process.pid) == []
    assert memory.process_bytes(process.pid) == (0, True)
