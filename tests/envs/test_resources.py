"""What others leave of the processors: read from a copy of ``/proc``, and what it makes of a job's own use."""

import math
import os
from pathlib import Path

import pytest

from intune.envs.measure import MOST_CROWDED, _dearer
from intune.envs.resources import Resources, read_delay, read_idle


def test_idle_time_is_that_of_the_processors_a_job_may_run_on(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/stat").write_text(
        "cpu  9 9 9 900 90 0 0 0 0 0\n"
        "cpu0 1 1 1 100 10 0 0 0 0 0\n"
        "cpu1 1 1 1 200 20 0 0 0 0 0\n"
        "cpu12 1 1 1 600 60 0 0 0 0 0\n"
        "intr 5\n"
    )
    tick = os.sysconf("SC_CLK_TCK")
    assert read_idle(tmp_path, lambda: {1, 12}) == pytest.approx(880 / tick)
    assert math.isnan(read_idle(tmp_path, lambda: {7}))
    assert math.isnan(read_idle(tmp_path / "nowhere", lambda: {1}))


@pytest.mark.parametrize(
    ("used", "idle", "factor"),
    [(1.0, 1.0, 1.0), (0.5, 0.5, 2.0), (2.0, 0.0, 1.0), (0.01, 0.0, MOST_CROWDED), (0.0, 0.0, 1.0)],
)
def test_processors_that_others_keep_busy_make_a_jobs_own_time_dearer(
    used: float, idle: float, factor: float
) -> None:
    before = Resources(cpus=2.0, memory_limit=1e9, idle_s=10.0)
    now = Resources(cpus=2.0, memory_limit=1e9, idle_s=10.0 + 4.0 * idle)
    assert _dearer(used, now, before, 0.25) == pytest.approx(factor)


def test_where_idle_time_is_unknown_or_falls_nothing_is_made_of_it() -> None:
    unknown = Resources(cpus=2.0, memory_limit=1e9)
    high = Resources(cpus=2.0, memory_limit=1e9, idle_s=10.0)
    low = Resources(cpus=2.0, memory_limit=1e9, idle_s=5.0)
    assert _dearer(0.5, unknown, high, 1.0) == 1.0
    assert _dearer(0.5, low, high, 1.0) == 1.0  # of fewer processors than before
    assert _dearer(0.5, high, None, 1.0) == 1.0


@pytest.mark.parametrize(
    ("delay", "factor"),
    [(0.0, 1.0), (0.1, 1.2), (0.5, 2.0), (9.0, 4.0), (-3.0, 1.0), (math.nan, 4.0)],
)
def test_others_take_from_a_job_only_what_its_threads_waited_for(delay: float, factor: float) -> None:
    """All is busy, a quarter of it with this job: with others that step back for it, nothing is kept from it."""
    before = Resources(cpus=2.0, memory_limit=1e9, idle_s=10.0, delay_s=5.0)
    now = Resources(cpus=2.0, memory_limit=1e9, idle_s=10.0, delay_s=5.0 + 4.0 * delay)
    assert _dearer(0.5, now, before, 0.25) == pytest.approx(factor)


def test_waits_for_a_processor_are_those_of_all_threads_of_a_process(tmp_path: Path) -> None:
    for thread, text in (("7", "100 2500000000 3"), ("8", "5 500000000 1")):
        (tmp_path / "proc/7/task" / thread).mkdir(parents=True)
        (tmp_path / "proc/7/task" / thread / "schedstat").write_text(text + "\n")
    assert read_delay("7", tmp_path) == pytest.approx(3.0)
    (tmp_path / "proc/7/task/8/schedstat").unlink()
    assert read_delay("7", tmp_path) == pytest.approx(2.5)
    (tmp_path / "proc/7/task/7/schedstat").write_text("\n")
    assert math.isnan(read_delay("7", tmp_path))
    assert math.isnan(read_delay("9", tmp_path))
