"""What follows from a job whose machine changed, and the clock of a thread."""

import math
import threading
import time

import pytest

from benchmarks import elastic, tuning_overhead


def entry(time: float, delivered: float, interval: float = 1.0) -> dict[str, float]:
    return {"time": time, "delivered": delivered, "interval": interval}


def test_a_phase_is_recovered_from_within_itself_alone() -> None:
    decisions = [
        entry(1.0, 50.0),
        entry(2.0, 95.0),
        entry(10.5, 95.0),  # began before the change
        entry(11.5, 30.0),
        entry(12.5, 46.0),
        entry(21.0, 10.0),
    ]
    first, second, third = elastic.recoveries(decisions, [0.0, 10.0, 20.0], [100.0, 50.0, 100.0])
    assert (first["decisions"], first["seconds"]) == (1, 2.0)
    assert (second["decisions"], second["seconds"], second["reached"]) == (1, 2.5, 46.0)
    assert (third["decisions"], third["seconds"]) == (None, None)


def test_a_phase_that_is_never_recovered_from_fails_its_bar() -> None:
    phases = elastic.recoveries([entry(1.0, 10.0)], [0.0], [100.0])
    (bar, rows) = elastic.bars({"cpus": {"phases": phases, "whole_epochs": True}})
    assert bar.measured is not None
    assert math.isinf(bar.measured.median)
    assert not bar.passed
    assert rows.passed


def test_epochs_that_lack_rows_are_noticed() -> None:
    assert elastic.whole({"epoch_rows": [8, 8]}, rows=8)
    assert not elastic.whole({"epoch_rows": [8, 7]}, rows=8)


def test_the_clock_of_another_thread_counts_what_it_computed() -> None:
    done, end = threading.Event(), threading.Event()

    def work() -> None:
        until = time.thread_time() + 0.05
        while time.thread_time() < until:
            pass
        done.set()
        end.wait()

    thread = threading.Thread(target=work)
    thread.start()
    assert done.wait(20)
    assert thread.native_id is not None
    spent = tuning_overhead.thread_cpu_s(thread.native_id)
    end.set()
    thread.join()
    assert 0.05 <= spent < 0.2
    (bar,) = tuning_overhead.bars({"thread": {"dqn": {"share": 0.004}}})
    assert bar.measured is not None
    assert bar.measured.median == pytest.approx(0.4)
    assert bar.passed
