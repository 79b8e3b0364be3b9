from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intune.agents.oracle import Oracle
from intune.agents.oracle_plan import plan
from intune.agents.oracle_search import best, best_slots
from intune.agents.steady import memory_of_stages, pooled, rate_of_stages, world
from intune.envs.conditions import channels, record
from intune.envs.jobs import Floats, Jobs
from intune.envs.measurement import Measurement
from intune.envs.scenario import Scenario
from intune.envs.simulator import Simulator
from intune.pipelines.errors import ConfigError
from tests.envs.generated import rate_of, survives


def random_jobs(seed: int, count: int, *, stages: int = 4, cpus: int = 6, **changes: Any) -> Jobs:
    """Jobs of every kind of limit: contention, waits, storage, memory bandwidth, trainer, oversubscription."""
    rng = np.random.default_rng(seed)
    wide = (count, stages)
    values: dict[str, Any] = {
        "cpu": rng.lognormal(-9, 1, wide), "wait": rng.lognormal(-9, 1.5, wide),
        "contention": rng.choice([0.0, 0.02, 0.2], wide), "coherence": rng.choice([0.0, 1e-4, 1e-2], wide),
        "slot_bytes": rng.lognormal(19, 1, wide), "row_bytes": rng.uniform(50, 500, wide),
        "block_rows": rng.choice([500.0, 2000.0], wide), "most_slots": rng.choice([3.0, 4096.0], wide),
        "storage_bytes": np.full(wide, 50.0), "traffic": np.full(wide, 100.0),
        "storage_bandwidth": rng.choice([np.inf, 5e5], count), "memory_bandwidth": rng.choice([np.inf, 4e6], count),
        "step": rng.choice([1e-9, 1e-4], count), "step_cpu": rng.choice([0.0, 1e-5], count),
        "oversubscription": rng.choice([0.0, 0.2], count), "switching": rng.choice([0.0, 0.1], count),
        "crowding": rng.choice([0.0, 0.3], wide), "knee": rng.choice([0.0, 0.2], count),
        "base_bytes": 1e8, "cpus": np.full((count, 1), float(cpus)),
        "memory": rng.uniform(1e9, 1e10, (count, 1)), "slots_per_cpu": 2.0,
    }  # fmt: skip
    return Jobs.of(stages=rng.integers(2, stages + 1, count), jobs=count, **(values | changes))


def steady_rate(jobs: Jobs, slots: Floats, pool: Floats | None = None) -> Floats:
    """Rows/s that an allocation settles at, by the closed form."""
    there = world(jobs)
    return rate_of_stages(there, slots) if pool is None else pooled(there, pool)[0]


@settings(max_examples=2)
@given(seed=st.integers(0, 10_000))
def test_the_closed_form_is_the_simulators_fixed_point(seed: int) -> None:
    jobs = random_jobs(seed, 160, memory=1e18)
    rng = np.random.default_rng(seed)
    slots = np.where(jobs.present, rng.integers(1, 4, jobs.present.shape), 0.0)
    off = np.abs(steady_rate(jobs, slots) / rate_of(jobs, slots, steps=300) - 1.0)
    # In a few jobs a large queue fills so slowly that the simulation is still on its way.
    assert np.quantile(off, 0.95) < 1e-9
    assert off.max() < 1e-2


@settings(max_examples=1)
@given(seed=st.integers(0, 10_000))
def test_a_pools_fixed_point_is_the_simulators(seed: int) -> None:
    jobs = random_jobs(seed, 160, memory=1e18, contention=0.02)
    pool = np.random.default_rng(seed).integers(1, jobs.limit + 1).astype(float)
    ones = np.where(jobs.present, 1.0, 0.0)
    got = steady_rate(jobs, ones, pool)
    simulator = Simulator(jobs)
    simulator.allocate(ones, pool)
    late = [simulator.run().delivered for _ in range(400)][-2:]
    # Where two intervals alternate for ever, their mean is compared.
    np.testing.assert_allclose(got, 0.5 * (late[0] + late[1]), rtol=5e-3)


def exhaustive(jobs: Jobs, limit: int) -> float:
    """Best rate over all slots that are feasible: the one job's, by trying each."""
    there = world(jobs, margin=4.0)
    count = int(jobs.present.sum())
    tried = [each for each in itertools.product(range(1, limit + 1), repeat=count) if sum(each) <= limit]
    slots = np.zeros((len(tried), jobs.stages))
    slots[:, :count] = tried
    many = there.rows(np.zeros(len(tried), dtype=int))
    rates = np.where(memory_of_stages(many, slots) <= many.room, rate_of_stages(many, slots), 0.0)
    return float(rates.max())


def exhaustive_pools(jobs: Jobs) -> tuple[Floats, Floats]:
    """The same of all pools, of every job; and the best pool."""
    limit = int(jobs.limit.max())
    there = world(jobs, margin=4.0).rows(np.repeat(np.arange(len(jobs)), limit))
    pools = np.tile(np.arange(1.0, limit + 1), len(jobs))
    rate, memory = pooled(there, pools)
    fits = (memory <= there.room) & (pools <= np.repeat(jobs.limit, limit))
    rates = np.where(fits, rate, 0.0).reshape(len(jobs), limit)
    return rates.max(axis=1), 1.0 + rates.argmax(axis=1)


def test_no_allocation_beats_the_oracles() -> None:
    jobs = random_jobs(1, 100, cpus=5, coherence=np.array([[0.0, 1e-4, 0.0, 1e-3]]))
    found = best(jobs)
    of_pools, pools = exhaustive_pools(jobs)
    for i in range(len(jobs)):
        own, shared = exhaustive(jobs.take([i]), int(jobs.limit[i])), of_pools[i]
        assert found.rate[i] >= own * (1 - 1e-9), i
        # A pool that fits in the end may not fit while its queues fill.
        assert found.rate[i] <= max(own, shared) * (1 + 1e-6), i
        if found.pool[i] == 0 and shared > own * 1.001:
            assert not survives(jobs.take([i]), found.slots[[i]], pool=pools[[i]])[0], i


def test_some_of_these_cases_are_bounded_by_memory_some_by_pools_some_by_trainers() -> None:
    jobs = random_jobs(1, 150, cpus=5)
    found = best(jobs)
    free = best(jobs.with_(memory=np.full_like(jobs.memory, 1e18)))
    assert (found.rate < free.rate * 0.99).mean() > 0.05
    assert 0.05 < (found.pool > 0).mean() < 0.95
    assert (found.rate * jobs.step > 0.999).any()


def test_the_best_of_stages_that_scale_ideally_by_hand() -> None:
    # 1, 2 and 5 ms a row on 16 CPUs: 2 / 4 / 10 slots make 2,000 rows/s.
    jobs = Jobs.of(
        stages=3, cpu=np.array([[1.0, 2.0, 5.0]]) * 1e-3, cpus=16.0, memory=1e12, slots_per_cpu=1.0
    )
    found = best(jobs)
    np.testing.assert_array_equal(found.slots, [[2, 4, 10]])
    assert found.rate[0] == pytest.approx(2000.0)


def test_more_slots_than_bring_something_are_not_given() -> None:
    jobs = Jobs.of(stages=2, cpu=1e-3, step=1e-3, cpus=16.0, memory=1e12)
    np.testing.assert_array_equal(best(jobs).slots, [[1, 1]])


def test_memory_that_does_not_hold_one_slot_a_stage_is_not_feasible() -> None:
    jobs = Jobs.of(stages=2, cpu=1e-3, slot_bytes=1e9, memory=1e9)
    found = best(jobs)
    assert not found.feasible[0]
    assert found.rate[0] == 0.0


def test_the_margin_leaves_room_for_noise() -> None:
    # Ten slots of 1 GB into 10.5 GB; at four standard deviations of 10 % a slot takes 1.49.
    jobs = Jobs.of(
        stages=1,
        cpu=1e-3,
        slot_bytes=1e9,
        memory_noise=0.1,
        row_bytes=1.0,
        block_rows=1.0,
        memory=10.5e9,
        cpus=64.0,
    )
    assert best(jobs, margin=0.0).slots[0, 0] == 10
    assert best(jobs).slots[0, 0] == 7


def test_a_plan_follows_resizes() -> None:
    jobs = Jobs.of(
        stages=1, cpu=1e-3, memory=1e12, cpus=8.0, interval=5.0,
        event_time=np.array([[20.0, 40.0]]), event_cpus=np.array([[2.0, 0.5]]),
    )  # fmt: skip
    known = plan(jobs, 10)
    np.testing.assert_allclose(known.rate[0], [8000.0] * 4 + [16000.0] * 4 + [4000.0] * 2, rtol=1e-9)
    assert known.feasible.all()


def test_a_plan_follows_drift() -> None:
    jobs = Jobs.of(stages=1, cpu=1e-3, memory=1e12, cpus=8.0, drift=1e-2, interval=5.0)
    known = plan(jobs, 30)
    np.testing.assert_allclose(known.rate[0], 8000.0 * np.exp(-0.05 * np.arange(30)), rtol=1e-6)


def test_the_oracle_reaches_what_it_plans_and_is_not_killed(
    play: Callable[[Any, Jobs, int], list[Measurement]],
) -> None:
    jobs = random_jobs(5, 200, memory_noise=0.1, cpus=8)
    jobs = jobs.take(np.flatnonzero(best(jobs).feasible))
    known = plan(jobs, 24)
    agent = Oracle()
    agent.reveal(jobs, 24)
    agent.start(len(jobs), jobs.stages)
    rng = np.random.default_rng(0)
    simulator = Simulator(jobs, record(jobs, rng.standard_normal((len(jobs), 24, channels(jobs.stages)))))
    measured = simulator.run()
    killed = 0
    for _ in range(20):
        proposal = agent.propose(measured)
        simulator.allocate(proposal.slots, proposal.pool)
        measured = simulator.run()
        killed += int(measured.killed.sum())
    assert killed == 0
    assert np.median(measured.delivered / known.rate[:, 20]) == pytest.approx(1.0, abs=0.01)


def test_the_oracle_gives_memory_back_before_it_shrinks(
    play: Callable[[Any, Jobs, int], list[Measurement]],
) -> None:
    jobs = Jobs.of(
        stages=2, cpu=1e-3, slot_bytes=1e8, memory=2e9, cpus=16.0, row_bytes=100.0, block_rows=1e5,
        event_time=np.array([[50.0]]), event_cpus=1.0, event_memory=np.array([[0.5]]),
    )  # fmt: skip
    agent = Oracle()
    agent.reveal(jobs, 20)
    seen = play(agent, jobs, 18)
    assert not any(measured.killed[0] for measured in seen)
    assert seen[6].memory_used[0] > 1e9 > seen[9].memory_used[0]
    # Not where it fits into what will be left: the processors that there still are would have nothing to do.
    roomy = jobs.with_(memory=np.full((1, 1), 2e10), event_cpus=np.array([[0.5]]))
    agent.reveal(roomy, 20)
    seen = play(agent, roomy, 18)
    assert [measured.delivered[0] for measured in seen[6:10]] == pytest.approx([8e3] * 4)
    assert seen[12].delivered[0] == pytest.approx(4e3)


def test_an_oracle_to_whom_nothing_was_revealed_refuses(measurement: Callable[..., Measurement]) -> None:
    agent = Oracle()
    agent.start(1, 3)
    with pytest.raises(ConfigError, match="revealed"):
        agent.propose(measurement())


def test_a_stage_that_a_pool_seldom_runs_is_not_counted_as_if_it_always_ran() -> None:
    """The memory of a pool is that of the simulator: working sets of slots at work, not of one a stage at least."""
    rare = Jobs.of(
        stages=3, cpu=[[1e-5, 1e-5, 1e-4]], slot_bytes=[[1e8, 1e8, 1e8]], cpus=2.0, slots_per_cpu=3.0,
        block_rows=100.0, step=1e-3,
    )  # fmt: skip
    pools = np.arange(1.0, 7.0)
    _, memory = pooled(world(rare).rows(np.zeros(6, dtype=int)), pools)
    simulator = Simulator(rare.take(np.zeros(6, dtype=int)), steps=1)
    simulator.allocate(np.ones((6, 3)), pools)
    for _ in range(100):
        simulator.run()
    assert simulator.flow is not None
    # The oracle counts queues full, of 16 kB a block.
    np.testing.assert_allclose(memory, simulator.flow.memory[:, 0], atol=1e6)


def test_where_only_a_pool_fits_there_is_an_allocation() -> None:
    tight = Jobs.of(stages=2, cpu=1e-5, slot_bytes=1e9, cpus=2.0, memory=1.5e9, block_rows=100.0)
    found = best(tight)
    assert found.pool[0] == 1
    assert found.rate[0] > 0
    assert found.feasible[0]


def test_a_plan_has_no_rate_where_nothing_fits_also_while_costs_drift() -> None:
    jobs = Jobs.of(
        stages=2, cpu=1e-5, slot_bytes=1e9, cpus=4.0, memory=4e9, block_rows=100.0, interval=5.0, drift=0.01,
        event_time=[[50.0, 100.0]], event_cpus=1.0, event_memory=[[0.2, 1.0]],
    )  # fmt: skip
    known = plan(jobs, 30)
    nothing = np.arange(30) // 10 == 1
    np.testing.assert_array_equal(known.feasible[0], ~nothing)
    np.testing.assert_array_equal(known.rate[0] > 0, ~nothing)
    share = known.share(np.array([1000.0]), 10)
    assert np.isnan(share[0])
    assert known.share(known.rate[:, 5], 5)[0] == 1.0


def test_a_knee_leaves_something_beyond_the_processors() -> None:
    """Where slots would take all processors, a tenth is still to be had by more of them."""
    jobs = Jobs.of(
        stages=2, jobs=1, cpu=np.array([[1e-7, 1e-5]]), slot_bytes=np.array([[1e10, 1e6]]), block_rows=1000.0,
        knee=0.15, step=1e-9, cpus=np.full((1, 1), 64.0), memory=16e9, slots_per_cpu=4.0,
    )  # fmt: skip
    slots = np.stack([np.ones(255), np.arange(1.0, 256.0)], axis=1)
    rates = rate_of(jobs.take(np.zeros(255, dtype=int)), slots)
    found = float(best(jobs, margin=0.0).rate[0])
    assert rates[63] < 0.95 * rates.max()
    assert found == pytest.approx(rates.max(), rel=2e-3)


@pytest.mark.parametrize("stated", ["memory_floor", "memory_relative"])
def test_memory_that_just_holds_an_allocation_holds_it_whatever_rounding_does(stated: str) -> None:
    block = {"row_bytes": {"uniform": [50.0, 500.0]}, "block_rows": 977.0, "queue_blocks": 1.0}
    memory = {"memory": 1.0} if stated == "memory_floor" else {}
    scenario = Scenario.parse(
        {
            "job": {stated: 1.0, "base_bytes": {"uniform": [1e9, 9e9]}},
            "nodes": [{"cpus": 3, **memory}, {"cpus": 4, **memory}],
            "stage": [
                {
                    "name": name,
                    "cpu": {"uniform": [1e-6, 1e-5]},
                    "slot_bytes": {"uniform": [1e6, 1e9]},
                    **block,
                }
                for name in ("load", "transform")
            ],
        }
    )
    jobs = scenario.draw(np.random.default_rng(0), 256)
    assert best_slots(world(jobs))[2].all()
    if stated == "memory_relative":  # the best rate is what it was reckoned for
        without_limit = jobs.with_(memory=np.full_like(jobs.memory, 1e18))
        np.testing.assert_allclose(best(jobs).rate, best(without_limit).rate)
