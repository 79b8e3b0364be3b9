"""What others leave of the processors: read from a copy of ``/proc``, and what it makes of a job's own use."""

import math
import os
from pathlib import Path

import pytest

from intune.envs.measure import MOST_CROWDED, _dearer
from intune.envs.resources import Resources, read_idle


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
