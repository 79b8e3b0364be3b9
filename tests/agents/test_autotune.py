from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from intune.agents.autotune import Autotune
from intune.agents.autotune_adaptive import AutotuneAdaptive
from intune.envs.measurement import Measurement
from intune.pipelines.errors import ConfigError

Measured = Callable[..., Measurement]


def started(agent: Autotune, jobs: int = 1, stages: int = 3) -> Autotune:
    agent.start(jobs, stages)
    return agent


def rounds(agent: Autotune, measured: Measurement, count: int) -> list[int]:
    """Numbers of the intervals, from 1, at whose end a round was made."""
    return [i for i in range(1, count + 1) if not agent.propose(measured).explain(0).startswith("keep")]


def test_rounds_fall_due_as_tensorflows_do(measurement: Measured) -> None:
    # At 0.02, 0.06, 0.14 … 5.1, 10.22, 20.46, 40.94, 81.9, 141.9, 201.9 s.
    assert rounds(started(Autotune()), measurement(interval=5.0), 41) == [1, 2, 3, 5, 9, 17, 29, 41]


def test_it_says_when_the_next_round_is_due(measurement: Measured) -> None:
    """At 5.1 and 10.22 s: from the ends of intervals of 5 s that is not a whole period."""
    agent = started(Autotune())
    said = [agent.propose(measurement(interval=5.0)).explain(0) for _ in range(4)]
    assert [each.rpartition("is due in ")[2] for each in said] == ["0.1 s", "0.22 s", "5.46 s", "0.46 s"]


def test_the_clock_is_exact_at_the_scale_of_milliseconds(measurement: Measured) -> None:
    assert rounds(started(Autotune()), measurement(interval=0.01), 31) == [1, 2, 6, 14, 30]


def test_every_stage_gets_as_many_workers_as_cpus_by_default(measurement: Measured) -> None:
    proposal = started(Autotune()).propose(measurement(cpus=12))
    np.testing.assert_array_equal(proposal.slots, [[12, 12, 12]])
    assert "12 CPUs" in proposal.explain(0)


def test_budgets_are_those_of_the_start(measurement: Measured) -> None:
    agent = started(Autotune())
    agent.propose(measurement(cpus=12))
    np.testing.assert_array_equal(agent.propose(measurement(cpus=48)).slots, [[12, 12, 12]])


def test_the_adaptive_one_begins_anew_at_a_resize(measurement: Measured) -> None:
    agent = started(AutotuneAdaptive(), jobs=2)
    before = measurement(jobs=2, cpus=12, interval=5.0)
    assert rounds(agent, before, 30)[-1] == 29
    after = agent.propose(measurement(jobs=2, cpus=[48, 12], interval=5.0))
    np.testing.assert_array_equal(after.slots, [[48] * 3, [12] * 3])
    assert after.explain(0).startswith("max_parallelism for 48 CPUs, those when it began;")
    assert after.explain(1).startswith("keep")


def test_some_pages_more_or_less_are_no_resize(measurement: Measured) -> None:
    """What a real job may use moves at every reading."""
    agent = started(AutotuneAdaptive())
    made = []
    for step in range(1, 31):
        measured = measurement(cpus=12, interval=5.0, memory_limit=8e9 + 4096 * (step % 7))
        made += [] if agent.propose(measured).explain(0).startswith("keep") else [step]
    assert made == [1, 2, 3, 5, 9, 17, 29]
    assert not agent.propose(measurement(cpus=12, memory_limit=4e9)).explain(0).startswith("keep")


def test_half_of_the_memory_free_at_the_start_bounds_the_buffers(measurement: Measured) -> None:
    # (9e9 - 1e9) / 2 = 4e9 bytes: forty elements of 1e8.
    agent = started(Autotune())
    proposal = agent.propose(measurement(cpus=64, block_bytes=1e8, memory_used=1e9, memory_limit=9e9))
    assert proposal.slots.sum() == 40


def test_working_sets_are_not_seen(measurement: Measured) -> None:
    # 7.9 of 8 GB are in use by the time of the second round: nothing changes.
    agent = started(Autotune())
    agent.propose(measurement(cpus=16))
    np.testing.assert_array_equal(agent.propose(measurement(cpus=16, memory_used=7.9e9)).slots, [[16] * 3])


def test_a_killed_job_begins_anew(measurement: Measured) -> None:
    agent = started(Autotune())
    rounds(agent, measurement(cpus=12, interval=5.0), 30)
    agent.propose(measurement(cpus=24, killed=True, delivered=0.0))
    np.testing.assert_array_equal(agent.propose(measurement(cpus=24)).slots, [[24, 24, 24]])


def test_forgetting_leaves_the_other_jobs(measurement: Measured) -> None:
    agent = started(Autotune(), jobs=2)
    agent.propose(measurement(jobs=2, cpus=12))
    agent.forget(np.array([0]))
    np.testing.assert_array_equal(agent.propose(measurement(jobs=2, cpus=6)).slots, [[6] * 3, [12] * 3])


def test_the_hill_climb_goes_by_the_mean_since_the_start(measurement: Measured) -> None:
    # The first stage costs 1 ms a row, in one interval 101 and then 11: 11 ms on average when the 17th is over.
    agent = started(Autotune(algorithm="hill_climb"))
    for busy in [1.0] * 9 + [101.0] + [11.0] * 6:
        before = agent.propose(measurement(busy=[busy, 11.0, 1.0], slots=128.0, interval=5.0))
    after = agent.propose(measurement(busy=11.0, slots=128.0, interval=5.0))
    steady = started(Autotune(algorithm="hill_climb"))
    same = steady.propose(measurement(busy=[11.0, 11.0, 1.0 + 10.0 / 17], slots=128.0, interval=5.0))
    assert before.slots[0, 0] < after.slots[0, 0]
    np.testing.assert_array_equal(after.slots, same.slots)


def test_stage_based_meets_the_trainers_step(measurement: Measured) -> None:
    # 2, 4 and 1 ms a row against a trainer of 0.5 ms.
    agent = started(Autotune(algorithm="stage_based"))
    proposal = agent.propose(measurement(busy=[2.0, 4.0, 1.0], slots=4.0, step=0.5e-3, cpus=32))
    np.testing.assert_array_equal(proposal.slots, [[4, 8, 2]])


def test_stage_based_drops_a_round_that_exceeds_memory(measurement: Measured) -> None:
    agent = started(Autotune(algorithm="stage_based"))
    proposal = agent.propose(measurement(busy=4.0, slots=4.0, step=1e-4, cpus=32, block_bytes=1e9))
    np.testing.assert_array_equal(proposal.slots, [[16, 16, 16]])  # the initial parallelism


def test_more_workers_than_slots_share_them_if_asked(measurement: Measured) -> None:
    few = measurement(cpus=12, slot_limit=24)
    assert started(Autotune(beyond="pool")).propose(few).pool[0] == 24
    assert started(Autotune()).propose(few).pool[0] == 0
    assert started(Autotune(beyond="pool")).propose(measurement(cpus=12, slot_limit=36)).pool[0] == 0


@pytest.mark.parametrize("options", [{"beyond": "both"}, {"algorithm": "gradient"}, {"element_rows": 0}])
def test_options_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Autotune(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("jump", [1e15, float("inf")])
def test_a_clock_that_jumps_far_takes_no_time_and_leaves_later_rounds_a_minute_apart(
    jump: float, measurement: Measured
) -> None:
    agent = started(Autotune())
    for _ in range(41):
        agent.propose(measurement(interval=5.0))
    agent.propose(measurement(interval=jump))
    # The clock is then good to an eighth of a second, or has not moved.
    made = rounds(agent, measurement(interval=5.0), 48)
    assert np.diff(made).tolist() == [12] * (len(made) - 1)
    assert len(made) in (3, 4)
