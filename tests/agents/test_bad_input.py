"""What every agent does with measurements that cannot be right: it keeps what is in force and says so."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from intune.agents import registry
from intune.agents.base import Agent
from intune.agents.oracle import Oracle
from intune.agents.oracle_plan import plan
from intune.envs.conditions import channels, record
from intune.envs.jobs import Jobs
from intune.envs.measurement import Measurement
from intune.envs.simulator import Simulator

Measured = Callable[..., Measurement]
BLIND = ("oracle",)
"""Agents that go by something else than measurements."""
REHEARSING = ("planner", "dqn", "dqn+guard")
DECIDING = [name for name in registry.names() if name not in BLIND]
STAGES = ("load", "batch", "transform")


def made(name: str, jobs: int = 1, stages: int = 3) -> Agent:
    agent = registry.make(name)
    agent.start(jobs, stages)
    return agent


BAD: dict[str, dict[str, Any]] = {
    "NaN rate of a stage": {"rate": [1000.0, np.nan, 1000.0]},
    "NaN slots at work": {"busy": np.nan},
    "infinite rate": {"rate": np.inf},
    "negative time": {"busy": [-1.0, 1.0, 1.0]},
    "nothing delivered": {"delivered": 0.0},
    "delivered is not known": {"delivered": np.nan},
    "no CPUs": {"cpus": 0.0},
    "memory is not known": {"memory_used": np.nan, "memory_limit": np.nan},
    "more slots at work than there are": {"busy": 40.0},
    "a clock that jumped back": {"interval": -3.0},
    "a clock that stood": {"interval": 0.0},
    "no stage at all": {"present": False},
    "everything NaN": dict.fromkeys(
        ("rate", "busy", "cpu", "starved", "blocked", "delivered", "step", "waiting", "cpus", "memory_used"),
        np.nan,
    ),
    "out of memory": {"killed": True, "delivered": 0.0},
}


@pytest.mark.parametrize("name", DECIDING)
def test_it_keeps_and_says_so(name: str, measurement: Measured) -> None:
    agent = made(name)
    for what, values in BAD.items():
        agent.start(1, 3)
        agent.decide(measurement(slots=3.0), STAGES)
        bad = measurement(**({"slots": 3.0} | values))
        proposal = agent.propose(bad)
        np.testing.assert_array_equal(proposal.slots, bad.slots, err_msg=what)
        np.testing.assert_array_equal(proposal.pool, bad.pool, err_msg=what)
        assert proposal.explain(0).startswith("keep: "), what
        decision = agent.decide(bad, STAGES)
        assert decision.allocation is None, what
        assert decision.reason.startswith("keep: "), what


@pytest.mark.parametrize("name", DECIDING)
def test_it_goes_on_after_bad_measurements(name: str, measurement: Measured) -> None:
    agent = made(name)
    for what in BAD.values():
        agent.propose(measurement(**what))
    proposal = agent.propose(measurement())
    assert np.isfinite(proposal.slots).all()
    assert (proposal.slots >= 1).all()
    assert proposal.explain(0)


@pytest.mark.parametrize("name", DECIDING)
def test_bad_measurements_of_one_job_do_not_touch_the_others(name: str, measurement: Measured) -> None:
    def decided(first: dict[str, float]) -> np.ndarray:
        agent = made(name, jobs=2)
        good = measurement(jobs=2, busy=[[2.0, 1.0, 0.5]] * 2)
        agent.propose(good)
        bad = measurement(
            jobs=2, busy=[[2.0, 1.0, 0.5]] * 2, **{k: [v, getattr(good, k)[1]] for k, v in first.items()}
        )
        return agent.propose(bad).slots[1]

    np.testing.assert_array_equal(
        decided({}), decided({"delivered": np.nan, "cpus": np.nan, "memory_used": np.inf})
    )


@pytest.mark.parametrize("name", DECIDING)
def test_a_stage_that_vanishes_is_left_alone(name: str, measurement: Measured) -> None:
    agent = made(name)
    agent.propose(measurement(slots=3.0))
    present = np.array([[True, True, False]])
    less = measurement(
        slots=[[3.0, 3.0, 0.0]], present=present, rate=[[1000.0, 1000.0, np.nan]], busy=[[2.0, 2.0, np.nan]]
    )
    proposal = agent.propose(less)
    assert np.isfinite(proposal.slots[:, :2]).all()
    assert (proposal.slots[:, :2] >= 1).all()
    decision = agent.decide(less.take(slice(0, 1)), STAGES[:2])
    assert decision.reason
    if decision.allocation is not None and not decision.allocation.is_shared:
        assert [name for name, _ in decision.allocation.slots] == list(STAGES[:2])


def simulated(count: int, stages: int, *, wide: int = 0) -> tuple[Jobs, Simulator]:
    rng = np.random.default_rng(5)
    jobs = Jobs.of(
        stages=stages, jobs=count, cpu=rng.lognormal(-9, 1, (count, stages)),
        wait=rng.lognormal(-10, 1, (count, stages)), slot_bytes=rng.lognormal(18, 1, (count, stages)),
        cpus=np.full((count, 1), 32.0), memory=6e10, noise=0.03,
        measurement_noise=0.1, block_rows=2000.0, base_bytes=1e9,
    )  # fmt: skip
    tape = record(jobs, rng.standard_normal((count, 21, channels(stages))))
    if wide:
        jobs = jobs.widened(stages=wide, nodes=1, events=0)
        tape = tape.widened(wide)
    return jobs, Simulator(jobs, tape)


@pytest.mark.parametrize("name", DECIDING)
def test_masked_stages_never_matter(name: str) -> None:
    """Trajectories are the same in wider arrays, whatever stands in the columns of absent stages."""
    chosen = []
    for wide, rubbish in ((0, None), (7, 1e9), (7, np.nan)):
        jobs, simulator = simulated(3, 4, wide=wide)
        agent = made(name, 3, jobs.stages)
        measured = simulator.run()
        seen = []
        for _ in range(4):
            if rubbish is not None:
                measured = replace(
                    measured,
                    **{
                        field: np.where(measured.present, getattr(measured, field), rubbish)
                        for field in (
                            "rate",
                            "busy",
                            "cpu",
                            "starved",
                            "blocked",
                            "block_bytes",
                            "queued_bytes",
                            "queue_fill",
                        )
                    },
                )
            proposal = agent.propose(measured)
            seen.append((proposal.slots[:, :4].copy(), proposal.pool.copy()))
            simulator.allocate(np.where(jobs.present, proposal.slots, 0.0), proposal.pool)
            measured = simulator.run()
        chosen.append(seen)
    for other in chosen[1:]:
        for (slots, pool), (slots_wide, pool_wide) in zip(chosen[0], other, strict=True):
            np.testing.assert_array_equal(pool, pool_wide)
            np.testing.assert_array_equal(slots, slots_wide)


@pytest.mark.parametrize("name", [*registry.names(), "dqn+guard"])
def test_a_decision_at_eight_stages_costs_ten_simulated_intervals_at_most(name: str) -> None:
    """Forty for those that rehearse candidates in a twin of the job first; an interval takes a quarter of a
    millisecond where a decision of most agents takes half of one."""
    jobs, simulator = simulated(1, 8)
    yardstick = simulated(1, 8)[1]
    agent = registry.make(name)
    if isinstance(agent, Oracle):
        agent.use(plan(jobs, 21))
    agent.start(1, 8)
    measured = simulator.run()
    decisions, intervals = [], []
    for _ in range(13):
        # Processor time: other programs on the machine do not count.
        began = time.process_time()
        proposal = agent.propose(measured)
        decided = time.process_time()
        yardstick.run()
        decisions.append(decided - began)
        intervals.append(time.process_time() - decided)
        simulator.allocate(proposal.slots, proposal.pool)
        measured = simulator.run()
    most = 40 if name in REHEARSING else 10
    assert statistics.median(decisions) <= most * statistics.median(intervals)
    assert agent.decide(measured, [f"stage{i}" for i in range(8)]).reason
