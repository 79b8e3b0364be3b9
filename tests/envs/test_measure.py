"""From two readings of counters to a measurement: every field by hand, and what makes no sense."""

import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intune.envs.measure import measure, widened
from intune.envs.measurement import UNLIMITED, Measurement
from intune.envs.observer import Observer
from intune.envs.resources import ResourceReader, Resources, read_clock, read_traffic
from intune.pipelines import Allocation, Budget, PipelineStats, StageStats
from intune.pipelines.budget import Usable
from intune.pipelines.errors import ConfigError

GB = 1e9


def stage(name: str, **values: Any) -> StageStats:
    return StageStats(name=name, **values)


def stats(stages: tuple[StageStats, ...], **values: Any) -> PipelineStats:
    given: dict[str, Any] = {
        "elapsed_s": 0.0,
        "epoch": 0,
        "batch": 0,
        "batches": 0,
        "rows": 0,
        "step_s": 0.0,
        "wait_s": 0.0,
        "memory_held": 0,
        "memory_peak": 0,
        "memory_limit": 1 << 30,
        "allocation": Allocation.per_stage({each.name: max(each.slots, 1) for each in stages}),
    }
    return PipelineStats(stages=stages, **{**given, **values})


EARLIER = stats((stage("load", slots=4), stage("batch", slots=1)), memory_resident=int(2 * GB))
LATER = stats(
    (
        stage(
            "load",
            slots=4,
            tasks=10,
            rows=640_000,
            bytes_out=64_000_000,
            busy_s=7.5,
            cpu_s=2.0,
            slot_s=10.0,
            starved_s=0.5,
            blocked_s=2.0,
            queue=3,
        ),
        stage("batch", slots=1, tasks=20, rows=600_000, busy_s=0.05, cpu_s=0.05, slot_s=2.5, starved_s=2.45),
    ),
    elapsed_s=2.5,
    rows=600_000,
    batches=75,
    step_s=1.5,
    wait_s=0.5,
    memory_held=19_000_000,
    memory_resident=int(3 * GB),
)
NOW = Resources(cpu_s=10.0, resident=1 * GB, cpus=4.0, memory_limit=8 * GB, clock=0.9, traffic=7.5e9)
BEFORE = Resources(cpu_s=4.0, resident=1 * GB, cpus=4.0, memory_limit=8 * GB, clock=0.9, traffic=2.5e9)


def test_every_field_is_what_its_definition_says() -> None:
    """Worked by hand: 2.5 s, of which the trainer computed 1.5 s and waited 0.5 s."""
    found = measure(
        LATER,
        EARLIER,
        resources=NOW,
        resources_before=BEFORE,
        memory_base=1.5 * GB,
        since_change=12.0,
        slots_per_cpu=2.0,
        memory_bandwidth=1e10,
    )
    assert found.present.tolist() == [[True, True]]
    assert found.slots.tolist() == [[4.0, 1.0]]
    assert found.pool[0] == 0
    assert found.rate[0] == pytest.approx([256_000, 240_000])
    assert found.busy[0] == pytest.approx([3.0, 0.02])
    assert found.cpu[0] == pytest.approx([0.8, 0.02])
    assert found.starved[0] == pytest.approx([0.05, 0.98])
    assert found.blocked[0] == pytest.approx([0.2, 0.0])
    # 100 B a row made by `load`, 64,000 rows a task; `batch` makes none: what it hands on is `load`'s.
    assert found.block_bytes[0] == pytest.approx([6_400_000, 3_000_000])
    assert found.queued_bytes[0] == pytest.approx([19_200_000, 0])
    assert found.queue_fill[0] == pytest.approx([0.75, 0.0])
    assert found.delivered[0] == pytest.approx(240_000)
    assert found.step[0] == pytest.approx(2.5e-6)
    assert found.waiting[0] == pytest.approx(0.25)
    assert found.cpus[0] == 4.0
    assert found.cpus_used[0] == pytest.approx(2.4)  # the process's 6 s, which include the stages' 2.05 s
    assert (found.memory_used[0], found.memory_base[0], found.memory_queued[0]) == (3 * GB, 1.5 * GB, 19e6)
    assert (found.memory_limit[0], found.slot_limit[0]) == (8 * GB, 8.0)
    assert (found.clock[0], found.bandwidth[0]) == pytest.approx((0.9, 0.2))
    assert (found.since_change[0], found.interval[0], found.killed[0]) == (12.0, 2.5, False)
    assert found.sound()[0]


@pytest.mark.parametrize("made", [0.02, 1.0, 10.0])
def test_rows_of_all_stages_are_told_in_those_that_the_trainer_gets(made: float) -> None:
    """A filter drops rows, negative sampling makes many of each: their stages are compared by what they come to."""
    stages = tuple(
        replace(each, rows=int(each.rows * share), queue=0, tasks=100)
        for each, share in zip(LATER.stages, (made, 1.0), strict=True)
    )
    before = tuple(replace(each, rows=int(each.rows * made)) for each in EARLIER.stages)
    found = measure(replace(LATER, stages=stages), replace(EARLIER, stages=before), resources=NOW)
    np.testing.assert_allclose(found.rate[0], [640_000 / 2.5 if made == 1 else 240_000, 240_000], rtol=1e-4)


def test_what_has_been_read_ahead_is_no_sign_of_rows_dropped() -> None:
    """At the beginning more is read than delivered."""
    early = replace(LATER, stages=(replace(LATER.stages[0], tasks=20, rows=1_300_000), LATER.stages[1]))
    assert measure(early, EARLIER, resources=NOW).rate[0, 0] == pytest.approx(520_000)


def test_long_tasks_that_end_together_count_as_they_go() -> None:
    """Eight reads of 65,536 rows share a link that one would have to itself for 0.15 s: all end every 1.2 s."""

    def second(ends: int, *, took: float = 1.2, wait_s: float = 0.9, delivered: float = 1.0) -> Measurement:
        rows = 8 * 65_536 * ends
        before, now = (
            stats(
                (
                    stage(
                        "load",
                        slots=8,
                        tasks=8 * ends * n,
                        rows=rows * n,
                        busy_s=8.0 * n,
                        done_s=8 * took * ends * n,
                    ),
                    stage(
                        "batch", slots=8, tasks=16 * ends * n, rows=rows * n, busy_s=0.01 * n, done_s=0.01 * n
                    ),
                ),
                elapsed_s=float(n),
                rows=int(rows * n * delivered),
                batches=64 * n,
                step_s=(1 - wait_s) * n,
                wait_s=wait_s * n,
            )
            for n in (0, 1)
        )
        return measure(now, before, resources=NOW, resources_before=BEFORE)

    steady = 8 * 65_536 / 1.2
    for ends in (1, 2):
        found = second(ends)
        assert found.rate[0, 0] == pytest.approx(steady)
        assert found.delivered[0] == pytest.approx(steady)
        assert found.sound()[0]
    # A trainer that does not wait for them takes what it takes; where none has ended nothing is known.
    assert second(2, wait_s=0.01).delivered[0] == 2 * 8 * 65_536
    assert second(0).delivered[0] == 0
    # While a window of a shuffle fills, reads end and nothing is delivered.
    filling = second(1, delivered=0.0)
    assert (filling.delivered[0], filling.rate[0, 0]) == (0, pytest.approx(steady))
    # Many short tasks: what has ended tells.
    assert second(20, took=0.05).delivered[0] == pytest.approx(20 * 8 * 65_536)


def test_workers_elsewhere_use_processors_beside_this_process() -> None:
    found = measure(LATER, EARLIER, resources=NOW, resources_before=BEFORE, elsewhere=True)
    assert found.cpus_used[0] == pytest.approx(2.4 + 0.82)
    assert math.isnan(found.memory_base[0])
    assert math.isnan(found.bandwidth[0])


@pytest.mark.parametrize(("wait_s", "name"), [(0.5, "starved"), (0.0, "blocked")])
def test_idle_slots_of_a_pool_wait_for_what_the_trainer_does_not(wait_s: float, name: str) -> None:
    pool = Allocation.shared(8)
    now = replace(LATER, allocation=pool, wait_s=wait_s)
    found = measure(now, replace(EARLIER, allocation=pool), resources=NOW)
    assert found.pool[0] == 8
    idle = 1.0 - 3.02 / 8
    other = "blocked" if name == "starved" else "starved"
    assert getattr(found, name)[0] == pytest.approx([idle, idle])
    assert getattr(found, other)[0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("now", "before"),
    [
        (LATER, LATER),  # no time between
        (EARLIER, LATER),  # backwards
        (replace(LATER, stages=LATER.stages[:1]), EARLIER),  # a stage has vanished
        (replace(LATER, stages=tuple(reversed(LATER.stages))), EARLIER),
        (replace(LATER, rows=0, epoch=1), EARLIER),  # nothing delivered
        (replace(LATER, elapsed_s=math.nan), EARLIER),
        (LATER, replace(EARLIER, rows=700_000)),
        (replace(LATER, stages=(replace(LATER.stages[0], busy_s=-1.0), LATER.stages[1])), EARLIER),
    ],
)
def test_readings_that_cannot_be_compared_make_a_measurement_that_is_not_sound(
    now: PipelineStats, before: PipelineStats
) -> None:
    found = measure(now, before, resources=NOW, resources_before=BEFORE)
    assert not found.sound()[0]
    assert found.stages == len(now.stages)


def test_a_change_of_epoch_is_an_interval_like_any_other() -> None:
    found = measure(replace(LATER, epoch=3, batch=1), EARLIER, resources=NOW, resources_before=BEFORE)
    assert found.sound()[0]


@pytest.mark.parametrize(("left", "used"), [(math.nan, 3 * GB), (1 * GB, 7 * GB), (6 * GB, 3 * GB)])
def test_memory_in_use_is_the_most_that_was_in_between(left: float, used: float) -> None:
    """Of 8 GB so much was left at least: what functions take comes and goes with their calls."""
    found = measure(LATER, EARLIER, resources=NOW, resources_before=BEFORE, memory_left=left)
    assert found.memory_used[0] == used


def test_a_worker_that_dies_of_full_memory_counts_as_out_of_memory_and_another_does_not() -> None:
    lost = replace(LATER, workers_lost=1)
    assert not measure(lost, EARLIER, resources=NOW).killed[0]
    assert measure(replace(lost, memory_resident=int(7.9 * GB)), EARLIER, resources=NOW).killed[0]


@settings(max_examples=60)
@given(
    counts=st.lists(st.floats(-10, 1e9) | st.just(math.nan), min_size=8, max_size=8),
    elapsed=st.floats(-1, 100) | st.just(math.nan),
)
def test_whatever_the_counters_say_nothing_is_raised_and_sound_means_finite(
    counts: list[float], elapsed: float
) -> None:
    a, b, c, d, e, f, g, h = counts
    odd = stage("load", slots=2, tasks=3, rows=5, busy_s=a, cpu_s=b, slot_s=c, starved_s=d, blocked_s=e)
    now = stats((odd,), elapsed_s=elapsed, step_s=f, wait_s=g, rows=10)
    found = measure(now, stats((stage("load", slots=2),)), resources=replace(NOW, cpu_s=h))
    if found.sound()[0]:
        for name in ("rate", "busy", "cpu", "starved", "blocked", "delivered", "cpus_used"):
            assert np.isfinite(getattr(found, name)).all()
            assert (getattr(found, name) >= 0).all()


def test_a_measurement_is_widened_by_absent_stages() -> None:
    found = widened(measure(LATER, EARLIER, resources=NOW), 4)
    assert found.present.tolist() == [[True, True, False, False]]
    assert found.rate[0, 2:].tolist() == [0.0, 0.0]
    assert found.sound()[0]


# ---- what the machine says -----------------------------------------------------------------------------------


def usable(cpus: int) -> Usable:
    return Usable(cpus=cpus, memory=int(16 * GB), memory_left=int(6 * GB))


def test_cpus_follow_the_machine_unless_the_budget_was_less_from_the_beginning() -> None:
    there = [4]
    follows = ResourceReader(Budget(cpus=4, memory=1 << 30), detect=lambda: usable(there[0]))
    limited = ResourceReader(Budget(cpus=2, memory=1 << 30), detect=lambda: usable(there[0]))
    seen = []
    for cpus in (4, 8, 1):
        there[0] = cpus
        seen.append((follows().cpus, limited().cpus))
    assert seen == [(4.0, 2.0), (8.0, 2.0), (1.0, 1.0)]
    read = follows()
    assert read.memory_limit == pytest.approx(read.resident + 6 * GB)
    assert 0 < read.resident < 16 * GB


def test_child_processes_count_unless_they_are_rays() -> None:
    child = subprocess.Popen([sys.executable, "-c", "x = bytearray(1 << 26); print(1, flush=True); input()"],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    try:
        assert child.stdout is not None
        child.stdout.readline()
        budget = Budget(cpus=1, memory=1 << 30)
        with_it = ResourceReader(budget, detect=lambda: usable(1))()
        without = ResourceReader(budget, children=False, detect=lambda: usable(1))()
        assert with_it.resident - without.resident > (1 << 26) * 0.9
        assert with_it.cpu_s > without.cpu_s - 0.01
    finally:
        child.communicate(b"\n")


def test_clock_and_memory_traffic_are_read_where_the_system_tells_them(tmp_path: Path) -> None:
    assert math.isnan(read_clock(tmp_path))
    assert math.isnan(read_traffic(tmp_path))
    for number in range(os.cpu_count() or 1):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{number}/cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_cur_freq").write_text("1800000\n")
        (folder / "cpuinfo_max_freq").write_text("3600000\n")
    for domain, count in (("00", 1000), ("01", 500)):
        counters = tmp_path / f"sys/fs/resctrl/mon_data/mon_L3_{domain}"
        counters.mkdir(parents=True)
        (counters / "mbm_total_bytes").write_text(f"{count}\n")
    assert read_clock(tmp_path) == 0.5
    assert read_traffic(tmp_path) == 1500.0
    (tmp_path / "sys/fs/resctrl/mon_data/mon_L3_00/mbm_total_bytes").write_text("Unavailable\n")
    assert math.isnan(read_traffic(tmp_path))


class Counted:
    """A tunable whose readings are written down beforehand; the last one stays."""

    def __init__(self, *readings: PipelineStats) -> None:
        self.readings = list(readings)
        self.stages = tuple(each.name for each in readings[0].stages)
        self.budget = Budget(cpus=1, memory=1 << 30)

    def stats(self) -> PipelineStats:
        return self.readings.pop(0) if len(self.readings) > 1 else self.readings[0]

    def resize(self, allocation: Any) -> None: ...


def test_an_observer_notices_slots_that_somebody_else_gave() -> None:
    time_now = [0.0]
    other = replace(LATER, allocation=Allocation.shared(2), elapsed_s=5.0)
    observer = Observer(
        Counted(EARLIER, LATER, other), resources=lambda: NOW, clock=lambda: time_now[0], memory_base=5.0
    )
    since = []
    for now in (10.0, 20.0, 30.0):
        time_now[0] = now
        since.append(float(observer.measure().since_change[0]))
    assert since == [10.0, 0.0, 10.0]


def test_an_observer_asks_for_the_least_memory_that_was_left_since_it_looked() -> None:
    class Watching(Counted):
        def least_left(self, seconds: float) -> int | None:
            asked.append(seconds)
            return None if seconds < 5 else int(2 * GB)

    asked: list[float] = []
    now = [0.0]
    later = replace(LATER, elapsed_s=5.0)
    observer = Observer(
        Watching(EARLIER, LATER, later), resources=lambda: NOW, clock=lambda: now[0], memory_base=5.0
    )
    used = []
    for now[0] in (3.0, 10.0):
        used.append(float(observer.measure().memory_used[0]))
    assert asked == [3.0, 7.0]
    assert used == [3 * GB, 6 * GB]


def test_an_observer_knows_how_long_tasks_took_lately() -> None:
    def reading(seconds: float, *stages: StageStats) -> PipelineStats:
        return stats(stages, elapsed_s=seconds)

    observer = Observer(
        Counted(
            reading(0.0, stage("load"), stage("batch")),
            reading(1.0, stage("load", tasks=4, busy_s=3.0, done_s=2.0), stage("batch", tasks=2, busy_s=0.2)),
            reading(2.0, stage("load", tasks=6, busy_s=9.0, done_s=8.0), stage("batch", tasks=2, busy_s=0.2)),
        ),
        resources=lambda: NOW,
        memory_base=1.0,
    )
    assert observer.passage() == 0
    observer.measure()
    assert observer.passage() == pytest.approx(
        0.5 + 0.1
    )  # of one stage only how long it was at them is known
    observer.measure()
    assert observer.passage() == pytest.approx(3.0 + 0.1)  # the other stage ended none


def test_an_observers_base_is_what_is_resident_without_blocks() -> None:
    first = replace(LATER, memory_resident=int(3 * GB), memory_held=int(1 * GB))
    assert Observer(Counted(first), resources=lambda: NOW).memory_base == 2 * GB
    with pytest.raises(ConfigError, match="memory_base"):
        Observer(Counted(first), resources=lambda: NOW, memory_base=math.nan)


def test_memory_without_a_limit_can_be_decided_on() -> None:
    boundless = replace(NOW, memory_limit=math.inf)
    found = measure(LATER, EARLIER, resources=boundless, resources_before=boundless, memory_left=2 * GB)
    assert found.sound()[0]
    assert found.memory_limit[0] == UNLIMITED
    assert found.memory_used[0] == 3 * GB


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (replace(NOW, memory_limit=math.nan), "`memory_limit`=nan; it must give"),
        (replace(NOW, cpus=math.inf), "`cpus`=inf; it must give"),
        (replace(NOW, cpus=cast(float, None)), "`cpus`=None; it must give"),
        (None, "`cpus`=None; it must give intune.envs.resources.Resources"),
    ],
)
def test_resources_that_cannot_be_are_refused_by_name(told: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=f"`resources[(][)]` gave {said}"):
        Observer(Counted(EARLIER), resources=lambda: told)


@pytest.mark.parametrize(
    "names", [("load", "batch", "map"), ("load",), ("batch", "load")], ids=["gained", "lost", "reordered"]
)
def test_stages_that_change_under_way_are_named(names: tuple[str, ...]) -> None:
    other = replace(LATER, stages=tuple(stage(name, slots=1) for name in names))
    observer = Observer(Counted(EARLIER, other), resources=lambda: NOW, memory_base=1.0)
    with pytest.raises(ConfigError, match=rf"{re.escape(str(list(names)))}, but .* \['load', 'batch'\]"):
        observer.measure()
