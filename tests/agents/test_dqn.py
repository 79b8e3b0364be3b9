"""The DQN: seeded, saved and loaded the same; quick; learns on the job; leaves torch's threads alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from intune.agents import registry
from intune.agents.base import Agent
from intune.agents.candidates import NAMES
from intune.agents.dqn import DQN, _reason
from intune.agents.evaluate import Trial, evaluate
from intune.agents.guard import Guard
from intune.agents.oracle_search import best
from intune.agents.outcomes import outcomes
from intune.agents.qweights import Weights, load
from intune.agents.referee import Referee
from intune.envs.conditions import channels, record
from intune.envs.jobs import Jobs
from intune.envs.measurement import Measurement
from intune.envs.scenario import Scenario
from intune.envs.simulator import Simulator
from intune.envs.source import JobSource

Measured = Callable[..., Measurement]


def noisy(count: int, stages: int, steps: int) -> Simulator:
    rng = np.random.default_rng(4)
    jobs = Jobs.of(
        stages=stages, jobs=count, cpu=rng.lognormal(-9, 1, (count, stages)),
        wait=rng.lognormal(-10, 1, (count, stages)),
        slot_bytes=rng.lognormal(18, 1, (count, stages)), cpus=np.full((count, 1), 32.0), memory=6e10, noise=0.03,
        measurement_noise=0.1, block_rows=2000.0, base_bytes=1e9,
    )  # fmt: skip
    return Simulator(jobs, record(jobs, rng.standard_normal((count, steps, channels(stages)))))


def slots_of(agent: Agent, simulator: Simulator, steps: int) -> np.ndarray:
    agent.start(len(simulator), simulator.jobs.stages)
    measured = simulator.run()
    given = []
    for _ in range(steps):
        proposal = agent.propose(measured)
        given.append(np.where(proposal.pool[:, None] > 0, -proposal.pool[:, None], proposal.slots))
        simulator.allocate(proposal.slots, proposal.pool)
        measured = simulator.run()
    return np.stack(given)


@pytest.mark.parametrize("learning", [False, True])
def test_seeded_runs_are_equal(learning: bool) -> None:
    first, second = (slots_of(DQN(learning=learning, seed=3), noisy(3, 4, 17), 12) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_one_agent_started_anew_remembers_nothing() -> None:
    agent = DQN(learning=True)
    first, second = (slots_of(agent, noisy(2, 4, 17), 12) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_jobs_side_by_side_are_decided_as_alone() -> None:
    source = JobSource(Scenario.load("paper"), split="test", seed=5)

    def decided(ids: list[int]) -> np.ndarray:
        jobs, normals = source.take(ids, 11)
        return slots_of(DQN(), Simulator(jobs, record(jobs, normals)), 9)

    together = decided([0, 1])
    for i in range(2):
        np.testing.assert_array_equal(decided([i])[:, 0], together[:, i])


def test_weights_saved_and_loaded_decide_the_same(tmp_path: Path) -> None:
    load().save(tmp_path / "copy.npz")
    one = slots_of(DQN(), noisy(2, 3, 12), 10)
    other = slots_of(DQN(weights=tmp_path / "copy.npz"), noisy(2, 3, 12), 10)
    np.testing.assert_array_equal(one, other)


def test_learning_on_the_job_changes_the_network_and_not_the_shipped_weights() -> None:
    agent = DQN(learning=True)
    before = {name: value.copy() for name, value in agent.weights.arrays.items()}
    slots_of(agent, noisy(1, 3, 22), 20)
    assert agent._online is not None
    learnt = agent._online._arrays
    assert any((learnt[name] != value).any() for name, value in before.items())
    assert all(np.isfinite(value).all() for value in learnt.values())
    # Small steps: the job corrects what was learnt in the simulator.
    assert max(np.abs(learnt[name] - value).max() for name, value in before.items()) < 0.02
    for name, value in before.items():
        np.testing.assert_array_equal(agent.weights.arrays[name], value)


def test_a_decision_that_was_not_carried_out_teaches_nothing() -> None:
    """A referee that waits, or a guard that cuts: what was delivered is not owed to what was asked for."""
    learnt = []
    for obeyed in (True, False):
        simulator = noisy(1, 3, 42)
        agent = DQN(learning=True)
        agent.start(len(simulator), simulator.jobs.stages)
        measured = simulator.run()
        changes = 0
        for _ in range(12):
            proposal = agent.propose(measured)
            changes += bool(
                (proposal.slots != measured.slots).any() or (proposal.pool != measured.pool).any()
            )
            if obeyed:
                simulator.allocate(proposal.slots, proposal.pool)
            measured = simulator.run()
        assert changes
        online: Any = agent._online
        learnt.append(sum(len(entry[1]) for entry in online._memory))
    assert learnt[1] < learnt[0]


def test_a_new_job_is_not_credited_with_what_was_decided_for_the_one_before() -> None:
    simulator = noisy(2, 3, 42)
    agent = DQN(learning=True)
    agent.start(2, simulator.jobs.stages)
    learnt = []
    for step in range(6):
        measured = simulator.run()
        if step == 3:
            agent.forget([1])
        proposal = agent.propose(measured)
        simulator.allocate(proposal.slots, proposal.pool)
        online: Any = agent._online
        learnt.append(sum(len(entry[1]) for entry in online._memory))
    assert np.diff(learnt).tolist() == [2, 2, 1, 2, 2]


def test_what_does_not_fit_any_more_is_left(measurement: Measured) -> None:
    for watched in (False, True):
        agent = DQN()
        agent.start(1, 3)
        slots = [[2.0, 6.0, 2.0]]
        values = {"slots": slots, "busy": slots, "memory_used": 4e9, "memory_base": 1e8, "watched": watched}
        for _ in range(4):
            agent.propose(measurement(**values, memory_limit=1e12, waiting=0.0))
        proposal = agent.propose(measurement(**values, memory_limit=3e9, waiting=0.0))
        assert ("may not fit" in proposal.explain(0)) != watched


def test_learning_survives_intervals_that_say_nothing(measurement: Measured) -> None:
    agent = DQN(learning=True)
    agent.start(1, 3)
    for step in range(20):
        bad = {"delivered": np.nan} if step % 5 == 4 else {}
        agent.propose(measurement(busy=[[2.0, 1.0, 0.5]], **bad))
    assert agent._online is not None
    assert all(np.isfinite(value).all() for value in agent._online._arrays.values())


@pytest.mark.parametrize("killed", [False, True])
def test_a_trainer_that_pauses_teaches_nothing_and_one_that_dies_does(
    measurement: Measured, killed: bool
) -> None:
    """While it saves or validates it takes nothing, whatever is in force."""
    agent = DQN(learning=True)
    agent.start(1, 3)
    values: dict[str, Any] = {}
    for step in range(12):
        pause = {"delivered": 0.0, "killed": killed} if step % 3 == 2 else {}
        proposal = agent.propose(measurement(busy=[[2.0, 1.0, 0.5]], **values, **pause))
        values = {"slots": proposal.slots, "pool": proposal.pool}  # it has its way
    online: Any = agent._online
    rewards = np.concatenate([entry[2] for entry in online._memory])
    assert len(rewards)
    assert (rewards <= 0).any() == killed


def test_torchs_threads_and_random_numbers_are_left_alone() -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    other = torch.get_num_interop_threads()
    slots_of(DQN(learning=True), noisy(1, 3, 18), 16)
    assert torch.get_num_threads() == threads
    assert torch.get_num_interop_threads() == other
    assert torch.equal(torch.get_rng_state(), state)


def test_where_stages_cannot_share_slots_it_gives_each_its_own() -> None:
    shared, own = (slots_of(DQN(pools=pools), noisy(8, 4, 13), 12) for pools in (True, False))
    assert (shared < 0).any()  # pools, as told by `slots_of`
    assert (own >= 1).all()
    assert own.sum() > 1.5 * own[0].sum()


def test_it_stays_where_nothing_is_worth_more() -> None:
    """Weights that hold all candidates equal: whatever fits is kept."""
    flat = Weights(arrays={name: np.zeros_like(value) for name, value in load().arrays.items()})
    given = slots_of(DQN(weights=flat), noisy(2, 3, 10), 8)
    np.testing.assert_array_equal(given, 1.0)


def test_reasons_name_the_move_and_what_it_promises() -> None:
    simulator = noisy(1, 3, 12)
    agent = DQN()
    agent.start(1, 3)
    decision = agent.decide(simulator.run(), ["load", "batch", "transform"])
    assert decision.allocation is not None
    assert "the twin expects" in decision.reason
    assert "of the memory limit, worth +" in decision.reason


def test_a_pool_is_told_by_its_size_and_not_by_its_slack(measurement: Measured) -> None:
    """Three slots to one is no "x1.4"."""
    measured = measurement(slots=3.0, pool=3.0, busy=0.2)
    agent = DQN()
    agent.start(1, 3)
    options, _ = agent.look(measured)
    k = NAMES.index("pool x1.4")
    options.pool[0, k] = 1.0
    assert _reason(agent, options, measured, 0, k, 0.1).startswith("a pool of 1 slot; the twin expects ")
    options.pool[0, k] = 2.0
    assert _reason(agent, options, measured, 0, k, 0.1).startswith("a pool of 2 slots; the twin expects ")
    k = NAMES.index("half way")
    assert _reason(agent, options, measured, 0, k, 0.1).startswith("half way: stage 0 ")


def test_it_is_near_the_best_on_jobs_it_never_saw() -> None:
    source = JobSource(Scenario.load("heavy-transform"), split="test", seed=5)
    trace = evaluate({"dqn": lambda: registry.make("dqn+guard")}, source, Trial(jobs=32, steps=12))["dqn"]
    assert outcomes(trace).at_5.mean() > 0.85
    assert outcomes(trace).at_10.mean() > 0.9
    assert np.nansum(outcomes(trace).kills) == 0


def test_the_referee_and_the_guard_may_stand_around_it() -> None:
    given = slots_of(Guard(Referee(DQN(learning=True))), noisy(2, 4, 20), 18)
    assert np.isfinite(given).all()


def test_it_says_so_where_memory_is_what_holds_a_job_back() -> None:
    """Twice the rate is to be had, and at worst it does not fit: that is not "worth nothing"."""
    jobs = Jobs.of(
        stages=2, jobs=1, cpu=np.array([[2e-6, 3e-5]]), slot_bytes=np.array([[3.5e8, 1.1e7]]), row_bytes=10.0,
        base_bytes=1e10, cpus=np.full((1, 1), 32.0), memory=10.45e9,
    )  # fmt: skip
    simulator = Simulator(jobs, steps=1)
    agent = registry.make("dqn+guard")
    agent.start(1, 2)
    measured = simulator.run()
    for _ in range(30):
        decision = agent.decide(measured, ["load", "transform"])
        measured = simulator.run()  # what it asks for is not given
    assert "of the memory limit" in decision.reason
    assert "none is worth" not in decision.reason


@pytest.mark.parametrize("bad", [1.0, 2.5])
def test_a_pool_is_no_trap_where_memory_holds_it_back(bad: float) -> None:
    """Two stages wait for storage, and a pool of three is far too few slots. What it takes does not say how many more
    fit, all the less so after one interval that took more than it should: it has to leave the pool to find out."""
    jobs = Jobs.of(
        stages=4, jobs=1, cpu=np.array([[7e-5, 1e-4, 4e-4, 1e-4]]), wait=np.array([[0.0, 2.3e-3, 0.0, 1.3e-3]]),
        slot_bytes=np.array([[3e7, 1e8, 3e8, 2e8]]), base_bytes=2e9, cpus=np.full((1, 1), 3.0), memory=5e9,
        slots_per_cpu=8.0,
    )  # fmt: skip
    simulator = Simulator(jobs, steps=1)
    agent = Guard(Referee(DQN()))
    agent.start(1, 4)
    simulator.allocate(np.ones((1, 4)), np.full(1, 3.0))
    delivered = []
    for step in range(30):
        measured = simulator.run()
        delivered.append(float(measured.delivered[0]))
        assert not measured.killed[0]
        if step == 0:
            more = measured.memory_base + bad * (measured.memory_used - measured.memory_base)
            measured = replace(measured, memory_used=more)
        proposal = agent.propose(measured)
        if "tell what they take" in proposal.explain(0):
            assert measured.pool[0] > 0
        simulator.allocate(proposal.slots, proposal.pool)
    assert delivered[-1] > 0.85 * best(jobs).rate[0] > 2.0 * delivered[0]
