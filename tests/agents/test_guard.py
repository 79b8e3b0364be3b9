"""The guard: nothing is applied whose memory, at worst, exceeds the limit; it gives back, and says why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from intune.agents import registry
from intune.agents.base import Agent, Proposal
from intune.agents.guard import Guard, fit
from intune.agents.memory import MemoryRecord
from intune.envs.conditions import record as tape_of
from intune.envs.measurement import Measurement
from intune.envs.scenario import Scenario
from intune.envs.simulator import Simulator
from intune.envs.source import JobSource

Measured = Callable[..., Measurement]


class Asks(Agent):
    """Always asks for the same, or for what chance says."""

    name = "asks"

    def __init__(self, slots: float = 0.0, *, pool: float = 0.0, seed: int = 0) -> None:
        self.slots, self.pool = slots, pool
        self._rng = np.random.default_rng(seed)

    def propose(self, measured: Measurement) -> Proposal:
        shape = measured.present.shape
        slots = np.full(shape, self.slots) if self.slots else self._rng.integers(1, 60, shape).astype(float)
        pool = np.full(len(measured), self.pool)
        if not self.slots:
            pool = self._rng.choice([0.0, 0.0, 1.0, 6.0, 40.0], len(measured))
        return Proposal(slots=slots, pool=pool, explain=lambda i: "it asks for more")


def tight_jobs(family: str, count: int, steps: int, seed: int = 11) -> tuple[Any, Simulator]:
    jobs, normals = JobSource(Scenario.load(family), split="test", seed=seed).take(np.arange(count), steps)
    return jobs, Simulator(jobs, tape_of(jobs, normals))


@pytest.mark.parametrize("family", ["memory-tight", "elastic", "paper", "multi-node"])
@pytest.mark.parametrize("asks", ["everything", "anything"])
def test_nothing_is_applied_whose_bound_exceeds_the_limit(family: str, asks: str) -> None:
    """Of simulated jobs under the greediest agent and one led by chance; and none runs out of memory that was within
    its limit with one slot a stage (checked against a record of our own)."""
    jobs, simulator = tight_jobs(family, 32, 12)
    guard = Guard(Asks(500.0) if asks == "everything" else Asks())
    guard.start(len(jobs), jobs.stages)
    record = MemoryRecord(len(jobs), jobs.stages)
    measured = simulator.run()
    vetoes = 0
    lost = measured.killed.copy()
    # A job that does not fit with the least it can have is beyond any guard.
    for _ in range(10):
        record.see(measured)
        proposal = guard.propose(measured)
        bound = record.bound(np.where(jobs.present, proposal.slots, 0.0), proposal.pool, measured)
        least = (np.where(jobs.present, proposal.slots, 1.0) == 1).all(axis=1) | (proposal.pool == 1)
        assert ((bound <= measured.memory_limit) | least).all()
        hopeless = (
            record.bound(jobs.present.astype(float), np.zeros(len(jobs)), measured) > measured.memory_limit
        )
        simulator.allocate(np.where(jobs.present, proposal.slots, 0.0), proposal.pool)
        measured = simulator.run()
        lost |= measured.killed & ~hopeless & ~least
        vetoes = int(guard.vetoed.sum())
    assert vetoes > 0
    assert lost.sum() == 0


def test_it_gives_back_as_the_limit_falls(measurement: Measured) -> None:
    """Ten slots take 10 GB of 40; then the limit is 6 GB, which those no longer fit."""
    guard = Guard(Asks(5.0))
    guard.start(1, 2)
    state: dict[str, Any] = {
        "stages": 2, "memory_base": 0.0, "memory_queued": 0.0, "queued_bytes": 0.0, "block_bytes": 0.0,
    }  # fmt: skip
    for slots in (1.0, 2.0, 3.0, 5.0):
        measured = measurement(slots=slots, memory_used=2e9 * slots, memory_limit=4e10, **state)
        proposal = guard.propose(measured)
    np.testing.assert_array_equal(proposal.slots, [[5.0, 5.0]])
    assert proposal.explain(0) == "it asks for more"
    falls = measurement(slots=5.0, memory_used=1e10, memory_limit=6e9, **state)
    cut = guard.propose(falls)
    assert 1 <= cut.slots.max() <= 3
    # 2 GB for each pair, and no more than the limit at worst.
    assert 2e9 * cut.slots.max() <= 6e9
    said = cut.explain(0)
    assert said.startswith("it asks for more; the guard gives back memory to stage 0 ")
    assert "167% of the memory limit" in said


@pytest.mark.parametrize("pool", [0.0, 4.0])
def test_what_is_more_than_is_in_force_or_the_same_gives_nothing_back(
    measurement: Measured, pool: float
) -> None:
    """A pool of 40 is cut, whether the stages have six slots of their own or share four."""
    guard = Guard(Asks(1.0, pool=40.0))
    guard.start(1, 3)
    now = measurement(
        slots=pool or 2.0, pool=pool, busy=1.0, memory_used=1e9, memory_base=0.0, memory_limit=4e9,
        memory_queued=0.0, queued_bytes=0.0, block_bytes=0.0,
    )  # fmt: skip
    proposal = guard.propose(now)
    given = proposal.pool[0] or proposal.slots.sum()
    assert (pool or 6.0) <= given < 40
    assert "the guard cuts this to" in proposal.explain(0)


def test_growth_is_tried_in_small_steps_where_nothing_is_known(measurement: Measured) -> None:
    """One slot a stage is known to take 1 GB: of 4 GB, no more than a doubling or so is safe."""
    guard = Guard(Asks(50.0))
    guard.start(1, 3)
    first = measurement(
        slots=1.0,
        memory_used=1e9,
        memory_base=0.0,
        memory_queued=0.0,
        memory_limit=4e9,
        queued_bytes=0.0,
        block_bytes=0.0,
    )
    proposal = guard.propose(first)
    assert 1 <= proposal.slots.max() <= 3
    said = proposal.explain(0)
    assert "the guard cuts this to stage 0 " in said
    assert "25% of the memory limit is in use" in said
    assert "varies by" in said


@pytest.mark.parametrize(("limit", "pools"), [(8e9, True), (2.5e9, False)])
def test_a_pool_is_cut_to_a_smaller_pool_or_to_slots_at_work_where_more_of_them_fit(
    measurement: Measured, limit: float, pools: bool
) -> None:
    guard = Guard(Asks(1.0, pool=64.0))
    guard.start(1, 3)
    proposal = guard.propose(
        measurement(slots=1.0, memory_used=1e9, memory_base=0.0, memory_queued=0.0, memory_limit=limit,
                    queued_bytes=0.0, block_bytes=0.0)
    )  # fmt: skip
    if pools:
        assert 3 <= proposal.pool[0] <= 8
        assert "a pool of" in proposal.explain(0)
    else:
        assert proposal.pool[0] == 0
        assert proposal.slots[0].tolist() == [1, 1, 1]


def test_a_pool_that_a_lower_limit_does_not_hold_leaves_the_slots_at_work(measurement: Measured) -> None:
    """Any slot of a pool may turn to the stage that takes most; slots of their own cannot."""
    guard = Guard(Asks(1.0, pool=16.0))
    guard.start(1, 3)

    def seen(limit: float) -> Measurement:
        return measurement(
            slots=16.0, pool=16.0, busy=[[12.0, 2.0, 2.0]], memory_used=4e9, memory_base=0.0, memory_queued=0.0,
            memory_limit=limit, queued_bytes=0.0, block_bytes=0.0,
        )  # fmt: skip

    for _ in range(4):
        assert guard.propose(seen(1e12)).pool[0] == 16
    lower = guard.propose(seen(3e9))
    kept = lower.pool[0] or lower.slots[0].sum()
    assert 3 < kept < 16


def test_what_fits_is_passed_on_as_it_is(measurement: Measured) -> None:
    guard = Guard(Asks(4.0))
    guard.start(1, 3)
    proposal = guard.propose(measurement(memory_limit=1e15))
    np.testing.assert_array_equal(proposal.slots, 4.0)
    assert proposal.explain(0) == "it asks for more"
    assert guard.vetoed[0] == 0


def test_what_is_judged_is_what_will_be_given(measurement: Measured) -> None:
    """An agent of a user's may ask for parts of slots, which are rounded; and less than half a pool is none."""
    seen = {"slots": 3.0, "busy": 3.0, "memory_used": 1.9e9, "memory_base": 1e9, "memory_queued": 0.0}
    for asked in (Asks(3.6), Asks(1000.0, pool=0.4)):
        guard = Guard(asked)
        guard.start(1, 3)
        for _ in range(20):
            # 100 MB a slot: nine fit into this, ten at worst do not, let alone twelve.
            proposal = guard.propose(
                measurement(**seen, memory_limit=2.15e9, queue_fill=0.0, block_bytes=0.0)
            )
        assert proposal.pool[0] == 0
        assert np.rint(proposal.slots).sum() < 12
        assert guard.vetoed[0]


def test_jobs_are_held_each_on_its_own(measurement: Measured) -> None:
    guard = Guard(Asks(50.0))
    guard.start(2, 3)
    both = measurement(jobs=2, slots=1.0, memory_used=1e9, memory_limit=[1e15, 1.5e9])
    proposal = guard.propose(both)
    np.testing.assert_array_equal(proposal.slots[0], 50.0)
    np.testing.assert_array_equal(proposal.slots[1], 1.0)
    np.testing.assert_array_equal(guard.vetoed, [0, 1])
    guard.forget(np.array([1]))
    np.testing.assert_array_equal(guard.vetoed, [0, 0])


def test_with_nothing_known_of_memory_it_holds_at_one_slot_a_stage(measurement: Measured) -> None:
    record = MemoryRecord(1, 3)
    slots, pool, cut = fit(record, measurement(slots=3.0), np.full((1, 3), 9.0), np.zeros(1))
    np.testing.assert_array_equal(slots, 1.0)
    assert cut[0]
    assert pool[0] == 0


def test_it_wraps_any_agent_under_its_name() -> None:
    for name in ("autotune", "ds2", "planner", "dqn"):
        guard = registry.make(name + registry.GUARDED)
        assert isinstance(guard, Guard)
        assert guard.name == name


def test_what_cannot_be_cut_is_no_veto(measurement: Measured) -> None:
    """One slot a stage is the least there is, also where at worst it does not fit."""
    guard = Guard(Asks(1.0))
    guard.start(1, 3)
    full = measurement(slots=1.0, busy=0.9, memory_used=1.9e9, memory_base=1e9, memory_limit=1.5e9)
    proposal = guard.propose(full)
    np.testing.assert_array_equal(proposal.slots, 1.0)
    assert proposal.explain(0) == "it asks for more"
    assert guard.vetoed[0] == 0


def test_what_killed_a_job_is_not_given_again(measurement: Measured) -> None:
    """Rows wait behind two slots of which none waited behind one: nothing before told how many there may be."""
    guard = Guard(Asks(2.0))
    guard.start(2, 1)
    fine = measurement(
        jobs=2, stages=1, slots=1.0, memory_used=3e9, memory_base=2e9, memory_queued=0.0, queued_bytes=0.0,
        queue_fill=0.0, block_bytes=1e7,
    )  # fmt: skip
    np.testing.assert_array_equal(guard.propose(fine).slots, [[2.0], [2.0]])
    # What is in force after it is what a job starts again with.
    died = replace(
        fine, killed=np.array([True, False]), delivered=np.array([0.0, 1000.0]), memory_used=np.array([9e9, 4e9]),
        memory_queued=np.array([5e9, 0.0]), queued_bytes=np.array([[5e9], [0.0]]),
        queue_fill=np.array([[1.0], [0.0]]), slots=np.array([[1.0], [2.0]]),
    )  # fmt: skip
    np.testing.assert_array_equal(guard.propose(died).slots, [[1.0], [2.0]])
    for _ in range(5):
        np.testing.assert_array_equal(guard.propose(fine).slots, [[1.0], [2.0]])
    guard.forget(0)
    np.testing.assert_array_equal(guard.propose(fine).slots, [[2.0], [2.0]])
